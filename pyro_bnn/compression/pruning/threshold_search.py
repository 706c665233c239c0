"""Choosing thresholds: the gaps of the histogram propose, validation data decide.

Where pruning works, the measures of what is needed and of what is not (log alpha of weights, log alpha or the negative
log of the mode of group scales) lie apart, and any threshold in the gap between them is as good as another. The widest
gaps are tried; the one that leaves the fewest weights is taken, as long as the error on validation data does not rise.

Source: Louizos, Ullrich & Welling (2017), section 4.1 and appendix, who read the thresholds off the histograms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_bnn.metrics import classification_error
from pyro_bnn.posterior import Posterior

from .graph import UnsupportedLayerError
from .posterior_pruning import GroupMeasure, group_measures, keep_masks, log_alpha
from .shrinking import EmptyNetworkError, shrink

__all__ = ["ChosenThresholds", "TriedThreshold", "choose_thresholds", "gaps"]

_GRID = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)  # for weights: log alpha has the same meaning everywhere


@dataclass(frozen=True)
class TriedThreshold:
    """One threshold that was tried.

    Attributes:
        names: of the weights that it is for.
        threshold: what was tried; all others stood where they were.
        kept: weights of the network that are then not zero.
        error: on the validation data; infinite where nothing was left of the network.
    """

    names: tuple[str, ...]
    threshold: float
    kept: int
    error: float


@dataclass(frozen=True)
class ChosenThresholds:
    """Thresholds for :func:`~pyro_bnn.compression.prune`, ``prune(posterior, chosen.threshold,
    chosen.group_threshold)``.

    Attributes:
        threshold: for each weight without a group prior.
        group_threshold: for each weight with one.
        kept: weights that are not zero with these thresholds.
        error: of the pruned network on the validation data.
        unpruned_error: of the network at the posterior means.
        tried: everything that was tried, in order.
    """

    threshold: dict[str, float]
    group_threshold: dict[str, float]
    kept: int
    error: float
    unpruned_error: float
    tried: list[TriedThreshold]

    def __str__(self) -> str:
        rows = [f"{'threshold':>9}  {'kept':>9}  {'error':>8}  weights"]
        rows += [
            f"{row.threshold:9.3f}  {row.kept:9d}  {row.error:8.4f}  {', '.join(row.names)}"
            for row in self.tried
        ]
        chosen = ", ".join(
            f"{name} {t:.3f}" for name, t in (self.threshold | self.group_threshold).items()
        )
        rows.append(
            f"chosen: {chosen}: {self.kept} weights, error {self.error:.4f}, before {self.unpruned_error:.4f}"
        )
        return "\n".join(rows)


@torch.no_grad()
def choose_thresholds(
    posterior: Posterior,
    data: tuple[Tensor, Tensor],
    tolerance: float = 0.0,
    candidates: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    per_layer: bool = False,
    groups_by: GroupMeasure = "scale",
) -> ChosenThresholds:
    """Return the thresholds of the largest compression whose validation error is as before, up to ``tolerance``.

    One number after the other is chosen, those of the others held: a threshold for all weights without a group prior
    (or for each tensor of them), one for each tensor with a group prior, from the first layer to the last, twice. In
    the first round the n-th of N may use n/N of the tolerance.

    Args:
        posterior: of a ``BayesianNet``.
        data: (x, y) that neither training nor test has seen.
        tolerance: by how much the error may rise: for classes of the fraction that is wrong, 0.001 being a tenth of a
            per cent; for regression of the root mean squared error.
        candidates: thresholds to try, for all or for each name; the widest gaps of :func:`gaps` if not given, and for
            weights also 0, 1, ..., 5.
        per_layer: whether each tensor without a group prior has a threshold of its own.
        groups_by: what the measure of a group is taken of: see :func:`~pyro_bnn.compression.group_measures`. ``prune``
            must be told the same.

    Raises:
        TypeError: as :func:`~pyro_bnn.compression.prune`.
        ValueError: as :func:`~pyro_bnn.compression.prune`; no data, x and y of different lengths, a negative tolerance.
    """
    x, y = data
    if not 0 < len(x) == len(y):
        raise ValueError(
            f"choose_thresholds: expected as many x as y, at least one, got {len(x)} and {len(y)}"
        )
    if not tolerance >= 0:
        raise ValueError(f"choose_thresholds: expected a tolerance of at least 0, got {tolerance}")
    keep_masks(posterior)  # what cannot be pruned is refused
    search = _Search(posterior, x, y, groups_by)
    alone = [name for name in search.names if name not in search.groups]
    knobs = [(name,) for name in search.names if name in search.groups or per_layer]
    knobs += [tuple(alone)] if alone and not per_layer else []
    best = unpruned = search.attempt((), math.inf, {})
    limits: dict[str, float] = dict.fromkeys(search.names, math.inf)
    for turn in range(2 if len(knobs) > 1 else 1):
        for number, knob in enumerate(knobs, start=1):
            allowed = unpruned.error + tolerance * (1 if turn else number / len(knobs))
            tried = [search.attempt(knob, t, limits) for t in search.candidates(knob, candidates)]
            good = [row for row in tried if row.error <= allowed and row.kept < best.kept]
            if good:
                best = min(good, key=lambda row: (row.kept, row.error))
                limits |= dict.fromkeys(knob, best.threshold)
    chosen = (
        {name: limits[name] for name in alone},
        {name: limits[name] for name in search.groups},
    )
    return ChosenThresholds(*chosen, best.kept, best.error, unpruned.error, search.tried)


def gaps(measures: Tensor, number: int = 12) -> list[float]:
    """Return the middles of the widest gaps in the histogram of measures, from low to high.

    With more than 200 measures the gaps are those between every so many, so that the sparse ends of a dense histogram
    do not count as gaps only because single values stand there.

    Args:
        measures: of any shape; infinite ones are left out.
        number: of gaps at most.
    """
    values = measures[measures.isfinite()].flatten().double().sort().values
    points = values[:: max(len(values) // 200, 1)]
    widths = points.diff()
    widest = widths.argsort(descending=True)[:number]
    return sorted({float(points[i] + points[i + 1]) / 2 for i in widest.tolist() if widths[i] > 0})


class _Search:
    """Tries thresholds on the network at the posterior means, and notes what comes of them."""

    def __init__(self, posterior: Posterior, x: Tensor, y: Tensor, groups_by: GroupMeasure) -> None:
        self.posterior, self.x, self.y = posterior, x, y
        self.names = posterior.model.names
        moments = posterior.moments()
        self.means = {name: moments[name][0] for name in self.names}
        self.groups = group_measures(posterior, groups_by)
        self.measures = {
            name: self.groups.get(name, log_alpha(*moments[name])) for name in self.names
        }
        self.tried: list[TriedThreshold] = []

    def candidates(
        self, names: tuple[str, ...], given: Sequence[float] | Mapping[str, Sequence[float]] | None
    ) -> list[float]:
        """Return what to try for these weights, from mild to strict."""
        chosen = given.get(names[0]) if isinstance(given, Mapping) else given
        if chosen is None:
            found = gaps(torch.cat([self.measures[name].flatten() for name in names]))
            chosen = found if names[0] in self.groups else [*found, *_GRID]
        return sorted({*chosen}, reverse=True)

    def attempt(
        self, names: tuple[str, ...], threshold: float, others: Mapping[str, float]
    ) -> TriedThreshold:
        """Return what a threshold for some of the weights leads to."""
        limits = {
            **dict.fromkeys(self.names, math.inf),
            **others,
            **dict.fromkeys(names, threshold),
        }
        weights = {
            name: mean * (self.measures[name] < limits[name]) for name, mean in self.means.items()
        }
        net = self.posterior.model.network_with(weights).eval()
        try:
            net = shrink(net).module
            kept, error = self._count(net), self._error(net)
        except EmptyNetworkError:
            kept, error = 0, math.inf
        except UnsupportedLayerError:
            kept, error = self._count(net), self._error(net)
        row = TriedThreshold(names, threshold, kept, error)
        self.tried += [row] if names else []
        return row

    def _count(self, net: nn.Module) -> int:
        state = net.state_dict()
        return sum(int(state[name].count_nonzero()) for name in self.names)

    def _error(self, net: nn.Module) -> float:
        outputs = torch.cat([net(part) for part in self.x.split(1000)])
        if not self.y.is_floating_point():
            return classification_error(outputs, self.y)
        mean = self.posterior.model.likelihood(outputs).mean
        return float((mean - self.y).double().square().mean().sqrt())
