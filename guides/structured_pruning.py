"""StructuredPruning: truncated log-normal noise on every unit, under weights that are points."""

from __future__ import annotations

from typing import NamedTuple, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_bnn.distributions import TruncatedLogNormal
from pyro_bnn.distributions.independent import base_distribution
from pyro_bnn.network import BayesianNet

from .factorized import Factorized
from .families import as_event, default_family
from .latent import elementwise_support, latent_sites
from .point import PointUnits

__all__ = ["StructuredPruning"]


class StructuredPruning(Factorized):
    r"""The posterior of structured Bayesian pruning.

    Units carry noise, and weights are points:

    .. math::

        q(z_i) = \mathrm{LogNormal}_{[e^a, e^b]}(z_i; \mu_i, \sigma_i^2), \qquad
        q(\tilde w) = \delta(\tilde w - \theta)

    .. math::

        \mathrm{KL} = \sum_i \log(b - a) - \log\big(\sqrt{2\pi e}\,\sigma_i Z_i\big)
            - \frac{\alpha_i\varphi(\alpha_i) - \beta_i\varphi(\beta_i)}{2 Z_i}

    z multiplies the input units of a dense layer and the output channels of a convolution. Prior
    and posterior are proper, so the divergence has no hidden constant and falls to zero where z is
    as uncertain as its prior. A unit is removed if its noise exceeds its signal,
    :math:`\mathrm{SNR}(z_i) = \mathbb{E} z_i / \mathrm{sd}(z_i) < 1`, which is a threshold of 0 for
    :math:`\log\alpha`. Start from a trained network.

    Args:
        model: a ``BayesianNet`` under ``priors.TruncatedLogUniform``.
        init_scale: initial value of :math:`\sigma`, by default :math:`e^{-5}`; :math:`\mu` starts
            at b.

    Raises:
        ValueError: if the model has no group scales between two bounds, or if ``init_scale`` is not
            above zero.

    Source: Neklyudov, Molchanov, Ashukha & Vetrov (2017), section 3 and appendix,
    https://arxiv.org/abs/1705.07283.
    """

    def __init__(self, model: BayesianNet, init_scale: float = 0.0067) -> None:
        if not init_scale > 0:
            raise ValueError(f"StructuredPruning: expected init_scale above zero, got {init_scale}")
        sites = latent_sites("StructuredPruning", model)
        families: dict[str, nn.Module] = {}
        weights = []
        for name, site in sites.items():
            bounds = _bounds(site.support)
            if name.endswith(".scale") and bounds is not None:
                families[name] = TruncatedNoise(site.initial, bounds, init_scale)
                weights.append(name.removesuffix(".scale"))
        if not weights:
            raise ValueError(
                "StructuredPruning: the model has no group scales between two bounds, only "
                f"{', '.join(sites)}; use priors.TruncatedLogUniform()"
            )
        for weight in weights:
            families[f"{weight}.unit"] = PointUnits(sites[f"{weight}.unit"].initial)
        for name, site in sites.items():
            if name not in families:
                families[name] = default_family("StructuredPruning", name, site, init_scale)
        super().__init__({name: families[name] for name in sites})  # in the order of the model
        self.weights = weights

    @torch.no_grad()
    def signal_to_noise(self) -> dict[str, Tensor]:
        """Return the signal-to-noise ratio of the groups of every weight.

        A group with a ratio below one can be removed.
        """
        q = self.distributions()
        ratios = {}
        for weight in self.weights:
            scale = cast(TruncatedLogNormal, base_distribution(q[f"{weight}.scale"]))
            ratios[weight] = scale.signal_to_noise
        return ratios


class Bounds(NamedTuple):
    """Both ends of an interval of positive numbers."""

    lower: Tensor
    upper: Tensor


class TruncatedNoise(nn.Module):
    """A log-normal between two bounds, with the parameters ``loc`` and ``log_scale``.

    Args:
        initial: initial value of z.
        bounds: bounds of z.
        init_scale: initial value of the scale of log z.
    """

    low: Tensor
    high: Tensor

    def __init__(self, initial: Tensor, bounds: Bounds, init_scale: float) -> None:
        super().__init__()
        self.register_buffer("low", bounds.lower.detach().log().clone())
        self.register_buffer("high", bounds.upper.detach().log().clone())
        self.loc = nn.Parameter(initial.log())
        self.log_scale = nn.Parameter(torch.full_like(initial, init_scale).log())

    def forward(self) -> dist.TorchDistribution:
        """Return q as one event."""
        scale = self.log_scale.exp()
        return as_event(
            TruncatedLogNormal(self.loc, scale, self.low, self.high, validate_args=False)
        )


def _bounds(support: Constraint | None) -> Bounds | None:
    """Return the bounds of an interval, ``None`` for another support."""
    interval = elementwise_support(support)
    if not isinstance(interval, constraints.interval):
        return None
    return Bounds(interval.lower_bound, interval.upper_bound)
