"""GroupNormalJeffreys: a dropout rate for every unit, so that whole units are dropped."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyro_bnn.network import BayesianNet

from .factorized import Factorized
from .families import default_family
from .group_scales import capped_units, group_log_alpha, weights_with_real_scales
from .latent import latent_sites, slab_widths

__all__ = ["GroupNormalJeffreys"]


class GroupNormalJeffreys(Factorized):
    r"""The posterior of Bayesian compression under the group normal-Jeffreys prior (BC-GNJ).

    .. math::

        q(z_i) = \mathcal{N}(z_i; m_i, v_i), \qquad
        q(w_{ij} \mid z_i) = \mathcal{N}(w_{ij}; z_i\mu_{ij}, z_i^2\sigma_{ij}^2),

    .. math::

        \mathrm{KL} = \sum_i \mathrm{KL}_{\log\text{-uniform}}(\log\alpha_i)
            + \sum_{ij} \tfrac12\big(\sigma_{ij}^2 + \mu_{ij}^2 - 1 - \log\sigma_{ij}^2\big)

    with :math:`\alpha_i = v_i / m_i^2`. Written non-centered, :math:`w = \tilde w z`, the posterior
    factorizes over the sites ``NAME.scale`` and ``NAME.unit``. A group whose :math:`\log\alpha_i`
    is large is noise, and its unit can be removed.

    Args:
        model: a ``BayesianNet`` under ``priors.NormalJeffreys``.
        init_log_variance: initial value of :math:`\log v` and :math:`\log\sigma^2`.
        max_scale: upper bounds of :math:`\sigma`, by weight. The paper bounds it by 0.2 in the
            first layer.

    Raises:
        ValueError: if the model has no real group scales, if ``max_scale`` names another weight, or
            if a bound is not above the initial :math:`\sigma`.

    Source: Louizos, Ullrich & Welling (2017), section 4.1, https://arxiv.org/abs/1705.08665.
    """

    def __init__(
        self,
        model: BayesianNet,
        init_log_variance: float = -9.0,
        max_scale: Mapping[str, float] | None = None,
    ) -> None:
        sites = latent_sites("GroupNormalJeffreys", model)
        weights = weights_with_real_scales(sites)
        if not weights:
            raise ValueError(
                "GroupNormalJeffreys: the model has no real group scales, only "
                f"{', '.join(sites)}; use priors.NormalJeffreys()"
            )
        init_scale = math.exp(init_log_variance / 2)
        families: dict[str, nn.Module] = {}
        for name, site in sites.items():
            families[name] = default_family("GroupNormalJeffreys", name, site, init_scale)
        families |= capped_units("GroupNormalJeffreys", sites, weights, init_scale, max_scale)
        super().__init__(families, slab_widths(model))
        self.weights = weights

    @torch.no_grad()
    def log_alpha(self) -> dict[str, Tensor]:
        r"""Return :math:`\log\alpha_i` of the groups of every weight."""
        return group_log_alpha(self.distributions(), self.weights)
