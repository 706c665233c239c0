"""Random numbers with a seed of their own: what draws them inside leaves the global random state as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["generators", "fork_rng"]


def generators(device: torch.device) -> dict[str, torch.Generator]:
    """Return the generators that operations on this device draw from, the CPU's among them."""
    found = {"cpu": torch.default_generator}
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        found["cuda"] = torch.cuda.default_generators[index]
    return found


@contextlib.contextmanager
def fork_rng(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Seed the generators of a device (or go on with them as they are) and give their states back at the end.

    Not by ``torch.manual_seed``: that one seeds every device there is, and nobody gives those back.
    """
    states = [(generator, generator.get_state()) for generator in generators(device).values()]
    try:
        for generator, _ in states:
            if seed is not None:
                generator.manual_seed(seed)
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
