"""The device of a program, and a check of a requested device."""

from __future__ import annotations

import torch
from torch import nn

from .program import Program

__all__ = ["device_of", "require_device"]


def require_device(name: str | torch.device, caller: str = "fit") -> torch.device:
    """Return a device after checking that it can hold a tensor.

    Args:
        name: name of the device, such as ``"cpu"`` or ``"cuda:0"``.
        caller: name of the function that the user called, with which the message begins.

    Raises:
        ValueError: the device is not available; the message lists those that are.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ValueError(
            f"{caller}: the device {str(name)!r} is not available on this machine; "
            f"choose one of: {', '.join(available)}"
        ) from error
    return torch.device(name)


def device_of(*programs: Program) -> torch.device:
    """Return the device of the first parameter or buffer of the programs.

    Programs without parameters and buffers lie on torch's default device.
    """
    for program in programs:
        if not isinstance(program, nn.Module):
            continue
        for tensor in (*program.parameters(), *program.buffers()):
            return tensor.device
    return torch.get_default_device()
