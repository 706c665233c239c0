"""Thresholds for pruning: gaps in the histogram propose them, validation data decide.

Where pruning works, the measures of the weights (log alpha) and groups (see
:func:`~pyro_bnn.compression.group_measures`) that are needed lie apart from those that are not, and
any threshold in the gap between them is as good as another. The widest gaps are tried. Of those at
which the error on validation data does not increase, the one that leaves the fewest weights is
chosen.

Source: Louizos, Ullrich & Welling (2017), section 4.1 and appendix, who read the thresholds off the
histograms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pyro_bnn.likelihoods import Likelihood
from pyro_bnn.metrics import classification_error
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.text_table import format_table

from .channels import EmptyNetworkError
from .graph import UnsupportedLayerError
from .noise_measures import GroupMeasure, group_measures, log_alpha
from .posterior_pruning import prunable_moments
from .shrinking import shrink

__all__ = ["ChosenThresholds", "TriedThreshold", "choose_thresholds", "gaps"]

Candidates: TypeAlias = Sequence[float] | Mapping[str, Sequence[float]]

_GRID = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)  # for weights: log alpha has the same meaning everywhere
_BATCH_SIZE = 1000  # of the validation data


@dataclass(frozen=True)
class TriedThreshold:
    """One threshold that was tried.

    Attributes:
        names: The weights that it applies to.
        threshold: The value; all other thresholds stayed as they were.
        kept: The number of nonzero weights of the pruned network.
        error: The error on the validation data, infinite if the network became a constant.
    """

    names: tuple[str, ...]
    threshold: float
    kept: int
    error: float


@dataclass(frozen=True)
class ChosenThresholds:
    """Thresholds for ``prune(posterior, chosen.threshold, chosen.group_threshold)``.

    Attributes:
        threshold: The threshold of each weight without a group prior.
        group_threshold: The threshold of each weight with one.
        kept: The number of nonzero weights with these thresholds.
        error: The error of the pruned network on the validation data.
        unpruned_error: The error of the network at the posterior means.
        tried: All thresholds that were tried, in order.
    """

    threshold: dict[str, float]
    group_threshold: dict[str, float]
    kept: int
    error: float
    unpruned_error: float
    tried: list[TriedThreshold]

    def __str__(self) -> str:
        rows = []
        for row in self.tried:
            names = ", ".join(row.names)
            rows.append((f"{row.threshold:.3f}", row.kept, f"{row.error:.4f}", names))
        table = format_table(("threshold", "kept", "error", "weights"), rows, "rrrl")
        limits = self.threshold | self.group_threshold
        chosen = ", ".join(f"{name} {limit:.3f}" for name, limit in limits.items())
        return (
            f"{table}\nchosen: {chosen}: {self.kept} weights, error {self.error:.4f}, "
            f"before {self.unpruned_error:.4f}"
        )


@torch.no_grad()
def choose_thresholds(
    posterior: Posterior,
    data: tuple[Tensor, Tensor],
    tolerance: float = 0.0,
    candidates: Candidates | None = None,
    per_layer: bool = False,
    groups_by: GroupMeasure = "scale",
) -> ChosenThresholds:
    """Return the thresholds that leave the fewest weights at the same validation error.

    One threshold after another is chosen while the others are held: one for all weights without a
    group prior (or one for each tensor of them), and one for each tensor with a group prior, from
    the first layer to the last, twice. In the first round, the n-th of N thresholds may use the
    fraction n/N of the tolerance.

    Args:
        posterior: The posterior of a ``BayesianNet``.
        data: (x, y), used neither for training nor for testing.
        tolerance: The largest increase of the error. For classes, the error is the fraction of
            wrong examples, so 0.001 is a tenth of a percent; for regression, it is the root mean
            squared error in units of y.
        candidates: Thresholds to try, for all weights or by name. By default, the widest gaps of
            :func:`gaps`, and for weights also 0, 1, ..., 5.
        per_layer: Whether each tensor without a group prior has a threshold of its own.
        groups_by: The measure of a group: see :func:`~pyro_bnn.compression.group_measures`. Pass
            the same to ``prune``.

    Raises:
        TypeError: Under the conditions of :func:`~pyro_bnn.compression.prune`.
        ValueError: Under the conditions of :func:`~pyro_bnn.compression.prune`; if there are no
            data, if x and y differ in length, or if the tolerance is negative.
    """
    x, y = data
    if not 0 < len(x) == len(y):
        raise ValueError(
            f"choose_thresholds: expected as many x as y, at least one, got {len(x)} and {len(y)}"
        )
    if not tolerance >= 0:
        raise ValueError(f"choose_thresholds: expected a tolerance of at least 0, got {tolerance}")
    search = _Search(posterior, data, groups_by)
    ungrouped = [name for name in search.names if name not in search.groups]
    sets = _sets_with_one_threshold(search, ungrouped, per_layer)
    best = unpruned = search.attempt((), math.inf, {})
    limits: dict[str, float] = dict.fromkeys(search.names, math.inf)
    rounds = 1 if len(sets) == 1 else 2
    for turn in range(rounds):
        for number, names in enumerate(sets, start=1):
            usable = 1.0 if turn > 0 else number / len(sets)
            allowed = unpruned.error + tolerance * usable
            better = []
            for threshold in search.candidates(names, candidates):
                row = search.attempt(names, threshold, limits)
                if row.error <= allowed and row.kept < best.kept:
                    better.append(row)
            if better:
                best = min(better, key=lambda row: (row.kept, row.error))
                limits |= dict.fromkeys(names, best.threshold)
    return ChosenThresholds(
        threshold={name: limits[name] for name in ungrouped},
        group_threshold={name: limits[name] for name in search.groups},
        kept=best.kept,
        error=best.error,
        unpruned_error=unpruned.error,
        tried=search.tried,
    )


def gaps(measures: Tensor, number: int = 12) -> list[float]:
    """Return the midpoints of the widest gaps in the histogram of measures, in ascending order.

    Of more than 200 sorted measures, only every n-th is used, about 200 in all. Otherwise the
    sparse ends of a dense histogram would count as gaps, because single values lie there.

    Args:
        measures: The measures, any shape; infinite ones are ignored.
        number: The most gaps to return.
    """
    values = measures[measures.isfinite()].flatten().double().sort().values
    points = values[:: max(len(values) // 200, 1)]
    widths = points.diff()
    widest = widths.argsort(descending=True)[:number]
    widest = widest[widths[widest] > 0]
    middles = (points[widest] + points[widest + 1]) / 2
    return sorted(set(middles.tolist()))


def _sets_with_one_threshold(
    search: _Search, ungrouped: list[str], per_layer: bool
) -> list[tuple[str, ...]]:
    """Return the names of the weights that each threshold is for."""
    sets: list[tuple[str, ...]] = []
    for name in search.names:
        if name in search.groups or per_layer:
            sets.append((name,))
    if ungrouped and not per_layer:
        sets.append(tuple(ungrouped))
    return sets


class _Search:
    """Tries thresholds on the network at the posterior means, and records the results."""

    def __init__(
        self, posterior: Posterior, data: tuple[Tensor, Tensor], groups_by: GroupMeasure
    ) -> None:
        moments = prunable_moments(posterior, "choose_thresholds")
        self.model, self.data = posterior.model, data
        self.names = list(moments)
        self.groups = group_measures(posterior, groups_by)
        self.means = {name: mean for name, (mean, _) in moments.items()}
        self.measures = dict(self.groups)
        for name, (mean, variance) in moments.items():
            if name not in self.groups:
                self.measures[name] = log_alpha(mean, variance)
        self.tried: list[TriedThreshold] = []

    def candidates(self, names: tuple[str, ...], candidates: Candidates | None) -> list[float]:
        """Return the thresholds to try for some weights, from mild to strict."""
        chosen = candidates.get(names[0]) if isinstance(candidates, Mapping) else candidates
        if chosen is None:
            measures = [self.measures[name].flatten() for name in names]
            chosen = gaps(torch.cat(measures))
            if names[0] not in self.groups:
                chosen += _GRID
        return sorted(set(chosen), reverse=True)

    def attempt(
        self, names: tuple[str, ...], threshold: float, others: Mapping[str, float]
    ) -> TriedThreshold:
        """Return the result of a threshold for some of the weights.

        Args:
            names: These weights; without any, the attempt is not recorded.
            threshold: The threshold of these weights.
            others: The thresholds of other weights; without one, a weight is not pruned.
        """
        limits = {**others, **dict.fromkeys(names, threshold)}
        weights = {}
        for name, mean in self.means.items():
            weights[name] = mean * (self.measures[name] < limits.get(name, math.inf))
        full = self.model.network_with(weights).eval()
        try:
            net = shrink(full).module
        except UnsupportedLayerError:
            net = full
        except EmptyNetworkError:
            net = None
        row = TriedThreshold(names, threshold, 0, math.inf)
        if net is not None:
            error = _validation_error(net, self.data, self.model.likelihood)
            row = TriedThreshold(names, threshold, self._count_nonzero(net), error)
        if names:
            self.tried.append(row)
        return row

    def _count_nonzero(self, net: nn.Module) -> int:
        state = net.state_dict()
        return sum(int(state[name].count_nonzero()) for name in self.names)


def _validation_error(net: nn.Module, data: tuple[Tensor, Tensor], likelihood: Likelihood) -> float:
    """Return the fraction of wrong examples, or the root mean squared error of a regression."""
    x, y = data
    outputs = torch.cat([net(batch) for batch in torch.split(x, _BATCH_SIZE)])
    if not y.is_floating_point():
        return classification_error(outputs, y)
    mean = likelihood(outputs).mean
    return float((mean - y).double().square().mean().sqrt())
