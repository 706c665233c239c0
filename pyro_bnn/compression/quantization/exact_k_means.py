r"""Exact k-means on a line.

On a line, clusters are intervals of the sorted points :math:`x_0 \le \dots \le x_{n-1}`. Let
:math:`D_k(j)` be the least cost of the first j points in k clusters, and :math:`s(i, j)` the spread
of the points :math:`i \ldots j - 1` around their mean. Then

.. math:: D_k(j) = \min_i \, D_{k-1}(i) + s(i, j),

where i is the start of the last cluster. The best i does not decrease with j, so each row
:math:`D_k` is found by divide and conquer: the best i for the middle j limits those for the smaller
and the larger j. All rows together take :math:`O(K n \log n)` steps.

Source: Grønlund et al. (2017), section 3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["k_means"]

_MAX_POINTS = 2**16


def k_means(values: Tensor, levels: int, weights: Tensor | None = None) -> Tensor:
    r"""Return the ascending centroids that minimize :math:`\sum_i a_i \min_k (x_i - c_k)^2`.

    The minimum is exact for up to 65,536 distinct values; more are merged into that many groups of
    neighbors of equal count first.

    Args:
        values: x (n,).
        levels: K, the number of centroids; fewer are returned if there are fewer distinct values.
        weights: a (n,), positive; 1 by default.

    Raises:
        ValueError: If there are no values, or ``levels`` is below one.

    Example:
        >>> k_means(torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0]), 2).tolist()
        [0.5, 11.0]
    """
    if levels < 1 or not len(values):
        raise ValueError(
            f"k_means: expected values and levels of at least one, got {len(values)} and {levels}"
        )
    if weights is None:
        weights = torch.ones_like(values)
    # on the CPU: many small steps
    points, mass = _distinct(values.double().cpu(), weights.double().cpu())
    if len(points) <= levels:
        return points.to(values)
    # differences of sums lose fewer digits near zero
    center = (mass * points).sum() / mass.sum()
    sums = _cumulative_sums(points - center, mass)
    edges = _optimal_edges(sums, levels)
    total, first, _ = (sums[:, edges[1:]] - sums[:, edges[:-1]]).unbind()
    return (first / total + center).to(values)


def _distinct(values: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Return ascending distinct points and their masses; too many become means of neighbors."""
    points, place = torch.unique(values, return_inverse=True)
    total = torch.zeros_like(points).index_add_(0, place, mass)
    if len(points) <= _MAX_POINTS:
        return points, total
    place = torch.arange(len(points)) * _MAX_POINTS // len(points)
    zeros = torch.zeros(_MAX_POINTS, dtype=points.dtype)
    merged = zeros.index_add(0, place, total)
    return zeros.index_add(0, place, total * points) / merged, merged


def _cumulative_sums(points: Tensor, mass: Tensor) -> Tensor:
    r"""Return :math:`\sum_{i < j} a_i x_i^p` for p = 0, 1, 2 and j = 0 ... n, (3, n + 1)."""
    sums = points.new_zeros(3, len(points) + 1)
    for power in range(3):
        sums[power, 1:] = (mass * points**power).cumsum(0)
    return sums


def _spread(sums: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the weighted squared deviations of the points low ... high - 1 from their mean."""
    mass, first, second = (sums[:, high] - sums[:, low]).unbind()
    smallest = torch.finfo(mass.dtype).tiny
    return (second - first.square() / mass.clamp_min(smallest)).clamp_min(0)


def _optimal_edges(sums: Tensor, levels: int) -> Tensor:
    """Return the edges of the best intervals, ascending from 0 to n, (levels + 1,)."""
    n = sums.shape[1] - 1
    start = torch.zeros(n + 1, dtype=torch.long)
    row = _Row(cost=_spread(sums, start, torch.arange(n + 1)), start=start)
    rows = [row]
    for clusters in range(2, levels + 1):
        row = _next_row(sums, row.cost, clusters)
        rows.append(row)
    edges = [n]
    for row in reversed(rows):
        edges.append(int(row.start[edges[-1]]))
    edges.reverse()
    return torch.tensor(edges)


class _Row(NamedTuple):
    """The least cost of the first j points in k clusters, and the start of the last cluster.

    Both are (n + 1,), for j = 0 ... n.
    """

    cost: Tensor
    start: Tensor


def _next_row(sums: Tensor, previous: Tensor, clusters: int) -> _Row:
    """Return the row with one more cluster.

    A span is a range of j, and a range of starts in which their best ones lie. All spans of one
    depth of the recursion are solved together.
    """
    n = len(previous) - 1
    row = _Row(torch.full_like(previous, math.inf), torch.zeros(n + 1, dtype=torch.long))
    # columns: the first and last j, the first and last start
    spans = torch.tensor([[clusters, n, clusters - 1, n - 1]])
    while len(spans):
        low, high, left, right = spans.unbind(1)
        middle = (low + high) // 2
        best = _best_starts(sums, previous, middle, left, torch.minimum(right, middle - 1))
        row.cost[middle], row.start[middle] = best
        below = torch.stack([low, middle - 1, left, best.start], 1)
        above = torch.stack([middle + 1, high, best.start, right], 1)
        spans = torch.cat([below, above])
        spans = spans[spans[:, 0] <= spans[:, 1]]
    return row


def _best_starts(sums: Tensor, previous: Tensor, ends: Tensor, left: Tensor, right: Tensor) -> _Row:
    """Return for some j the least cost and, of the starts left ... right, the first that has it.

    The candidates of all j are laid end to end.
    """
    counts = right - left + 1
    owner = torch.arange(len(ends)).repeat_interleave(counts)
    offsets = counts.cumsum(0) - counts
    candidate = left[owner] + torch.arange(len(owner)) - offsets[owner]
    cost = previous[candidate] + _spread(sums, candidate, ends[owner])
    least = cost.new_full((len(ends),), math.inf).scatter_reduce_(0, owner, cost, "amin")
    beyond = len(previous)
    candidate = torch.where(cost == least[owner], candidate, beyond)
    first = candidate.new_full((len(ends),), beyond).scatter_reduce_(0, owner, candidate, "amin")
    return _Row(least, first)
