r"""Measures of noise over signal, by which weights and groups of weights are pruned.

A weight is measured by :math:`\log\alpha = \log(\mathrm{Var}\,w / (\mathbb{E} w)^2)`. Its
signal-to-noise ratio is :math:`|\mathbb{E} w| / \sqrt{\mathrm{Var}\,w} = e^{-\log\alpha / 2}`.
A group is measured by its scale z or by its weights: see :func:`group_measures`.

Source: Molchanov, Ashukha & Vetrov (2017), section 4.3; Louizos, Ullrich & Welling (2017),
section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LogNormal

from pyro_bnn import distributions
from pyro_bnn.posterior import Posterior
from pyro_bnn.variational.guide import FactorizedGuide

__all__ = ["GroupMeasure", "group_measures", "log_alpha"]

GroupMeasure: TypeAlias = Literal["scale", "weights"]


def log_alpha(mean: Tensor, variance: Tensor) -> Tensor:
    r"""Return :math:`\log(\mathrm{Var}\,w / (\mathbb{E} w)^2)`, infinite where the mean is zero.

    Args:
        mean: The means of the weights, any shape.
        variance: Their variances, of the same shape.
    """
    return distributions.log_alpha(mean, variance.log())


@torch.no_grad()
def group_measures(posterior: Posterior, by: GroupMeasure = "scale") -> dict[str, Tensor]:
    r"""Return the measure of each group of each weight under a group prior.

    By the ``"scale"`` z, as published: :math:`\log\alpha` of a Gaussian z, and the negative log of
    the mode of a log-normal z, :math:`v - m` for :math:`\log z \sim \mathcal{N}(m, v)`.

    By the ``"weights"``: the noise of the group over its signal,
    :math:`\log(\sum_j \mathrm{Var}\,w_{ij} / \sum_j (\mathbb{E} w_{ij})^2)`.

    The two agree where the scales of dead groups vanish. Under a horseshoe, these scales may also
    return to their prior, with weights that are pure noise; only the second measure shows this.

    Args:
        posterior: The posterior of a ``BayesianNet``.
        by: The measure, ``"scale"`` or ``"weights"``.

    Returns:
        A tensor for each weight under a group prior, which broadcasts to the weight; none for a
        posterior of draws, in which the scales are unknown.

    Raises:
        ValueError: If ``by`` is neither of the two.
    """
    if by not in ("scale", "weights"):
        raise ValueError(f"group_measures: expected 'scale' or 'weights', got {by!r}")
    guide = posterior.guide
    if not isinstance(guide, FactorizedGuide):
        return {}
    sites = _elementwise_distributions(guide)
    shapes = _group_shapes(sites)
    names = [name for name in posterior.model.names if name in shapes]
    if by == "scale":
        return {name: _scale_measure(name, sites) for name in names}
    moments = posterior.moments()
    measures = {}
    for name in names:
        mean, variance = moments[name]
        measures[name] = _noise_over_signal(mean, variance, shapes[name])
    return measures


def _elementwise_distributions(guide: FactorizedGuide) -> dict[str, Distribution]:
    """Return the distribution of every element of each site."""
    elementwise = {}
    for name, distribution in guide.distributions().items():
        if isinstance(distribution, Independent):
            elementwise[name] = distribution.base_dist
    return elementwise


def _group_shapes(sites: Mapping[str, Distribution]) -> dict[str, torch.Size]:
    """Return the shape of the scales of each weight that has some."""
    shapes = {}
    for name, distribution in sites.items():
        weight, separator, _ = name.partition(".scale")
        if separator:
            shapes[weight] = distribution.batch_shape
    return shapes


def _scale_measure(name: str, sites: Mapping[str, Distribution]) -> Tensor:
    """Return the measure of the scales of a weight."""
    if f"{name}.scale.gamma" in sites:
        # z^2 = a b, so log z = (log a + log b) / 2
        a = cast(LogNormal, sites[f"{name}.scale.gamma"])
        b = cast(LogNormal, sites[f"{name}.scale.inverse_gamma"])
        return (a.scale.square() + b.scale.square()) / 4 - (a.loc + b.loc) / 2
    z = sites[f"{name}.scale"]
    if isinstance(z, LogNormal):
        return z.scale.square() - z.loc
    return log_alpha(z.mean, z.variance)


def _noise_over_signal(mean: Tensor, variance: Tensor, groups: torch.Size) -> Tensor:
    """Return the log of the summed variances over the summed squared means of every group."""
    axes = [axis for axis, size in enumerate(groups) if size == 1]
    if not axes:
        return log_alpha(mean, variance)  # every weight is a group of its own
    ratio = variance.sum(axes, keepdim=True) / mean.square().sum(axes, keepdim=True)
    return ratio.nan_to_num(nan=math.inf, posinf=math.inf).log()
