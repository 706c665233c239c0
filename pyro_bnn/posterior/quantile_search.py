"""Quantiles of a distribution from its distribution function, by a search on grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["quantiles"]

REFINEMENTS = 3


def quantiles(
    cdf: Callable[[Tensor], Tensor],
    mean: Tensor,
    stddev: Tensor,
    probabilities: Sequence[float],
    points: int = 40,
) -> Tensor:
    r"""Return quantiles of n distributions, searched on successively finer grids.

    By Cantelli's inequality the p-quantile of a distribution of mean :math:`\mu` and standard
    deviation :math:`\sigma` lies between :math:`\mu - \sigma\sqrt{(1-p)/p}` and
    :math:`\mu + \sigma\sqrt{p/(1-p)}`. A grid divides this bracket, and the bracket shrinks to the
    two neighboring grid points between which the distribution function reaches p. After three
    such steps the distribution function is interpolated linearly.

    Args:
        cdf: the distribution functions. It is called three times, with values of shape
            (points, q, n, ...), and returns probabilities of the same shape.
        mean: the means, (n, ...), in double precision.
        stddev: the standard deviations, (n, ...).
        probabilities: the q levels of the quantiles, between 0 and 1.
        points: the number of points of a grid.

    Returns:
        The quantiles, (q, n, ...).

    Example:
        >>> zero, one = torch.zeros(1).double(), torch.ones(1).double()
        >>> quantiles(torch.special.ndtr, zero, one, [0.025, 0.975]).round(decimals=3).flatten()
        tensor([-1.9600,  1.9600], dtype=torch.float64)
    """
    example_axes = [1] * mean.dim()
    levels = torch.tensor(probabilities, dtype=mean.dtype, device=mean.device)
    levels = levels.view(-1, *example_axes)
    low = mean - stddev * ((1 - levels) / levels).sqrt()
    high = mean + stddev * (levels / (1 - levels)).sqrt()
    fractions = torch.linspace(0, 1, points, dtype=mean.dtype, device=mean.device)
    fractions = fractions.view(-1, 1, *example_axes)
    for _ in range(REFINEMENTS):
        grid = low + fractions * (high - low)
        reached = cdf(grid)
        # the first grid point where the function reaches the level, but not the very first point
        above = (reached < levels).sum(0, keepdim=True).clamp(1, points - 1)
        low, high = _take(grid, above - 1), _take(grid, above)
    reached_low, reached_high = _take(reached, above - 1), _take(reached, above)
    fraction = (levels - reached_low) / (reached_high - reached_low).clamp_min(1e-300)
    return low + fraction.clamp(0, 1) * (high - low)


def _take(grid: Tensor, index: Tensor) -> Tensor:
    """Return the values at these indices along the first axis of a grid."""
    return grid.gather(0, index).squeeze(0)
