"""Schedules of the KL weight."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["linear_warmup"]


def linear_warmup(start: float, end: float) -> Callable[[float], float]:
    """Return a schedule that is zero until epoch ``start`` and rises linearly to one at epoch ``end``.

    Raises:
        ValueError: an end that is not after the start.

    >>> [linear_warmup(5, 15)(epoch) for epoch in (0, 5, 10, 15, 20)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    if not start < end:
        raise ValueError(f"linear_warmup: expected start < end, got {start} and {end}")
    return lambda epoch: min(max((epoch - start) / (end - start), 0.0), 1.0)
