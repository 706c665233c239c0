"""InformationBottleneck: Gaussian noise on every unit, under weights that are points."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyro_bnn.network import BayesianNet

from .factorized import Factorized
from .families import default_family
from .group_scales import group_log_alpha, weights_with_real_scales
from .latent import latent_sites
from .point import PointUnits

__all__ = ["InformationBottleneck"]


class InformationBottleneck(Factorized):
    r"""The posterior of the variational information bottleneck (VIBNet).

    Units carry noise, and weights are points:

    .. math::

        q(z_i) = \mathcal{N}(z_i; m_i, v_i), \qquad q(\tilde w) = \delta(\tilde w - \theta), \qquad
        \mathrm{KL} = \sum_i \tfrac12 \log\Big(1 + \frac{m_i^2}{v_i}\Big)

    z multiplies the input units of a dense layer and the output channels of a convolution. A unit
    whose noise is larger than its mean, :math:`\log\alpha_i = \log(v_i / m_i^2) \ge 0`, carries
    next to no information and can be removed. Start from a trained network, and draw z anew for
    each example, as the paper does: ``local_reparameterization(guide, per_example_scales=True)``.

    Args:
        model: a ``BayesianNet`` under ``priors.InformationBottleneck``.
        init_log_variance: initial value of :math:`\log v`; the mean m starts at one.

    Raises:
        ValueError: if the model has no real group scales.

    Source: Dai, Zhu, Guo & Wipf (2018), sections 3-4, https://arxiv.org/abs/1802.10399.
    """

    def __init__(self, model: BayesianNet, init_log_variance: float = -9.0) -> None:
        sites = latent_sites("InformationBottleneck", model)
        weights = weights_with_real_scales(sites)
        if not weights:
            raise ValueError(
                "InformationBottleneck: the model has no real group scales, only "
                f"{', '.join(sites)}; use priors.InformationBottleneck()"
            )
        init_scale = math.exp(init_log_variance / 2)
        families: dict[str, nn.Module] = {}
        for name, site in sites.items():
            families[name] = default_family("InformationBottleneck", name, site, init_scale)
        for weight in weights:
            families[f"{weight}.unit"] = PointUnits(sites[f"{weight}.unit"].initial)
        super().__init__(families)
        self.weights = weights

    @torch.no_grad()
    def log_alpha(self) -> dict[str, Tensor]:
        r"""Return :math:`\log\alpha_i` of the groups of every weight."""
        return group_log_alpha(self.distributions(), self.weights)
