r"""Mean and variance of the weights of a scale mixture, from the distributions of its sites.

With :math:`w = \tilde w \lambda`, :math:`\lambda = z s` and independent factors,

.. math::

    \mathbb{E} w = \mu\,\mathbb{E}\lambda, \qquad
    \mathrm{Var}\,w = \sigma^2\,\mathbb{E}\lambda^2 + \mu^2\,\mathrm{Var}\,\lambda .

Source: Louizos, Ullrich & Welling (2017), section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LogNormal

from pyro_bnn.distributions import normal_quadrature
from pyro_bnn.priors.scale_mixtures import regularized
from pyro_bnn.variational.guide import Moments

__all__ = ["weight_moments"]

UNIT = ".unit"
SCALES = (".scale", ".global_scale")


class _RawMoments(NamedTuple):
    r"""First and second moment of a scale, :math:`\mathbb{E}\lambda, \mathbb{E}\lambda^2`."""

    first: Tensor
    second: Tensor


def weight_moments(
    sites: Mapping[str, Distribution], slabs: Mapping[str, Tensor] | None = None
) -> dict[str, Moments]:
    """Return mean and variance of every weight.

    Args:
        sites: the distribution of each site. ``NAME.unit`` and the scales of ``NAME`` make the
            weight ``NAME``; every other site is a weight itself.
        slabs: the slab width of each regularized horseshoe weight.
    """
    slabs = slabs or {}
    mixtures = [name.removesuffix(UNIT) for name in sites if name.endswith(UNIT)]
    moments = {}
    for name, distribution in sites.items():
        weight = name.removesuffix(UNIT)
        base = _base(distribution)
        if name.endswith(UNIT):
            scales = _scales_of(weight, sites)
            scale_moments = _scale_moments(scales, slabs.get(weight))
            moments[weight] = _mixture_moments(base, scale_moments)
        elif not _is_part_of(name, mixtures):
            moments[name] = Moments(base.mean, base.variance)
    return moments


def _is_part_of(site: str, weights: list[str]) -> bool:
    return any(site.startswith(f"{weight}.") for weight in weights)


def _scales_of(weight: str, sites: Mapping[str, Distribution]) -> dict[str, Distribution]:
    """Return the scale sites of a weight: ``NAME.scale``, ``NAME.scale.gamma`` and so on."""
    scales = {}
    for name, distribution in sites.items():
        for suffix in SCALES:
            scale = f"{weight}{suffix}"
            if name == scale or name.startswith(f"{scale}."):
                scales[name] = _base(distribution)
    return scales


def _base(distribution: Distribution) -> Distribution:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def _mixture_moments(unit: Distribution, scale: _RawMoments) -> Moments:
    scale_variance = (scale.second - scale.first.square()).clamp_min(0)
    return Moments(
        unit.mean * scale.first,
        unit.variance * scale.second + unit.mean.square() * scale_variance,
    )


def _scale_moments(scales: Mapping[str, Distribution], slab: Tensor | None) -> _RawMoments:
    """Return the moments of the product of the scales.

    The two sites of a decomposed half-Cauchy scale enter by their square roots.
    """
    powers = dict.fromkeys(scales, 1.0)
    for name in scales:
        if name.endswith("gamma"):
            powers[name] = 0.5
    if slab is not None:
        return _bounded_scale_moments(scales, powers, slab)
    firsts, seconds = [], []
    for name, distribution in scales.items():
        firsts.append(_power_moment(distribution, powers[name]))
        seconds.append(_power_moment(distribution, 2 * powers[name]))
    return _RawMoments(reduce(torch.mul, firsts), reduce(torch.mul, seconds))


def _bounded_scale_moments(
    scales: Mapping[str, Distribution], powers: Mapping[str, float], slab: Tensor
) -> _RawMoments:
    """Return the moments of a product of log-normal scales that a slab bounds."""
    # log lambda = sum of powers times logs is normal; the bound is integrated numerically
    locs, variances = [], []
    for name, distribution in scales.items():
        if not isinstance(distribution, LogNormal):
            raise TypeError(
                f"moments: expected a log-normal distribution of the scale {name!r}, "
                f"which a slab bounds; got {distribution}"
            )
        locs.append(powers[name] * distribution.loc)
        variances.append((powers[name] * distribution.scale).square())
    loc, stddev = reduce(torch.add, locs), reduce(torch.add, variances).sqrt()
    node, weight = normal_quadrature(loc)
    bounded = regularized((loc[..., None] + stddev[..., None] * node).exp(), slab)
    return _RawMoments((bounded * weight).sum(-1), (bounded.square() * weight).sum(-1))


def _power_moment(distribution: Distribution, power: float) -> Tensor:
    """Return E[z^power]; powers other than one and two are known for log-normals only."""
    if isinstance(distribution, LogNormal):
        return (power * distribution.loc + (power * distribution.scale).square() / 2).exp()
    if power == 1:
        return distribution.mean
    return distribution.variance + distribution.mean.square()
