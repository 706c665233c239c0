"""GroupHorseshoe: the log-normal posterior of Bayesian compression under a group horseshoe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import LogNormal

from pyro_bnn.distributions.independent import base_distribution
from pyro_bnn.network import BayesianNet

from .factorized import Factorized
from .families import default_family
from .group_scales import capped_units
from .latent import latent_sites, slab_widths

__all__ = ["GroupHorseshoe"]


class GroupHorseshoe(Factorized):
    r"""The posterior of Bayesian compression under the group horseshoe prior (BC-GHS).

    Each half-Cauchy variable is the square root of a product of two, :math:`s = \sqrt{s_a s_b}` and
    :math:`z_i = \sqrt{a_i b_i}` with

    .. math::

        s_a \sim \mathcal{G}(\tfrac12, \tau^2), \quad s_b \sim \mathcal{IG}(\tfrac12, 1), \quad
        a_i \sim \mathcal{G}(\tfrac12, 1), \quad b_i \sim \mathcal{IG}(\tfrac12, 1)

    (the second argument of :math:`\mathcal{G}` is a scale). Each of the four has a log-normal
    posterior and a closed KL divergence. Then :math:`\lambda_i = z_i s` is log-normal too,

    .. math::

        \log \lambda_i \sim \mathcal{N}\big(
            \tfrac12(m_{s_a} + m_{s_b} + m_{a_i} + m_{b_i}),\
            \tfrac14(v_{s_a} + v_{s_b} + v_{a_i} + v_{b_i})\big).

    A group is pruned by the mode :math:`e^{m - v}` of its scale: where :math:`v_i - m_i` is large,
    the scale is nearly zero.

    Args:
        model: a ``BayesianNet`` under ``priors.Horseshoe(tau, decomposed=True)``.
        init_log_variance: initial value of the logarithms of all variances.
        max_scale: upper bounds of :math:`\sigma`, by weight, as in ``GroupNormalJeffreys``.

    Raises:
        ValueError: if the model has no decomposed scales, if ``max_scale`` names another weight, or
            if a bound is not above the initial :math:`\sigma`.

    Source: Louizos, Ullrich & Welling (2017), section 4.2 and appendix,
    https://arxiv.org/abs/1705.08665.
    """

    def __init__(
        self,
        model: BayesianNet,
        init_log_variance: float = -9.0,
        max_scale: Mapping[str, float] | None = None,
    ) -> None:
        sites = latent_sites("GroupHorseshoe", model)
        weights = []
        for name in sites:
            if name.endswith(".scale.gamma"):
                weights.append(name.removesuffix(".scale.gamma"))
        if not weights:
            raise ValueError(
                f"GroupHorseshoe: the model has no decomposed scales, only {', '.join(sites)}; "
                "use priors.Horseshoe(tau, decomposed=True)"
            )
        init_scale = math.exp(init_log_variance / 2)
        families: dict[str, nn.Module] = {}
        for name, site in sites.items():  # the units are real, the factors of the scales positive
            families[name] = default_family("GroupHorseshoe", name, site, init_scale)
        families |= capped_units("GroupHorseshoe", sites, weights, init_scale, max_scale)
        super().__init__(families, slab_widths(model))
        self.weights = weights

    @torch.no_grad()
    def negative_log_mode(self) -> dict[str, Tensor]:
        r"""Return :math:`v_i - m_i` of the scale :math:`z_i` of every group.

        It is large if the group can be removed.
        """
        q = self.distributions()
        modes = {}
        for weight in self.weights:
            a = cast(LogNormal, base_distribution(q[f"{weight}.scale.gamma"]))
            b = cast(LogNormal, base_distribution(q[f"{weight}.scale.inverse_gamma"]))
            # log z = (log a + log b) / 2
            mean = (a.loc + b.loc) / 2
            variance = (a.scale.square() + b.scale.square()) / 4
            modes[weight] = variance - mean
        return modes
