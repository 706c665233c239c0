r"""Entropy-constrained codebooks: values that are worth the bits that it takes to name them.

For weights w of posterior variance :math:`\sigma^2`, the codebook c and the frequencies p of its
values minimize distortion plus code length,

.. math:: \sum_i \frac{(w_i - c_{k_i})^2}{2 \sigma_i^2} + \beta \ln 2 \Big( \sum_i -\log_2 p_{k_i}
    + 16 K \Big) .

Assignments k, values c and frequencies p are minimized in turn, and values that are not worth their
16 bits in the table are dropped.

Source: Chou, Lookabaugh & Gray (1989), section III.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ConstrainedTable", "WeightsToCode", "constrain_entropy", "costs"]

_ENTRY_BITS = 16  # of a value in the table


@dataclass(frozen=True)
class WeightsToCode:
    """The nonzero numbers of one parameter.

    Attributes:
        values: w (n,).
        precision: The inverse variance of each, (n,).
        bits_weight: The price of a bit, in units of ln 2 nats.
    """

    values: Tensor
    precision: Tensor
    bits_weight: float


class ConstrainedTable(NamedTuple):
    """A codebook and its price, in nats.

    ``table`` has its values and ``nats`` the cost of the code of each value, both (levels,).
    ``objective`` is the distortion plus the code length of all weights and of the table.
    """

    table: Tensor
    nats: Tensor
    objective: float


def constrain_entropy(weights: WeightsToCode, table: Tensor) -> ConstrainedTable:
    """Return the codebook at which alternation converges, without values that cost too much.

    Values are dropped one at a time, the one without which the objective is least, as long as it
    decreases.

    Args:
        weights: The weights to describe.
        table: The values to start with, (levels,).
    """
    best = _alternate(weights, table)
    while len(best.table) > 1:
        shorter = _without_one_value(weights, best.table)
        shorter = _alternate(weights, shorter.table)
        if shorter.objective >= best.objective:
            break
        best = shorter
    return best


def _without_one_value(weights: WeightsToCode, table: Tensor) -> ConstrainedTable:
    """Return the best of all codebooks with one value less, after a few alternations."""
    tried = []
    for k in range(len(table)):
        rest = torch.cat([table[:k], table[k + 1 :]])
        tried.append(_alternate(weights, rest, steps=3))
    return min(tried, key=lambda constrained: constrained.objective)


def _alternate(weights: WeightsToCode, table: Tensor, steps: int = 100) -> ConstrainedTable:
    """Minimize the objective over assignments, values and frequencies in turn."""
    entry_nats = weights.bits_weight * _ENTRY_BITS * math.log(2)
    code = (weights.values[:, None] - table).abs().argmin(1)
    nats = torch.zeros_like(table)
    objective = math.inf
    for _ in range(steps):
        counts = code.bincount(minlength=len(table))
        used = counts > 0
        table = _centroids(weights, code, len(table))[used]
        nats = -weights.bits_weight * (counts[used] / len(weights.values)).log()
        least, code = costs(weights.values, weights.precision, table, nats).min(1)
        before = objective
        objective = float(least.double().sum()) + entry_nats * len(table)
        if objective >= before * (1 - 1e-9):
            break
    return ConstrainedTable(table, nats, objective)


def _centroids(weights: WeightsToCode, code: Tensor, levels: int) -> Tensor:
    """Return the mean of the weights of each code, NaN for codes that no weight has."""
    zeros = weights.values.new_zeros(levels, dtype=torch.double)
    precision = weights.precision.double()
    mass = zeros.index_add(0, code, precision)
    total = zeros.index_add(0, code, precision * weights.values)
    return (total / mass).to(weights.values.dtype)


def costs(values: Tensor, precision: Tensor, table: Tensor, nats: Tensor) -> Tensor:
    """Return distortion plus code length of each weight at each level, in nats, (n, levels).

    Args:
        values: The weights (n,).
        precision: The inverse variance of each, (n,).
        table: The value of each level, (levels,).
        nats: The code length of each level, (levels,).
    """
    return (values[:, None] - table).square() * (precision[:, None] / 2) + nats
