"""StructuredPruning: truncated log-normal noise on every unit, under weights that are learned as usual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_bnn.distributions import TruncatedLogNormal
from pyro_bnn.network import BayesianNet

from .families import Factorized, Latent, family_for, latent_sites
from .points import PointWeights

__all__ = ["StructuredPruning"]


class StructuredPruning(Factorized):
    r"""The posterior of structured Bayesian pruning: noise on units, points for weights.

    .. math::

        q(z_i) = \mathrm{LogNormal}_{[e^a, e^b]}(z_i; \mu_i, \sigma_i^2), \qquad
        q(\tilde w) = \delta(\tilde w - \theta)

    .. math::

        \mathrm{KL} = \sum_i \log(b - a) - \log\big(\sqrt{2\pi e}\,\sigma_i Z_i\big)
            - \frac{\alpha_i\varphi(\alpha_i) - \beta_i\varphi(\beta_i)}{2 Z_i}

    z multiplies the input units of a dense layer and the output channels of a convolution. Prior and posterior are
    proper, so the divergence has no hidden constant and falls to zero where z is as uncertain as its prior. A unit goes
    where the noise drowns the signal, :math:`\mathrm{SNR}(z_i) = \mathbb{E} z_i / \mathrm{sd}(z_i) < 1`, which is a
    threshold of 0 for :math:`\log\alpha`. It needs a trained network to start from.

    Args:
        model: a ``BayesianNet`` under ``priors.TruncatedLogUniform``.
        init_scale: where :math:`\sigma` starts; :math:`\mu` starts at b.

    Raises:
        ValueError: the model has no group scales between two bounds; ``init_scale`` not above zero.

    Source: Neklyudov, Molchanov, Ashukha & Vetrov (2017), section 3 and appendix, https://arxiv.org/abs/1705.07283.
    """

    def __init__(self, model: BayesianNet, init_scale: float = 0.0067) -> None:  # e^-5
        if not init_scale > 0:
            raise ValueError(f"StructuredPruning: expected init_scale above zero, got {init_scale}")
        sites = latent_sites(model)
        stems = [
            name.removesuffix(".scale")
            for name, site in sites.items()
            if name.endswith(".scale") and _bounds(site.support) is not None
        ]
        if not stems:
            raise ValueError(
                f"StructuredPruning: the model has no group scales between two bounds, only {', '.join(sites)}; "
                "use priors.TruncatedLogUniform()"
            )
        families: dict[str, nn.Module] = {}
        for name, site in sites.items():
            stem, _, part = name.rpartition(".")
            if part == "scale" and stem in stems:
                families[name] = TruncatedNoise(site, init_scale)
            elif part == "unit" and stem in stems:
                families[name] = PointWeights(site.initial)
            else:
                families[name] = family_for(name, site.support)(site.initial, init_scale)
        super().__init__(families)
        self.stems = stems

    @torch.no_grad()
    def signal_to_noise(self) -> dict[str, Tensor]:
        """Return the signal-to-noise ratio of the groups of every weight; below one the group can go."""
        q = self.distributions()
        return {stem: q[f"{stem}.scale"].base_dist.signal_to_noise for stem in self.stems}


class TruncatedNoise(nn.Module):
    """A log-normal between the bounds of the site: parameters ``loc`` and ``log_scale``."""

    low: Tensor
    high: Tensor

    def __init__(self, site: Latent, init_scale: float) -> None:
        super().__init__()
        lower, upper = _bounds(site.support)
        self.register_buffer("low", lower.detach().log().clone())
        self.register_buffer("high", upper.detach().log().clone())
        self.loc = nn.Parameter(site.initial.log())
        self.log_scale = nn.Parameter(torch.full_like(site.initial, init_scale).log())

    def forward(self) -> torch.distributions.Distribution:
        """Return q as one event."""
        q = TruncatedLogNormal(
            self.loc, self.log_scale.exp(), self.low, self.high, validate_args=False
        )
        return q.to_event(self.loc.dim())


def _bounds(support: Any) -> Any:
    """Return both ends of an interval of positive numbers, ``None`` for another support."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if type(support) is not type(constraints.unit_interval):
        return None
    return support.lower_bound, support.upper_bound
