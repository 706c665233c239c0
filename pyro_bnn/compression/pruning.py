r"""Pruning: which weights, and which whole groups, the posterior does not need.

A weight whose noise drowns its mean, :math:`\log\alpha = \log(\mathrm{Var}\,w / (\mathbb{E} w)^2) \ge t`, can be
zero: its signal-to-noise ratio is below :math:`e^{-t/2}`. For the default :math:`t = 3` Gaussian noise of that
:math:`\alpha` equals binary dropout of rate 0.95. A group is dropped by its scale z: by :math:`\log\alpha` of a
Gaussian z, by the negative log of the mode, :math:`v - m`, of a log-normal z.

Source: Molchanov, Ashukha & Vetrov (2017), section 4.3; Louizos, Ullrich & Welling (2017), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..network import BayesianNet
from ..posterior import Posterior

__all__ = ["LayerReport", "Pruned", "prune"]


@dataclass(frozen=True)
class LayerReport:
    """How much of one weight tensor is left."""

    name: str
    shape: tuple[int, ...]
    kept: int
    total: int

    @property
    def sparsity(self) -> float:
        """The fraction of weights that are zero."""
        return 1 - self.kept / self.total


@dataclass(frozen=True)
class Pruned:
    """A pruned network.

    Attributes:
        module: the network at its posterior means, pruned weights set to zero.
        masks: for each weight, ``True`` where it is kept.
        groups: for each weight under a group prior, ``True`` for the groups that are kept.
        report: a row per weight tensor.
    """

    module: nn.Module
    masks: dict[str, Tensor]
    groups: dict[str, Tensor]
    report: list[LayerReport]

    @property
    def ratio(self) -> float:
        """The number of weights over the number of weights that are not zero."""
        kept = sum(layer.kept for layer in self.report)
        return sum(layer.total for layer in self.report) / kept if kept else float("inf")

    def __str__(self) -> str:
        rows = [("weight", "shape", "kept", "of", "sparsity")]
        rows += [
            (r.name, "x".join(map(str, r.shape)), str(r.kept), str(r.total), f"{r.sparsity:.1%}") for r in self.report
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join([row[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)])
            for row in rows
        ]
        return "\n".join([*lines, f"{self.ratio:.1f} times fewer weights that are not zero"])


def prune(posterior: Posterior, threshold: float = 3.0, group_threshold: float | None = None) -> Pruned:
    """Return the network at its posterior means without the weights and the groups that the posterior does not need.

    Args:
        posterior: of a ``BayesianNet``.
        threshold: weights with log alpha at or above it are zero.
        group_threshold: groups whose measure (log alpha, or the negative log of the mode) is at or above it are zero;
            as ``threshold`` if not given.

    Raises:
        TypeError: no posterior of a ``BayesianNet``; a hand-written program has no network.
        ValueError: a threshold that is no number; a posterior that gives weights no variance, as a point estimate does:
            there is nothing to prune by.
    """
    if not isinstance(posterior, Posterior):
        raise TypeError(
            f"prune: expected a Posterior, got {type(posterior).__name__}; fit returns it as result.posterior"
        )
    if not isinstance(posterior.model, BayesianNet):
        raise TypeError("prune: a hand-written program has no network to prune; write it as a BayesianNet")
    if math.isnan(threshold) or (group_threshold is not None and math.isnan(group_threshold)):
        raise ValueError(f"prune: expected numbers as thresholds, got {threshold} and {group_threshold}")
    found = posterior.moments()
    moments = {name: found[name] for name in posterior.model.names}
    if all(not bool(variance.any()) for _, variance in moments.values()):
        raise ValueError(
            "prune: the posterior has no variance, so no weight is known to be noise; "
            "fit MeanField, say, not a point estimate"
        )
    group_threshold = threshold if group_threshold is None else group_threshold
    groups = {name: measure < group_threshold for name, measure in group_measures(posterior).items()}
    masks = {name: log_alpha(mean, variance) < threshold for name, (mean, variance) in moments.items()}
    # a group prior decides by groups: noise within a group that is kept is the group's own
    masks |= {name: keep.expand_as(masks[name]) for name, keep in groups.items()}
    module = posterior.model.network_with({name: moments[name][0] * mask for name, mask in masks.items()})
    report = [LayerReport(name, tuple(mask.shape), int(mask.sum()), mask.numel()) for name, mask in masks.items()]
    return Pruned(module, masks, groups, report)


def log_alpha(mean: Tensor, variance: Tensor) -> Tensor:
    r"""Return :math:`\log(\mathrm{Var}\,w / (\mathbb{E} w)^2)`, infinite where the mean is zero."""
    return variance.log() - mean.square().log()


@torch.no_grad()
def group_measures(posterior: Posterior) -> dict[str, Tensor]:
    """Return by what the groups of each weight under a group prior are pruned; it broadcasts to the weight."""
    if not hasattr(posterior.guide, "distributions"):
        return {}
    sites = {name: q.base_dist for name, q in posterior.guide.distributions().items() if hasattr(q, "base_dist")}
    stems = {name.split(".scale")[0] for name in sites if ".scale" in name}
    return {stem: _measure(stem, sites) for stem in posterior.model.names if stem in stems}


def _measure(stem: str, sites: Mapping[str, Any]) -> Tensor:
    if f"{stem}.scale.gamma" in sites:  # log z = (log a + log b) / 2
        a, b = sites[f"{stem}.scale.gamma"], sites[f"{stem}.scale.inverse_gamma"]
        return (a.scale.square() + b.scale.square()) / 4 - (a.loc + b.loc) / 2
    z = sites[f"{stem}.scale"]
    if isinstance(z, torch.distributions.LogNormal):
        return z.scale.square() - z.loc
    return log_alpha(z.mean, z.variance)
