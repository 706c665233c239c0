r"""The log-uniform prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, NoReturn

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from .constants import EULER_GAMMA, LOG_2_PI_E
from .improper import refusing
from .log_uniform_kl import at_least_float32, kl_log_uniform
from .multiplicative_noise import log_alpha
from .shapes import Shape, broadcast_shapes
from .typed import register_kl

__all__ = ["LogUniform"]


def _without(quantity: str) -> Callable[..., NoReturn]:
    """Return a method that explains why the prior does not have a quantity."""
    return refusing(
        f"LogUniform has no {quantity}: it is an improper prior, whose density 1/|w| has an "
        "infinite integral. Only its log_prob and its KL divergence are defined. Where a proper "
        "prior is needed, use a relative: Horseshoe, a Normal of learned scale (LearnedNormal), or "
        "TruncatedLogUniform."
    )


class LogUniform(TorchDistribution):
    r"""The improper prior that is uniform in :math:`\log|w|`, on the nonzero real numbers.

    .. math:: \log p(w) = -\log|w| - \tfrac12\big(\log(2\pi e) + \gamma + \log 2\big)

    An improper density has no constant of its own. This one makes Monte Carlo estimates of the
    divergence agree with :func:`kl_log_uniform`, which is 0 at infinite :math:`\alpha`. At w = 0
    the log-density is infinite. The divergence from a Normal is finite also where its mean is 0;
    it vanishes there. The prior has no parameters and takes values of any dtype on any device.

    Args:
        batch_shape: The shape of the batch; the event shape is ``()``.
        kl: The divergence (nats) of :math:`N(\theta, \alpha\theta^2)` from this prior as a
            function of :math:`\log\alpha`: :func:`kl_log_uniform` or
            :func:`kl_log_uniform_approximate`.

    Raises:
        ImproperPriorError: For a draw, a moment, the entropy, a quantile, the cumulative
            distribution function or the normalizing constant.

    References:
        Kingma, Salimans & Welling (2015), arXiv:1506.02557. According to Hron et al. (2018),
        arXiv:1807.01969, the true posterior under this prior is in general improper as well, so
        the divergence acts as a penalty rather than as part of Bayesian inference.

    Example:
        >>> from pyro_bnn.distributions import kl_log_uniform_approximate
        >>> q = dist.Normal(torch.tensor([0.1, -2.0]), torch.tensor([0.1, 2.0]))
        >>> torch.distributions.kl_divergence(q, LogUniform())
        tensor([0.4267, 0.4267])
        >>> LogUniform(kl=kl_log_uniform_approximate).log_prob(torch.tensor(1.0))
        tensor(-2.0541)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real

    def __init__(
        self,
        batch_shape: Shape = (),
        validate_args: bool | None = None,
        *,
        kl: Callable[[Tensor], Tensor] = kl_log_uniform,
    ) -> None:
        self.kl = kl
        super().__init__(torch.Size(batch_shape), validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: None = None) -> LogUniform:
        """Return the same prior over a larger batch."""
        return LogUniform(batch_shape, validate_args=self._validate_args, kl=self.kl)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density in nats, of the shape of ``value`` broadcast with the batch."""
        if self._validate_args:
            self._validate_sample(value)
        log_density = -value.abs().log() - 0.5 * (LOG_2_PI_E + EULER_GAMMA + math.log(2))
        return log_density.expand(broadcast_shapes(value.shape, self.batch_shape))

    sample = _without("draws")
    rsample = _without("reparameterized draws")
    cdf = _without("cumulative distribution function")
    icdf = _without("quantiles")
    entropy = _without("entropy")
    mean = property(_without("mean"))
    variance = property(_without("variance"))
    normalizer = property(_without("normalizing constant"))


@register_kl(torch.distributions.Normal, LogUniform)
def _kl_normal_log_uniform(q: torch.distributions.Normal, p: LogUniform) -> Tensor:
    loc, scale = at_least_float32(q.loc), at_least_float32(q.scale)
    # The offset keeps log α finite at θ = 0; the slope of the divergence there is 0 all the same.
    kl = p.kl(log_alpha(loc, 2 * scale.log(), offset=torch.finfo(loc.dtype).tiny))
    return kl.to(q.loc.dtype).expand(broadcast_shapes(q.batch_shape, p.batch_shape))
