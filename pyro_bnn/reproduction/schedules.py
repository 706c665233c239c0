"""Learning rates of the recipes, as functions of the epoch."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["delayed", "linear_decay"]


def linear_decay(start: float, constant: float, end: float) -> Callable[[float], float]:
    """Return a learning rate that is constant, then decays linearly to zero.

    Args:
        start: the learning rate until epoch ``constant``.
        constant: the epoch where the decay starts.
        end: the epoch where the learning rate reaches zero.

    Example:
        >>> [linear_decay(0.1, 10, 20)(epoch) for epoch in (0, 10, 15, 20)]
        [0.1, 0.1, 0.05, 0.0]
    """
    return lambda epoch: start * min(1.0, max(0.0, (end - epoch) / (end - constant)))


def delayed(schedule: Callable[[float], float], start: float) -> Callable[[float], float]:
    """Return the schedule from epoch ``start`` on, for a fit that continues another."""
    return lambda epoch: schedule(start + epoch)
