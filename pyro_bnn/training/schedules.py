"""Schedules of the learning rate and of the KL weight: numbers, or functions of the epoch."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

__all__ = ["Schedule", "linear_warmup", "schedule_value"]

Schedule = float | Callable[[float], float]
"""A constant, or a function of the epoch, which is a float: 1.5 is the middle of the second one."""


def schedule_value(schedule: Schedule, epoch: Fraction) -> float:
    """Return the value of a schedule at an epoch."""
    return float(schedule(float(epoch)) if callable(schedule) else schedule)


def linear_warmup(start: float, end: float) -> Callable[[float], float]:
    r"""Return a schedule that is zero until ``start`` and rises linearly to one at ``end``.

    .. math:: \beta(t) = \min\{\max\{(t - \text{start}) / (\text{end} - \text{start}), 0\}, 1\}

    Args:
        start: epoch up to which the schedule is zero.
        end: epoch from which on it is one.

    Raises:
        ValueError: ``end`` is not after ``start``.

    Example:
        >>> [linear_warmup(5, 15)(epoch) for epoch in (0, 5, 10, 15, 20)]
        [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    if not start < end:
        raise ValueError(f"linear_warmup: expected start < end, got {start} and {end}")
    return lambda epoch: min(max((epoch - start) / (end - start), 0.0), 1.0)
