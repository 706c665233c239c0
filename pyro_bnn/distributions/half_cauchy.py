r"""Half-Cauchy priors of scales, and their divergences from log-normal posteriors."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from .constants import LOG_2_PI_E
from .quadrature import normal_quadrature
from .typed import register_kl

__all__ = ["half_cauchy_as_product"]


@register_kl(torch.distributions.LogNormal, torch.distributions.HalfCauchy)
def _kl_log_normal_half_cauchy(
    q: torch.distributions.LogNormal, p: torch.distributions.HalfCauchy
) -> Tensor:
    # -log p(z) = log(π s/2) + log(1 + (z/s)²); with log z = μ + σ n the last term is
    # softplus(2(μ - log s + σ n)).
    # Its mean over n ~ N(0, 1) by quadrature has an error of at most 1e-5 for σ <= 4.
    rule = normal_quadrature(q.loc)
    excess = (q.loc - p.scale.log()).unsqueeze(-1) + q.scale.unsqueeze(-1) * rule.nodes
    mean_softplus = (rule.weights * softplus(2 * excess)).sum(-1)
    cross_entropy = math.log(math.pi / 2) + p.scale.log() + mean_softplus
    return cross_entropy - _log_normal_entropy(q)


@register_kl(torch.distributions.LogNormal, torch.distributions.Gamma)
def _kl_log_normal_gamma(q: torch.distributions.LogNormal, p: torch.distributions.Gamma) -> Tensor:
    # log p(z) = a log b - lgamma(a) + (a - 1) log z - b z,   E log z = μ,   E z = exp(μ + σ²/2)
    a, b = p.concentration, p.rate
    cross_entropy = (
        a.lgamma() - a * b.log() - (a - 1) * q.loc + b * (q.loc + q.scale.square() / 2).exp()
    )
    return cross_entropy - _log_normal_entropy(q)


def _kl_log_normal_inverse_gamma(
    q: torch.distributions.LogNormal, p: torch.distributions.InverseGamma | dist.InverseGamma
) -> Tensor:
    # log p(z) = a log b - lgamma(a) - (a + 1) log z - b/z,   E 1/z = exp(-μ + σ²/2)
    a, b = p.concentration, p.rate
    cross_entropy = (
        a.lgamma() - a * b.log() + (a + 1) * q.loc + b * (-q.loc + q.scale.square() / 2).exp()
    )
    return cross_entropy - _log_normal_entropy(q)


# Pyro's InverseGamma subclasses torch's only in some versions: name both.
for _inverse_gamma in (torch.distributions.InverseGamma, dist.InverseGamma):
    register_kl(torch.distributions.LogNormal, _inverse_gamma)(_kl_log_normal_inverse_gamma)


def _log_normal_entropy(q: torch.distributions.LogNormal) -> Tensor:
    # log z is normal, and the Jacobian adds its mean
    return q.loc + q.scale.log() + 0.5 * LOG_2_PI_E


def half_cauchy_as_product(scale: float | Tensor) -> tuple[dist.Gamma, dist.InverseGamma]:
    r"""Return the two factors whose product is the square of a half-Cauchy variable.

    .. math::
        s \sim C^+(0, \tau) \iff s = \sqrt{a b}, \quad
        a \sim \mathrm{Gamma}(\tfrac12, \text{rate } \tau^{-2}), \quad
        b \sim \mathrm{InverseGamma}(\tfrac12, 1)

    Each factor has a closed divergence from a log-normal distribution.

    Args:
        scale: The scale :math:`\tau` of the half-Cauchy distribution, any shape. Its square is the
            *scale* of the Gamma distribution.

    Returns:
        The distributions of a and b, both of the batch shape of ``scale``.

    References:
        Louizos, Ullrich & Welling (2017), arXiv:1705.08665, on the group horseshoe.

    Example:
        >>> a, b = half_cauchy_as_product(0.5)
        >>> a.concentration, a.rate, b.concentration, b.rate
        (tensor(0.5000), tensor(4.), tensor(0.5000), tensor(1.))
    """
    scale = torch.as_tensor(scale)
    half, one = torch.full_like(scale, 0.5), torch.ones_like(scale)
    inverse_gamma = dist.InverseGamma(half, one)
    return dist.Gamma(half, scale**-2), inverse_gamma
