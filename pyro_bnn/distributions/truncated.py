r"""Scales between two bounds: truncated log-normal noise and its truncated log-uniform prior.

Everything is computed in double precision from :math:`\log\Phi`. There is one scale per group, not
per weight, so this is cheap; and the bounds may lie thousands of standard deviations away
(:math:`20 / e^{-5}`), so it is necessary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.special import erfc, erfcx, ndtri

from .constants import LOG_2_PI, LOG_2_PI_E
from .shapes import Shape
from .typed import register_kl

__all__ = ["TruncatedLogNormal", "TruncatedLogUniform"]

_FAR = -600.0  # a little below this log-probability, e^x underflows in double precision


class _Bounded(TorchDistribution):
    r"""A distribution of z with :math:`a \le \log z \le b`."""

    has_rsample = True
    low: Tensor
    high: Tensor

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The interval from e^low to e^high."""
        low, high = self.low.exp(), self.high.exp()
        return constraints.interval(low, high)

    def _bounded_exp(self, log_z: Tensor) -> Tensor:
        """Return z in the dtype of the parameters, within the bounds even after rounding."""
        z = log_z.exp().to(self.low.dtype)
        return torch.minimum(torch.maximum(z, self.low.exp()), self.high.exp())

    def _is_inside(self, value: Tensor) -> Tensor:
        return (value >= self.low.exp()) & (value <= self.high.exp())

    def _uniform(self, sample_shape: Shape) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        # 0, which has no logarithm, is drawn once in 2^53 times
        tiny = torch.finfo(torch.float64).tiny
        return torch.rand(shape, dtype=torch.float64, device=self.low.device).clamp_min(tiny)


class TruncatedLogUniform(_Bounded):
    r"""The proper prior that is uniform in :math:`\log z` between two bounds.

    .. math:: p(z) = \frac{1}{(b - a)\,z}, \quad e^a \le z \le e^b

    Args:
        low: The bound a, any shape.
        high: The bound b > a, broadcastable.

    References:
        Neklyudov, Molchanov, Ashukha & Vetrov (2017), arXiv:1705.07283, section 3.2.

    Example:
        >>> TruncatedLogUniform(-20.0, 0.0).log_prob(torch.tensor([1.0, 2.0]))
        tensor([-2.9957,    -inf])
    """

    arg_constraints = {"low": constraints.real, "high": constraints.real}  # noqa: RUF012

    def __init__(
        self, low: float | Tensor, high: float | Tensor, validate_args: bool | None = None
    ) -> None:
        self.low, self.high = broadcast_all(low, high)
        super().__init__(self.low.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: None = None) -> TruncatedLogUniform:
        """Return the same prior over a larger batch."""
        return TruncatedLogUniform(
            self.low.expand(batch_shape), self.high.expand(batch_shape), self._validate_args
        )

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Return draws of shape ``sample_shape + batch_shape``."""
        return self._bounded_exp(self.low + (self.high - self.low) * self._uniform(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density in nats."""
        log_density = -value.log() - (self.high - self.low).log()
        return torch.where(self._is_inside(value), log_density, -torch.inf)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return (self.high.exp() - self.low.exp()) / (self.high - self.low)

    @property
    def variance(self) -> Tensor:
        """The variance."""
        second = ((2 * self.high).exp() - (2 * self.low).exp()) / (2 * (self.high - self.low))
        return second - self.mean.square()


class TruncatedLogNormal(_Bounded):
    r"""A log-normal distribution between two bounds: multiplicative noise.

    .. math:: q(z) = \frac{1}{Z z}\, N(\log z; \mu, \sigma^2), \quad e^a \le z \le e^b, \qquad
        Z = \Phi(\beta) - \Phi(\alpha),\quad
        \alpha = \tfrac{a - \mu}{\sigma},\ \beta = \tfrac{b - \mu}{\sigma}

    Where ``high`` is 0 the noise never enlarges a unit. The divergence from
    :class:`TruncatedLogUniform` of the same bounds has the closed form

    .. math:: \log(b - a) - \log(\sqrt{2\pi e}\,\sigma Z)
        - \frac{\alpha\varphi(\alpha) - \beta\varphi(\beta)}{2Z}.

    Args:
        loc: :math:`\mu`, any shape; it may lie outside the bounds.
        scale: :math:`\sigma`, positive, broadcastable.
        low: The bound a of :math:`\log z`.
        high: The bound b > a.

    References:
        Neklyudov, Molchanov, Ashukha & Vetrov (2017), arXiv:1705.07283, section 3.2 and appendix.

    Example:
        >>> q = TruncatedLogNormal(torch.tensor(-1.0), torch.tensor(0.5), -20.0, 0.0)
        >>> q.mean, q.signal_to_noise
        (tensor(0.3981), tensor(2.1703))
        >>> torch.distributions.kl_divergence(q, TruncatedLogUniform(-20.0, 0.0))
        tensor(2.3482)
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real,
        "scale": constraints.positive,
        "low": constraints.real,
        "high": constraints.real,
    }

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        low: float | Tensor = -20.0,
        high: float | Tensor = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.low, self.high = broadcast_all(loc, scale, low, high)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: None = None) -> TruncatedLogNormal:
        """Return the same noise over a larger batch."""
        return TruncatedLogNormal(
            self.loc.expand(batch_shape),
            self.scale.expand(batch_shape),
            self.low.expand(batch_shape),
            self.high.expand(batch_shape),
            self._validate_args,
        )

    def _standardized(self) -> _Standardized:
        mu, sigma = self.loc.double(), self.scale.double()
        return _Standardized(mu, sigma, (self.low - mu) / sigma, (self.high - mu) / sigma)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Return reparameterized draws of shape ``sample_shape + batch_shape``.

        They are the quantiles of uniform random numbers.
        """
        mu, sigma, lower, upper = self._standardized()
        return self._bounded_exp(mu + sigma * _quantile(self._uniform(sample_shape), lower, upper))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density in nats."""
        mu, sigma, lower, upper = self._standardized()
        log_z = value.double().log()
        log_density = -log_z - ((log_z - mu) / sigma).square() / 2 - sigma.log() - LOG_2_PI / 2
        log_density = log_density - _log_mass(lower, upper)
        return torch.where(self._is_inside(value), log_density.to(self.loc.dtype), -torch.inf)

    def _log_moment(self, power: int) -> Tensor:
        """Return log E z^k."""
        # E z^k = exp(k mu + k^2 sigma^2 / 2) (Phi(beta - k sigma) - Phi(alpha - k sigma)) / Z
        mu, sigma, lower, upper = self._standardized()
        shift = power * sigma
        mass = _log_mass(lower - shift, upper - shift) - _log_mass(lower, upper)
        return power * mu + shift.square() / 2 + mass

    def _log_alpha(self) -> Tensor:
        """Return the log of the variance over the squared mean."""
        # not from the variance and the mean, which cancel: Var z / (E z)^2 = E z^2 / (E z)^2 - 1
        return torch.expm1(self._log_moment(2) - 2 * self._log_moment(1)).clamp_min(1e-30).log()

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self._log_moment(1).exp().to(self.loc.dtype)

    @property
    def variance(self) -> Tensor:
        """The variance."""
        return (2 * self._log_moment(1) + self._log_alpha()).exp().to(self.loc.dtype)

    @property
    def signal_to_noise(self) -> Tensor:
        """The mean over the standard deviation; the published rule prunes groups below 1."""
        return (-self._log_alpha() / 2).exp().to(self.loc.dtype)


class _Standardized(NamedTuple):
    """The parameters in double precision, and the bounds in standard deviations from mu."""

    mu: Tensor
    sigma: Tensor
    lower: Tensor
    upper: Tensor


def _log_ndtr(x: Tensor) -> Tensor:
    """Return log Phi(x); torch's function cannot be vectorized over draws."""
    # where, because a clamp would lose the slope at 0
    left, right = torch.where(x < 0, x, 0.0), torch.where(x < 0, 0.0, x)
    below = (erfcx(-left / math.sqrt(2)) / 2).log() - left.square() / 2
    return torch.where(x < 0, below, torch.log1p(-erfc(right / math.sqrt(2)) / 2))


def _log_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """Return log(Phi(upper) - Phi(lower))."""
    # by symmetry on the side where Phi is small, so that nothing cancels
    right = lower + upper > 0
    lower, upper = torch.where(right, -upper, lower), torch.where(right, -lower, upper)
    top = _log_ndtr(upper)
    return top + (-torch.expm1(_log_ndtr(lower) - top)).log()


def _quantile(u: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return the quantile of order u of a standard normal truncated to [lower, upper]."""
    right = lower + upper > 0
    u = torch.where(right, 1 - u, u).clamp_min(torch.finfo(u.dtype).tiny)
    lower, upper = torch.where(right, -upper, lower), torch.where(right, -lower, upper)
    top = _log_ndtr(upper)
    # Phi(x) = (1 - u) Phi(lower) + u Phi(upper)
    x = _ndtri_exp(top + (u + (1 - u) * (_log_ndtr(lower) - top).exp()).log())
    return torch.where(right, -x, x)


def _ndtri_exp(log_p: Tensor) -> Tensor:
    """Return x with log Phi(x) = log_p; its gradient is that of the exact inverse."""
    with torch.no_grad():
        near = ndtri(log_p.clamp_min(_FAR).exp())
        far = -(-2 * log_p).clamp_min(-2 * _FAR).sqrt()
        for _ in range(4):  # Newton's method: log Phi is concave and nearly quadratic there
            far = far - (_log_ndtr(far) - log_p.clamp_max(_FAR)) * _mills(far)
        x = torch.where(log_p < _FAR, far, near)
        slope = _mills(x)
    return x + slope * (log_p - log_p.detach())


def _mills(x: Tensor) -> Tensor:
    """Return Phi(x) / phi(x)."""
    return (_log_ndtr(x) + x.square() / 2 + LOG_2_PI / 2).exp()


@register_kl(TruncatedLogNormal, TruncatedLogUniform)
def _kl_truncated_log_normal_truncated_log_uniform(
    q: TruncatedLogNormal, p: TruncatedLogUniform
) -> Tensor:
    _, sigma, lower, upper = q._standardized()
    log_mass = _log_mass(lower, upper)
    ends = _weighted_bound(lower, log_mass) - _weighted_bound(upper, log_mass)
    entropy = 0.5 * LOG_2_PI_E + sigma.log() + log_mass + ends / 2  # of log z
    kl = (p.high.double() - p.low.double()).log() - entropy
    slack = 1e-4 * (p.high - p.low)  # for bounds that went through exp and log in single precision
    inside = (q.low >= p.low - slack) & (q.high <= p.high + slack)
    return torch.where(inside, kl.to(q.loc.dtype), torch.inf)


def _weighted_bound(bound: Tensor, log_mass: Tensor) -> Tensor:
    """Return x phi(x) / Z for a standardized bound x."""
    return bound * (-bound.square() / 2 - LOG_2_PI / 2 - log_mass).exp()
