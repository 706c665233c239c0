r"""Pruning: which weights, and which whole groups, the posterior does not need, and the smaller network without them.

A weight whose noise drowns its mean, :math:`\log\alpha = \log(\mathrm{Var}\,w / (\mathbb{E} w)^2) \ge t`, can be
zero: its signal-to-noise ratio :math:`|\mathbb{E} w| / \sqrt{\mathrm{Var}\,w} = e^{-\log\alpha / 2}` is at most
:math:`e^{-t/2}`. For the default :math:`t = 3` that is 0.22, and Gaussian noise of that :math:`\alpha` equals binary
dropout of rate 0.95. A group is dropped by its scale z: by :math:`\log\alpha` of a Gaussian z, by the negative log of
the mode, :math:`v - m`, of a log-normal z. The group of a dense layer is an input unit, so that the first one prunes
inputs; that of a convolution an output channel.

Source: Molchanov, Ashukha & Vetrov (2017), section 4.3; Louizos, Ullrich & Welling (2017), section 4.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior

from .graph import UnsupportedLayerError
from .shrinking import EmptyNetworkError, Shrunk, shrink

__all__ = ["LayerReport", "Pruned", "group_measures", "keep_masks", "log_alpha", "prune"]

GroupMeasure = Literal["scale", "weights"]
Threshold = float | Mapping[str, float]


@dataclass(frozen=True)
class LayerReport:
    """How much of one weight tensor is left.

    Attributes:
        name: of the weight.
        shape: in the original network.
        kept: how many weights of the smaller network are not zero.
        total: how many the original has.
        new_shape: in the smaller network.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    total: int
    new_shape: tuple[int, ...]

    @property
    def sparsity(self) -> float:
        """The fraction of weights that are zero or gone."""
        return 1 - self.kept / self.total


@dataclass(frozen=True)
class Pruned:
    """A pruned network.

    Attributes:
        module: the smaller network, at the posterior means; single weights that were pruned are zeros in it.
        masks: for each uncertain weight, at its original size, ``True`` where it is not zero in ``module``.
        groups: for each weight under a group prior, ``True`` for the groups whose scale is kept.
        report: a row per uncertain weight.
        masked: the original network at full size with zeros in it: the same function.
        kept: for each parameter and buffer of ``module`` and each axis the indices that are left of the original.
        variances: the posterior variance of each uncertain weight, cut to the size it has in ``module``; empty where
            it is not known.
        notes: a sentence for each layer that could not be made smaller, and why.
    """

    module: nn.Module
    masks: dict[str, Tensor]
    groups: dict[str, Tensor]
    report: list[LayerReport]
    masked: nn.Module
    kept: dict[str, tuple[Tensor, ...]]
    variances: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def dense(self) -> int:
        """Weights of the smaller network, zeros among them counted."""
        return sum(math.prod(layer.new_shape) for layer in self.report)

    @property
    def ratio(self) -> float:
        """The number of weights over the number of weights that are not zero."""
        kept = sum(layer.kept for layer in self.report)
        return sum(layer.total for layer in self.report) / kept if kept else float("inf")

    @property
    def dense_ratio(self) -> float:
        """The number of weights over the number of weights, zeros included, of the smaller network."""
        return sum(layer.total for layer in self.report) / self.dense

    @property
    def architecture(self) -> str:
        """The filters of each convolution and the inputs of each dense layer, as published: ``"278-98-13"``."""
        return "-".join(
            str(layer.in_features if isinstance(layer, nn.Linear) else layer.out_channels)
            for layer in self.module.modules()
            if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
        )

    @torch.no_grad()
    def with_values(self, values: Mapping[str, Tensor]) -> Pruned:
        """Return the same network with other numbers in some of its parameters: rounded, quantised, trained on.

        Args:
            values: for names of parameters or buffers of ``module`` tensors of the shapes they have there.

        Raises:
            ValueError: a name that ``module`` does not have, or another shape.
        """
        module = copy.deepcopy(self.module)
        state = module.state_dict()
        for name, value in values.items():
            expected = tuple(state[name].shape) if name in state else "none of that name"
            if expected != tuple(value.shape):
                raise ValueError(
                    f"with_values: {name!r}: expected {expected}, got {tuple(value.shape)}"
                )
            state[name].copy_(value)
        return _assembled(self, module)

    def __str__(self) -> str:
        rows = [("weight", "shape", "left", "kept", "of", "sparsity")]
        rows += [
            (r.name, _by(r.shape), _by(r.new_shape), str(r.kept), str(r.total), f"{r.sparsity:.1%}")
            for r in self.report
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0])]
                + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
            )
            for row in rows
        ]
        sizes = f"{self.ratio:.1f} times fewer weights that are not zero"
        dense = f"{self.dense_ratio:.1f} times fewer weights in the smaller network, {self.architecture}"
        return "\n".join([*lines, sizes, dense, *self.notes])


def prune(
    posterior: Posterior,
    threshold: Threshold = 3.0,
    group_threshold: Threshold | None = None,
    groups_by: GroupMeasure = "scale",
) -> Pruned:
    """Return the network at its posterior means without the weights and the groups that the posterior does not need.

    What is left is made physically smaller: see :func:`~pyro_bnn.compression.pruning.shrinking.shrink`. A network that cannot
    be traced stays at its size, with zeros in it.

    Args:
        posterior: of a ``BayesianNet``, from a guide or from a sampler.
        threshold: weights with log alpha at or above it are zero; that is, with a signal-to-noise ratio of at most
            ``exp(-threshold / 2)``. One number, or a mapping from patterns of weight names to numbers.
        group_threshold: groups whose measure (log alpha, or the negative log of the mode) is at or above it are zero;
            likewise; as ``threshold`` if not given.
        groups_by: what the measure of a group is taken of: see :func:`group_measures`.

    Raises:
        TypeError: no posterior of a ``BayesianNet``; a hand-written program has no network.
        ValueError: a threshold that is no number, or patterns that leave a weight without one; a posterior that gives
            weights no variance, as a point estimate does: there is nothing to prune by; a mean that is not finite.
        EmptyNetworkError: so much is pruned that the outputs no longer depend on the inputs.
    """
    moments = _moments(posterior)
    masks, groups = keep_masks(posterior, threshold, group_threshold, groups_by)
    means = {name: torch.where(masks[name], mean, 0.0) for name, (mean, _) in moments.items()}
    for name, mean in means.items():
        if not bool(mean.isfinite().all()):
            raise ValueError(
                f"prune: {name!r} has a posterior mean that is not finite; its scales have run away"
            )
    full = posterior.model.network_with(means).eval()
    if not any(bool(mask.any()) for mask in masks.values()):
        raise EmptyNetworkError(
            f"prune: with {threshold=} and {group_threshold=} no weight is left; raise them"
        )
    try:
        small = shrink(full)
    except UnsupportedLayerError as error:
        kept = {
            name: tuple(map(torch.arange, value.shape)) for name, value in full.state_dict().items()
        }
        small = Shrunk(full, kept, (f"the network has zeros in it but keeps its size: {error}",))
    variances = {name: variance[_grid(small.kept[name])] for name, (_, variance) in moments.items()}
    return _assembled(
        Pruned(small.module, masks, groups, [], full, small.kept, variances, small.notes),
        small.module,
    )


def keep_masks(
    posterior: Posterior,
    threshold: Threshold = 3.0,
    group_threshold: Threshold | None = None,
    groups_by: GroupMeasure = "scale",
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return which weights, and which groups, a posterior keeps, ``True`` for those; nothing may be left.

    This is :func:`prune` without the network: the weights of units that are dead for other reasons are still there.

    Args:
        posterior: as for :func:`prune`.
        threshold: as for :func:`prune`.
        group_threshold: as for :func:`prune`.
        groups_by: as for :func:`prune`.

    Raises:
        TypeError: as :func:`prune`.
        ValueError: as :func:`prune`.
    """
    moments, measures = _moments(posterior), group_measures(posterior, groups_by)
    limits = _limits(threshold, [name for name in moments if name not in measures], moments)
    group_limits = _limits(
        threshold if group_threshold is None else group_threshold, list(measures), moments
    )
    groups = {name: measure < group_limits[name] for name, measure in measures.items()}
    # a group prior decides by groups: noise within a group that is kept is the group's own
    masks = {
        name: groups[name].expand_as(mean)
        if name in groups
        else log_alpha(mean, variance) < limits[name]
        for name, (mean, variance) in moments.items()
    }
    return masks, groups


def log_alpha(mean: Tensor, variance: Tensor) -> Tensor:
    r"""Return :math:`\log(\mathrm{Var}\,w / (\mathbb{E} w)^2)`, infinite where the mean is zero."""
    return variance.log() - mean.square().log()


@torch.no_grad()
def group_measures(posterior: Posterior, by: GroupMeasure = "scale") -> dict[str, Tensor]:
    r"""Return by what the groups of each weight under a group prior are pruned; it broadcasts to the weight.

    By the ``"scale"`` z, as published: :math:`\log\alpha` of a Gaussian z, :math:`v - m` of a log-normal one. By the
    ``"weights"``: :math:`\log(\sum_j \mathrm{Var}\,w_{ij} / \sum_j (\mathbb{E} w_{ij})^2)`, the noise of the group over
    its signal. These agree where scales of dead groups vanish; under a horseshoe they may also go back to their
    prior, with weights that are pure noise, and only the second measure tells.
    """
    if not hasattr(posterior.guide, "distributions"):
        return {}
    sites = {
        name: q.base_dist
        for name, q in posterior.guide.distributions().items()
        if hasattr(q, "base_dist")
    }
    shapes = {
        name.split(".scale")[0]: q.batch_shape for name, q in sites.items() if ".scale" in name
    }
    stems = [stem for stem in posterior.model.names if stem in shapes]
    if by == "scale":
        return {stem: _measure(stem, sites) for stem in stems}
    if by != "weights":
        raise ValueError(f"group_measures: expected 'scale' or 'weights', got {by!r}")
    found = posterior.moments()
    return {stem: _noise_over_signal(*found[stem], shapes[stem]) for stem in stems}


def _noise_over_signal(mean: Tensor, variance: Tensor, groups: torch.Size) -> Tensor:
    """Return the log of the summed variances over the summed squared means of every group."""
    axes = [axis for axis, size in enumerate(groups) if size == 1]
    if not axes:  # every weight is a group of its own
        return log_alpha(mean, variance)
    ratio = variance.sum(axes, keepdim=True) / mean.square().sum(axes, keepdim=True)
    return ratio.nan_to_num(nan=math.inf, posinf=math.inf).log()


def _measure(stem: str, sites: Mapping[str, Any]) -> Tensor:
    if f"{stem}.scale.gamma" in sites:  # log z = (log a + log b) / 2
        a, b = sites[f"{stem}.scale.gamma"], sites[f"{stem}.scale.inverse_gamma"]
        return (a.scale.square() + b.scale.square()) / 4 - (a.loc + b.loc) / 2
    z = sites[f"{stem}.scale"]
    if isinstance(z, torch.distributions.LogNormal):
        return z.scale.square() - z.loc
    return log_alpha(z.mean, z.variance)


def _moments(posterior: Posterior) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and variance of every uncertain weight, once it is known that there is something to prune by."""
    if not isinstance(posterior, Posterior):
        raise TypeError(
            f"prune: expected a Posterior, got {type(posterior).__name__}; fit returns it as result.posterior"
        )
    if not isinstance(posterior.model, BayesianNet):
        raise TypeError(
            "prune: a hand-written program has no network to prune; write it as a BayesianNet"
        )
    found = posterior.moments()
    moments = {name: found[name] for name in posterior.model.names}
    if all(not bool(variance.any()) for _, variance in moments.values()):
        raise ValueError(
            "prune: the posterior has no variance, so no weight is known to be noise; "
            "fit MeanField, say, not a point estimate"
        )
    return moments


def _limits(threshold: Threshold, names: list[str], there: Collection[str]) -> dict[str, float]:
    """Return the threshold of every weight; of several patterns that fit its name the first counts."""
    given = threshold if isinstance(threshold, Mapping) else {"*": threshold}
    if any(not isinstance(value, Real) or math.isnan(value) for value in given.values()):
        raise ValueError(f"prune: expected numbers as thresholds, got {threshold}")
    for key in given:
        if not fnmatch.filter(there, key):
            raise ValueError(
                f"prune: the threshold for {key!r} fits no weight; there are {', '.join(there)}"
            )
    fits = {
        name: [value for key, value in given.items() if fnmatch.fnmatchcase(name, key)]
        for name in names
    }
    without = [name for name, values in fits.items() if not values]
    if without:
        raise ValueError(
            f"prune: no threshold fits {', '.join(without)}; there are {', '.join(map(repr, given))}"
        )
    return {name: float(values[0]) for name, values in fits.items()}


def _assembled(pruned: Pruned, module: nn.Module) -> Pruned:
    """Return the record of a smaller network: masks and report are read off it, and it is written out at full size."""
    state, masks, report = module.state_dict(), {}, []
    for name, mask in pruned.masks.items():
        masks[name] = torch.zeros_like(mask)
        masks[name][_grid(pruned.kept[name])] = state[name] != 0
        kept = int(masks[name].sum())
        report.append(
            LayerReport(name, tuple(mask.shape), kept, mask.numel(), tuple(state[name].shape))
        )
    masked = _at_full_size(pruned.masked, module, pruned.kept)
    return replace(pruned, module=module, masks=masks, report=report, masked=masked)


@torch.no_grad()
def _at_full_size(
    net: nn.Module, module: nn.Module, kept: Mapping[str, tuple[Tensor, ...]]
) -> nn.Module:
    """Return a copy of the original network with the numbers of the smaller one, and zeros in all other places."""
    full = copy.deepcopy(net)
    own = full.state_dict(keep_vars=True)
    for name, value in module.state_dict().items():
        path, _, attribute = name.rpartition(".")
        if name not in own and attribute == "bias":  # one that folding has made
            layer: Any = full.get_submodule(path)
            units = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            layer.bias = nn.Parameter(value.new_zeros(units))
            own[name] = layer.bias
        if name in own:
            if not attribute.startswith("running_"):
                own[name].data.zero_()
            own[name].data[_grid(kept[name])] = value
    return full


def _grid(kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return indices of the block that is left of a tensor."""
    return torch.meshgrid(*kept, indexing="ij") if kept else ()


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
