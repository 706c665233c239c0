"""InformationBottleneck: Gaussian noise on every unit, under weights that are learned as usual."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyro_bnn.network import BayesianNet

from .families import Factorized, Gaussian, family_for, latent_sites
from .points import PointWeights

__all__ = ["InformationBottleneck"]


class InformationBottleneck(Factorized):
    r"""The posterior of the variational information bottleneck (VIBNet): noise on units, points for weights.

    .. math::

        q(z_i) = \mathcal{N}(z_i; m_i, v_i), \qquad q(\tilde w) = \delta(\tilde w - \theta), \qquad
        \mathrm{KL} = \sum_i \tfrac12 \log\Big(1 + \frac{m_i^2}{v_i}\Big)

    z multiplies the input units of a dense layer and the output channels of a convolution. A unit whose noise is larger
    than its mean, :math:`\log\alpha_i = \log(v_i / m_i^2) \ge 0`, carries next to nothing and can go. Draw z anew for
    each example, ``local_reparameterization(guide, per_example_scales=True)``, as the paper does; start from a trained
    network.

    Args:
        model: a ``BayesianNet`` under ``priors.InformationBottleneck``.
        init_log_variance: where :math:`\log v` starts; m starts at one.

    Raises:
        ValueError: the model has no real group scales.

    Source: Dai, Zhu, Guo & Wipf (2018), sections 3-4, https://arxiv.org/abs/1802.10399.
    """

    def __init__(self, model: BayesianNet, init_log_variance: float = -9.0) -> None:
        sites = latent_sites(model)
        kinds = {name: family_for(name, site.support) for name, site in sites.items()}
        stems = [
            name.removesuffix(".scale")
            for name, kind in kinds.items()
            if name.endswith(".scale")
            and kind is Gaussian
            and f"{name.removesuffix('.scale')}.unit" in sites
        ]
        if not stems:
            raise ValueError(
                f"InformationBottleneck: the model has no real group scales, only {', '.join(sites)}; "
                "use priors.InformationBottleneck()"
            )
        units = {f"{stem}.unit" for stem in stems}
        scale = math.exp(init_log_variance / 2)
        families: dict[str, nn.Module] = {}
        for name, site in sites.items():
            families[name] = (
                PointWeights(site.initial) if name in units else kinds[name](site.initial, scale)
            )
        super().__init__(families)
        self.stems = stems

    @torch.no_grad()
    def log_alpha(self) -> dict[str, Tensor]:
        """Return log alpha of the groups of every weight."""
        q = self.distributions()
        scales = {stem: q[f"{stem}.scale"].base_dist for stem in self.stems}
        return {
            stem: z.variance.log() - (z.mean.square() + 1e-8).log() for stem, z in scales.items()
        }
