"""Where programs live, and where they are asked to go."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

__all__ = ["device_of", "require_device"]


def require_device(name: str | torch.device) -> torch.device:
    """Return the device.

    Raises:
        ValueError: it is not there; the message says which ones are.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ValueError(
            f"fit: there is no device {str(name)!r} here; there is {', '.join(there)}"
        ) from error
    return torch.device(name)


def device_of(*programs: Any) -> torch.device:
    """Return where the programs live: the device of their first parameter or buffer."""
    modules = [program for program in programs if isinstance(program, nn.Module)]
    tensors = itertools.chain.from_iterable(
        (*module.parameters(), *module.buffers()) for module in modules
    )
    return next((tensor.device for tensor in tensors), torch.get_default_device())
