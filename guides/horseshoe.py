"""GroupHorseshoe: the log-normal posterior of Bayesian compression under a group horseshoe prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_bnn.network import BayesianNet

from .families import Factorized, family_for, latent_sites, slab_widths
from .group import capped_units

__all__ = ["GroupHorseshoe"]


class GroupHorseshoe(Factorized):
    r"""The posterior of Bayesian compression under the group horseshoe prior (BC-GHS).

    Each half-Cauchy variable is a product of two, :math:`s = \sqrt{s_a s_b}` and :math:`z_i = \sqrt{a_i b_i}` with

    .. math::

        s_a \sim \mathcal{G}(\tfrac12, \tau^2), \quad s_b \sim \mathcal{IG}(\tfrac12, 1), \quad
        a_i \sim \mathcal{G}(\tfrac12, 1), \quad b_i \sim \mathcal{IG}(\tfrac12, 1)

    (the second argument of :math:`\mathcal{G}` is a scale). Each of the four has a log-normal posterior and a closed KL
    divergence, and :math:`\lambda_i = z_i s` is log-normal too,

    .. math::

        \log \lambda_i \sim \mathcal{N}\big(
            \tfrac12(m_{s_a} + m_{s_b} + m_{a_i} + m_{b_i}),\ \tfrac14(v_{s_a} + v_{s_b} + v_{a_i} + v_{b_i})\big).

    A group is pruned by its mode :math:`e^{m - v}`: where :math:`v_i - m_i` is large, the scale is nearly zero.

    Args:
        model: a ``BayesianNet`` under ``priors.Horseshoe(tau, decomposed=True)``.
        init_log_variance: where the logarithms of all variances start.
        max_scale: keep :math:`\sigma` of each weight below this, as in ``GroupNormalJeffreys``.

    Raises:
        ValueError: the model has no decomposed scales; ``max_scale`` names another weight, or a cap that is not above
            the initial :math:`\sigma`.

    Source: Louizos, Ullrich & Welling (2017), section 4.2 and appendix, https://arxiv.org/abs/1705.08665.
    """

    def __init__(
        self,
        model: BayesianNet,
        init_log_variance: float = -9.0,
        max_scale: dict[str, float] | None = None,
    ) -> None:
        sites = latent_sites(model)
        if not any(name.endswith(".scale.gamma") for name in sites):
            raise ValueError(
                f"GroupHorseshoe: the model has no decomposed scales, only {', '.join(sites)}; "
                "use priors.Horseshoe(tau, decomposed=True)"
            )
        scale = math.exp(init_log_variance / 2)
        stems = [
            name.removesuffix(".scale.gamma") for name in sites if name.endswith(".scale.gamma")
        ]
        capped = capped_units("GroupHorseshoe", sites, stems, scale, max_scale or {})
        posteriors = {}
        for name, site in sites.items():  # the units are real, the factors of the scales positive
            posteriors[name] = capped.get(name) or family_for(name, site.support)(
                site.initial, scale
            )
        super().__init__(posteriors, slab_widths(model))

    @torch.no_grad()
    def negative_log_mode(self) -> dict[str, Tensor]:
        r"""Return :math:`v - m` of the scale :math:`z` of every group: large where the group can go."""
        q = {
            name: distribution.base_dist
            for name, distribution in self.distributions().items()
            if name.endswith("gamma")
        }
        modes = {}
        for stem in (
            name.removesuffix(".scale.gamma") for name in q if name.endswith(".scale.gamma")
        ):
            a, b = q[f"{stem}.scale.gamma"], q[f"{stem}.scale.inverse_gamma"]
            # log z = (log a + log b) / 2
            modes[stem] = (a.scale.square() + b.scale.square()) / 4 - (a.loc + b.loc) / 2
        return modes
