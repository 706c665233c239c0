r"""Pruning: set the weights and groups that are mostly noise to zero, and shrink the network.

A weight can be zero if its noise exceeds its mean by so much that
:math:`\log\alpha = \log(\mathrm{Var}\,w / (\mathbb{E} w)^2) \ge t`. For the default :math:`t = 3`,
its signal-to-noise ratio is at most :math:`e^{-t/2} = 0.22`, and Gaussian noise of that
:math:`\alpha` equals binary dropout of rate 0.95. A group is pruned by the measure of its scale or
of its weights: see :mod:`~pyro_bnn.compression.pruning.noise_measures`. The group of a dense layer
is an input unit, so the first dense layer prunes inputs; that of a convolution is an output
channel.

Source: Molchanov, Ashukha & Vetrov (2017), section 4.3; Louizos, Ullrich & Welling (2017),
section 4.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from numbers import Real
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior
from pyro_bnn.variational.guide import Moments

from .channels import EmptyNetworkError
from .graph import UnsupportedLayerError
from .name_patterns import first_matches, unmatched
from .noise_measures import GroupMeasure, group_measures, log_alpha
from .pruned_network import Pruned, assemble, block_of
from .shrinking import Shrunk, all_indices, shrink

__all__ = ["KeepMasks", "Threshold", "keep_masks", "prunable_moments", "prune"]

Threshold: TypeAlias = float | Mapping[str, float]


class KeepMasks(NamedTuple):
    """The weights and the groups that a posterior keeps, by the name of the weight.

    ``masks`` has a tensor for each uncertain weight, ``True`` for the elements to keep. ``groups``
    has a tensor for each weight under a group prior, ``True`` for the groups to keep, which
    broadcasts to the weight.
    """

    masks: dict[str, Tensor]
    groups: dict[str, Tensor]


def prune(
    posterior: Posterior,
    threshold: Threshold = 3.0,
    group_threshold: Threshold | None = None,
    groups_by: GroupMeasure = "scale",
) -> Pruned:
    """Return the network at its posterior means, without the weights and groups that are noise.

    The network becomes physically smaller: see :func:`~pyro_bnn.compression.shrink`. A network that
    cannot be traced keeps its size, with zeros in it.

    Args:
        posterior: The posterior of a ``BayesianNet``, from a guide or from a sampler.
        threshold: Weights with a log alpha of at least this are set to zero; equivalently, those
            with a signal-to-noise ratio of at most ``exp(-threshold / 2)``. One number, or a
            mapping from patterns of weight names to numbers.
        group_threshold: Groups with a measure of at least this are set to zero; by default
            ``threshold``.
        groups_by: The measure of a group: see :func:`~pyro_bnn.compression.group_measures`.

    Returns:
        The smaller network, with its masks and a report.

    Raises:
        TypeError: If the posterior is not that of a ``BayesianNet``: a hand-written program has no
            network.
        ValueError: If a threshold is not a number, or a weight has none; if all weights have a
            variance of zero, as under a point estimate; if a mean is not finite.
        EmptyNetworkError: If so much is pruned that the outputs no longer depend on the inputs.
    """
    moments = prunable_moments(posterior, "prune")
    measures = group_measures(posterior, groups_by)
    if group_threshold is None:
        group_threshold = threshold
    masks, groups = _masks(moments, measures, threshold, group_threshold, caller="prune")
    full = _network_at_means(posterior.model, moments, masks)
    if not any(bool(mask.any()) for mask in masks.values()):
        raise EmptyNetworkError(
            f"prune: with {threshold=} and {group_threshold=} no weight remains; raise them"
        )
    try:
        shrunk = shrink(full)
    except UnsupportedLayerError as error:
        note = f"the network has zeros in it but keeps its size: {error}"
        shrunk = Shrunk(full, all_indices(full), (note,))
    variances = {}
    for name, (_, variance) in moments.items():
        variances[name] = variance[block_of(shrunk.kept[name])]
    return assemble(shrunk, full, masks, groups, variances)


def keep_masks(
    posterior: Posterior,
    threshold: Threshold = 3.0,
    group_threshold: Threshold | None = None,
    groups_by: GroupMeasure = "scale",
) -> KeepMasks:
    """Return the weights, and the groups, that a posterior keeps; this may be none at all.

    This is :func:`prune` without shrinking: the masks keep the weights of units that have no
    influence because other weights are pruned.

    Args:
        posterior: The posterior of a ``BayesianNet``, from a guide or from a sampler.
        threshold: The threshold of weights, as for :func:`prune`.
        group_threshold: The threshold of groups, as for :func:`prune`.
        groups_by: The measure of a group, as for :func:`prune`.

    Raises:
        TypeError: Under the conditions of :func:`prune`.
        ValueError: Under the conditions of :func:`prune`, other than a mean that is not finite.
    """
    moments = prunable_moments(posterior, "keep_masks")
    measures = group_measures(posterior, groups_by)
    if group_threshold is None:
        group_threshold = threshold
    return _masks(moments, measures, threshold, group_threshold, caller="keep_masks")


def prunable_moments(posterior: Posterior, caller: str) -> dict[str, Moments]:
    """Return mean and variance of every uncertain weight.

    Args:
        posterior: The posterior of a ``BayesianNet``.
        caller: The function that an error message begins with.

    Raises:
        TypeError: If the posterior is not that of a ``BayesianNet``.
        ValueError: If all variances are zero.
    """
    if not isinstance(posterior, Posterior):
        raise TypeError(
            f"{caller}: expected a Posterior, got {type(posterior).__name__}; fit returns it as "
            "result.posterior"
        )
    if not isinstance(posterior.model, BayesianNet):
        raise TypeError(
            f"{caller}: expected the posterior of a BayesianNet, got one of a hand-written "
            "program, which has no network to prune; write the model as a BayesianNet"
        )
    all_moments = posterior.moments()
    moments = {}
    for name in posterior.model.names:
        moments[name] = Moments(*all_moments[name])
    if not any(bool(variance.any()) for _, variance in moments.values()):
        raise ValueError(
            f"{caller}: the posterior has no variance, so no weight is known to be noise; fit "
            "MeanField, say, not a point estimate"
        )
    return moments


def _masks(
    moments: Mapping[str, Moments],
    measures: Mapping[str, Tensor],
    threshold: Threshold,
    group_threshold: Threshold,
    caller: str,
) -> KeepMasks:
    """Return the weights and groups whose measures lie below their thresholds."""
    ungrouped = [name for name in moments if name not in measures]
    limits = _limits(threshold, ungrouped, moments, caller)
    limits |= _limits(group_threshold, measures, moments, caller)
    masks, groups = {}, {}
    for name, (mean, variance) in moments.items():
        if name in measures:
            # a group prior decides by groups, whatever the noise of single weights within one
            groups[name] = measures[name] < limits[name]
            masks[name] = groups[name].expand_as(mean)
        else:
            masks[name] = log_alpha(mean, variance) < limits[name]
    return KeepMasks(masks, groups)


def _limits(
    threshold: Threshold, names: Collection[str], weights: Collection[str], caller: str
) -> dict[str, float]:
    """Return the threshold of each name.

    Args:
        threshold: One number, or a mapping from patterns to numbers.
        names: The weights that need a threshold.
        weights: All weights; every pattern has to match one of them.
        caller: The function that an error message begins with.
    """
    patterns = threshold if isinstance(threshold, Mapping) else {"*": threshold}
    for value in patterns.values():
        if not isinstance(value, Real) or math.isnan(value):
            raise ValueError(f"{caller}: expected numbers as thresholds, got {threshold}")
    for pattern in unmatched(patterns, weights):
        raise ValueError(
            f"{caller}: the threshold for {pattern!r} matches no weight; the weights are "
            f"{', '.join(weights)}"
        )
    limits = first_matches(patterns, names)
    missing = [name for name in names if name not in limits]
    if missing:
        raise ValueError(
            f"{caller}: no threshold matches {', '.join(missing)}; the thresholds are for "
            f"{', '.join(map(repr, patterns))}"
        )
    return limits


def _network_at_means(
    model: BayesianNet, moments: Mapping[str, Moments], masks: Mapping[str, Tensor]
) -> nn.Module:
    """Return the network at full size, at the posterior means, with zeros outside of the masks."""
    means = {}
    for name, (mean, _) in moments.items():
        means[name] = torch.where(masks[name], mean, 0.0)
        if not bool(means[name].isfinite().all()):
            raise ValueError(
                f"prune: {name!r} has a posterior mean that is not finite, because its scales have "
                "diverged; fit with a smaller learning rate"
            )
    return model.network_with(means).eval()
