"""GroupNormalJeffreys: a dropout rate for every unit, so that whole units fall away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bnn.network import BayesianNet

from .families import Factorized, Gaussian, Latent, family_for, latent_sites, slab_widths

__all__ = ["GroupNormalJeffreys"]


class GroupNormalJeffreys(Factorized):
    r"""The posterior of Bayesian compression under the group normal-Jeffreys prior (BC-GNJ).

    .. math::

        q(z_i) = \mathcal{N}(z_i; m_i, v_i), \qquad
        q(w_{ij} \mid z_i) = \mathcal{N}(w_{ij}; z_i\mu_{ij}, z_i^2\sigma_{ij}^2),

    .. math::

        \mathrm{KL} = \sum_i \mathrm{KL}_{\log\text{-uniform}}(\log\alpha_i)
            + \sum_{ij} \tfrac12\big(\sigma_{ij}^2 + \mu_{ij}^2 - 1 - \log\sigma_{ij}^2\big)

    with :math:`\alpha_i = v_i / m_i^2`. Non-centred, :math:`w = \tilde w z`, this factorises over the sites
    ``NAME.scale`` and ``NAME.unit``. A group whose :math:`\log\alpha_i` is large is noise: the unit can go.

    Args:
        model: a ``BayesianNet`` under ``priors.NormalJeffreys``.
        init_log_variance: where the logarithms of :math:`v` and :math:`\sigma^2` start.
        max_scale: keep :math:`\sigma` of each weight below this, so that a first layer cannot hide in its noise (0.2 in
            the paper).

    Raises:
        ValueError: the model has no group scales; ``max_scale`` names another weight, or a cap that is not above the
            initial :math:`\sigma`.

    Source: Louizos, Ullrich & Welling (2017), section 4.1, https://arxiv.org/abs/1705.08665.
    """

    def __init__(
        self,
        model: BayesianNet,
        init_log_variance: float = -9.0,
        max_scale: dict[str, float] | None = None,
    ) -> None:
        sites = latent_sites(model)
        families = {name: family_for(name, site.support) for name, site in sites.items()}
        # z is real here, where a horseshoe has a positive one
        scales = [name for name in sites if name.endswith(".scale") and families[name] is Gaussian]
        stems = [name.removesuffix(".scale") for name in scales]
        if not stems:
            raise ValueError(
                f"GroupNormalJeffreys: the model has no real group scales, only {', '.join(sites)}; "
                "use priors.NormalJeffreys()"
            )
        scale = math.exp(init_log_variance / 2)
        capped = capped_units("GroupNormalJeffreys", sites, stems, scale, max_scale or {})
        posteriors = {
            name: capped.get(name) or families[name](site.initial, scale)
            for name, site in sites.items()
        }
        super().__init__(posteriors, slab_widths(model))
        self.stems = stems

    @torch.no_grad()
    def log_alpha(self) -> dict[str, Tensor]:
        """Return log alpha of the groups of every weight."""
        q = self.distributions()
        scales = {name: q[f"{name}.scale"].base_dist for name in self.stems}
        return {
            name: z.variance.log() - (z.mean.square() + 1e-8).log() for name, z in scales.items()
        }


def capped_units(
    owner: str,
    sites: Mapping[str, Latent],
    stems: Sequence[str],
    init_scale: float,
    caps: Mapping[str, float],
) -> dict[str, nn.Module]:
    """Return the families of the units whose standard deviation has a cap.

    Args:
        owner: the guide, for the error.
        sites: of the model.
        stems: the names of the weights with group scales.
        init_scale: where the standard deviations start.
        caps: by the name of the weight.

    Raises:
        ValueError: a cap for a weight without group scales, or one that is not above ``init_scale``.
    """
    if unknown := sorted(set(caps) - set(stems)):
        raise ValueError(
            f"{owner}: max_scale names {', '.join(unknown)}; the weights with group scales are {', '.join(stems)}"
        )
    return {
        f"{stem}.unit": CappedGaussian(sites[f"{stem}.unit"].initial, init_scale, cap)
        for stem, cap in caps.items()
    }


class CappedGaussian(Gaussian):
    """A Gaussian whose standard deviation stays below a cap, smoothly: 1 / (1 / s + 1 / cap)."""

    def __init__(self, initial: Tensor, init_scale: float, cap: float) -> None:
        if not init_scale < cap:
            raise ValueError(
                f"CappedGaussian: the standard deviation starts at {init_scale:.3g}, which is not below its cap {cap}"
            )
        super().__init__(initial, 1 / (1 / init_scale - 1 / cap))
        self.cap = cap

    def forward(self) -> dist.TorchDistribution:
        """Return q as one event."""
        scale = 1 / ((-self.log_scale).exp() + 1 / self.cap)
        return dist.Normal(self.loc, scale, validate_args=False).to_event(self.loc.dim())
