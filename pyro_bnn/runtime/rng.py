"""Random numbers with their own seed, which leave the global random state unchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch

__all__ = ["fork_rng", "generators", "preserve_states"]


def generators(device: torch.device) -> dict[str, torch.Generator]:
    """Return the generators that operations on a device draw from.

    Returns:
        The generator of the CPU under ``"cpu"``, and for a GPU also its own under ``"cuda"``.
    """
    by_name = {"cpu": torch.default_generator}
    if device.type == "cuda":
        current = torch.cuda.current_device()  # initializes CUDA, which creates the generators
        index = current if device.index is None else device.index
        by_name["cuda"] = torch.cuda.default_generators[index]
    return by_name


@contextlib.contextmanager
def fork_rng(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Restore the random state of a device, and of the CPU, at the end of a ``with`` block.

    ``torch.manual_seed`` is not used: it seeds all GPUs, whose states would not be restored.

    Args:
        device: the device on which the block draws random numbers.
        seed: seed at the beginning of the block; ``None`` continues from the present state.
    """
    forked = list(generators(device).values())
    with preserve_states(forked):
        if seed is not None:
            for generator in forked:
                generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def preserve_states(of_generators: Iterable[torch.Generator]) -> Iterator[None]:
    """Restore the states of some generators at the end of a ``with`` block."""
    states = [(generator, generator.get_state()) for generator in of_generators]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
