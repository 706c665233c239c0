r"""Mean and variance of the weights of a scale mixture, from the distributions of its sites.

With :math:`w = \tilde w \lambda`, :math:`\lambda = z s` and independent factors,

.. math::

    \mathbb{E} w = \mu\,\mathbb{E}\lambda, \qquad
    \mathrm{Var}\,w = \sigma^2\,\mathbb{E}\lambda^2 + \mu^2\,\mathrm{Var}\,\lambda .

Source: Louizos, Ullrich & Welling (2017), section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent

from pyro_bnn.distributions import normal_quadrature
from pyro_bnn.priors.scale_mixtures import regularised

__all__ = ["weight_moments"]


def weight_moments(
    sites: Mapping[str, Any], slabs: Mapping[str, Tensor] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return (mean, variance) of every weight.

    Args:
        sites: the distribution of each site; ``NAME.unit`` and the scales of ``NAME`` make the weight ``NAME``.
        slabs: the slab width of each regularised horseshoe weight.
    """
    moments = {}
    for name, q in sites.items():
        stem, _, part = name.rpartition(".")
        if part == "unit":
            scales = {key: _base(d) for key, d in sites.items() if _is_scale_of(key, stem)}
            first, second = _scale_moments(scales, (slabs or {}).get(stem))
            base = _base(q)
            moments[stem] = (
                base.mean * first,
                base.variance * second
                + base.mean.square() * (second - first.square()).clamp_min(0),
            )
        elif not any(
            name.startswith(f"{other.removesuffix('.unit')}.")
            for other in sites
            if other.endswith(".unit")
        ):
            moments[name] = (_base(q).mean, _base(q).variance)
    return moments


def _is_scale_of(name: str, stem: str) -> bool:
    return any(
        name == scale or name.startswith(f"{scale}.")
        for scale in (f"{stem}.scale", f"{stem}.global_scale")
    )


def _base(distribution: Any) -> Any:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def _scale_moments(scales: Mapping[str, Any], slab: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return E[lambda] and E[lambda^2] of the product of the scales; sites of a decomposed half-Cauchy enter by their
    square roots."""
    powers = {key: 0.5 if key.endswith("gamma") else 1.0 for key in scales}
    if slab is None:
        first, second = (
            [_power_moment(d, k * powers[key]) for key, d in scales.items()] for k in (1, 2)
        )
        return math.prod(first[1:], start=first[0]), math.prod(second[1:], start=second[0])
    # log lambda = sum of powers times logs: normal again; the slab's bound is integrated numerically
    loc = sum(powers[key] * d.loc for key, d in scales.items())
    stddev = sum((powers[key] * d.scale).square() for key, d in scales.items()).sqrt()
    node, weight = normal_quadrature(loc)
    bounded = regularised((loc[..., None] + stddev[..., None] * node).exp(), slab)
    return (bounded * weight).sum(-1), (bounded.square() * weight).sum(-1)


def _power_moment(distribution: Any, power: float) -> Tensor:
    """Return E[z^power]: in closed form for log-normals, powers one and two for others."""
    if isinstance(distribution, torch.distributions.LogNormal):
        return (power * distribution.loc + (power * distribution.scale).square() / 2).exp()
    return distribution.mean if power == 1 else distribution.variance + distribution.mean.square()
