r"""The log-uniform prior, and the exact KL divergence of a Gaussian from it."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import torch
from numpy.polynomial import Polynomial
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl
from torch.nn.functional import softplus

from .multiplicative_noise import log_alpha

__all__ = ["ImproperPriorError", "LogUniform", "kl_log_uniform", "kl_log_uniform_approximate"]

Shape = torch.Size | tuple[int, ...] | list[int]

EULER_GAMMA = 0.5772156649015329
LOG_2_PI_E = math.log(2 * math.pi * math.e)  # an entropy: that of N(mu, v) is (log(2πe) + log v)/2


class ImproperPriorError(ValueError):
    """An improper prior was asked for what only a proper one has: a draw, a moment, a normalising constant."""


# With u = exp(-la)/2, the exact divergence and its slope are integrals of Dawson's function D:
#     KL = 2 ∫₀^√u D(s) ds,     dKL/dla = -√u D(√u).
# KL is analytic in u at 0, log(u)/2 + const + O(1/u) at infinity. Hence, with t = u/(12 + u) = sigmoid(-la - log 24),
#     KL = log(1 + u/12)/2 + t P(2t - 1),
# where P is smooth on [-1, 1]. P has degree 17, fitted by iteratively reweighted least squares (towards minimax) to KL
# and slope together: 1401 values of la in [-26, 26], KL = u ₂F₂(1, 1; 3/2, 2; -u) in 30 digits, P(-1) and P(1) held at
# their exact limits 23/2 and (γ + log 48)/2. Largest error of KL and of slope before rounding: 1.8e-8. The factor 12
# balances the two ends: a smaller one brings the singularity at t = 1 closer, a larger one squeezes t near 0.
_SHIFT = math.log(24)
_P = Polynomial(
    [
        *(
            3.71051445026,
            -2.61345172172,
            1.99723029892,
            -1.51702111159,
            1.07255845445,
            -0.622354205244,
        ),
        *(
            0.189856268672,
            0.114302895208,
            -0.167772047985,
            0.018823608174,
            0.0918154173844,
            -0.0336572418784,
        ),
        *(
            -0.0466049738543,
            0.023890478587,
            0.0180175016831,
            -0.010693279768,
            -0.00351120057894,
            0.00226474719238,
        ),
    ]
)
# Every degree costs time at each training step, and single precision does not show much of it: degree 11, fitted in the
# same way, is within 4.1e-6 for value and slope.
_P_SINGLE = Polynomial(
    [
        *(3.71051875, -2.61344602, 1.99713149, -1.51727953, 1.0744648, -0.620690382),
        *(0.177139782, 0.111738422, -0.128758211, 0.0126047695, 0.0319023686, -0.0111138766),
    ]
)


# Derivatives come from P itself, so that value, slope and curvature agree. Since dt/dla = -t(1 - t) and s = 2t - 1,
# d(t F(s))/dla = -t(1 - t)(F + 2t F') = t · (s - 1)/2 · (F + (1 + s) F'), and that of log(1 + u/12)/2 is -t/2.
def _derivative(polynomial: Polynomial) -> Polynomial:
    s = Polynomial([0.0, 1.0])
    return (s - 1) / 2 * (polynomial + (1 + s) * polynomial.deriv())


_SLOPE, _SLOPE_SINGLE = _derivative(_P) - 0.5, _derivative(_P_SINGLE) - 0.5
_CURVATURE = _derivative(_SLOPE)


def _horner(polynomial: Polynomial, s: Tensor) -> Tensor:
    """Evaluate the polynomial at s, in operations that autograd can differentiate."""
    value = torch.full_like(s, polynomial.coef[-1])
    for c in reversed(polynomial.coef[:-1]):
        value = value * s + c
    return value


def _horner_in_place(polynomial: Polynomial, s: Tensor) -> Tensor:
    """Evaluate the polynomial at s; one pass for each degree and one tensor, because a fresh one costs many passes."""
    value = torch.full_like(s, polynomial.coef[-1])
    for c in reversed(s.new_tensor(polynomial.coef[:-1]).unbind()):
        torch.addcmul(c, value, s, out=value)
    return value


def _log_uniform_curvature(log_alpha: Tensor) -> Tensor:
    """Second derivative of the exact divergence in log alpha, in operations that autograd can differentiate again."""
    t = torch.sigmoid(-log_alpha - _SHIFT)
    return t * _horner(_CURVATURE, 2 * t - 1)


class _LogUniformKL(torch.autograd.Function):
    """The exact divergence and its slope; returning both lets backward, and its own backward, reuse the slope."""

    @staticmethod
    def forward(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
        single = log_alpha.dtype == torch.float32
        p, slope = (_P_SINGLE, _SLOPE_SINGLE) if single else (_P, _SLOPE)
        # With y = -la - log 24: e^y = u/12, softplus(y) = log(1 + u/12), t = e^y / (1 + e^y); above 80 softplus(y) = y.
        y = torch.rsub(log_alpha, -_SHIFT)
        e = y.clamp(max=80).exp_()
        value = torch.maximum(e.log1p(), y, out=y).mul_(0.5)
        t = e.div_(e + 1)
        s = (2 * t).sub_(1)
        return value.addcmul_(_horner_in_place(p, s), t), _horner_in_place(slope, s).mul_(t)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output[1])
        ctx.save_for_forward(*inputs, output[1])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], log_alpha: Tensor) -> tuple[Any, Any]:
        return _LogUniformKL.apply(log_alpha), (
            in_dims[0],
            in_dims[0],
        )  # elementwise: a batch is a larger tensor

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, grad_slope: Tensor | None) -> Tensor | None:
        log_alpha, slope = ctx.saved_tensors
        grad = None if grad_value is None else grad_value * slope
        if grad_slope is not None:  # only when the slope itself is differentiated
            curved = grad_slope * _log_uniform_curvature(log_alpha)
            grad = curved if grad is None else grad + curved
        return grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha, slope = ctx.saved_tensors
        return tangent * slope, tangent * _log_uniform_curvature(log_alpha)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def kl_log_uniform(log_alpha: Tensor) -> Tensor:
    r"""Exact divergence of a Gaussian from the log-uniform prior, as a function of :math:`\log\alpha`.

    .. math::
        \mathrm{KL}\big(N(\theta, \alpha\theta^2) \,\|\, 1/|w|\big) = 2 \int_0^{\sqrt u} D(s)\, ds, \quad
        u = \tfrac{1}{2\alpha}, \quad
        \frac{d\,\mathrm{KL}}{d \log\alpha} = -\sqrt u\, D(\sqrt u),

    with Dawson's function :math:`D`. The prior is improper: the constant is chosen so that the divergence falls to 0 at
    infinite :math:`\alpha`. Value, slope and curvature are smooth approximations, the first two within 2e-8 in float64
    and 5e-6 in float32; half precision is computed in float32. Differentiable to any order, in reverse and (once)
    in forward mode, and under ``torch.func``. At :math:`\log\alpha = \infty` value and slope are 0, at
    :math:`-\infty` they are :math:`\infty` and -1/2.

    Args:
        log_alpha: :math:`\log(\sigma^2/\theta^2)`, any shape.

    Returns: The divergence in nats, elementwise, with the shape and dtype of ``log_alpha``.

    References:
        Hron, Matthews and Ghahramani 2017 (arXiv:1711.02989) and 2018 (arXiv:1807.01969) give the same Dawson gradient,
        and show what the improper prior does to the posterior.

    Example::

        >>> kl_log_uniform(torch.tensor([-5.0, 0.0, 5.0]))
        tensor([3.1318, 0.4267, 0.0034])
    """
    value, _ = _LogUniformKL.apply(_at_least_float32(log_alpha))
    return value.to(log_alpha.dtype)


def kl_log_uniform_approximate(log_alpha: Tensor) -> Tensor:
    r"""Published sigmoid approximation of :func:`kl_log_uniform`, off by at most 0.0094 nats (near -3.5).

    .. math::
        \tfrac12 \log(1 + \alpha^{-1}) + k_1\, \mathrm{sigmoid}(-k_2 - k_3 \log\alpha)

    Args:
        log_alpha: :math:`\log(\sigma^2/\theta^2)`, any shape.

    Returns: The divergence in nats, elementwise, with the shape of ``log_alpha``.

    References:
        Molchanov, Ashukha and Vetrov 2017 (arXiv:1701.05369), equation 14, whose constant makes it 0 at infinity.

    Example::

        >>> kl_log_uniform_approximate(torch.tensor(0.0))
        tensor(0.4312)
    """
    # k1 - k1 sigmoid(z) = k1 sigmoid(-z), and log(1 + exp(-la)) = softplus(-la): no cancellation, no overflow
    return 0.5 * softplus(-log_alpha) + 0.63576 * torch.sigmoid(-1.87320 - 1.48695 * log_alpha)


def broadcast(first: torch.Size, second: torch.Size) -> torch.Size:
    """Return the common shape; torch takes 60 microseconds, at every training step, to find that two are equal."""
    return first if first == second else torch.broadcast_shapes(first, second)


def _refusing(what: str) -> Callable[..., NoReturn]:
    """Make a method of an improper prior that explains why it has no answer."""

    def refuse(self: TorchDistribution, *args: Any, **kwargs: Any) -> NoReturn:
        raise ImproperPriorError(
            f"{type(self).__name__} was asked for {what}, which does not exist: it is an improper prior, whose density "
            "1/|w| has an infinite integral. Only its log_prob and its KL divergence are defined. Where a proper prior "
            "is needed, use a relative: Horseshoe, a Normal of learned scale (ARD), or a truncated log-uniform."
        )

    return refuse


class LogUniform(TorchDistribution):
    r"""The improper prior uniform in :math:`\log|w|`, on the nonzero reals.

    .. math:: \log p(w) = -\log|w| - \tfrac12\big(\log(2\pi e) + \gamma + \log 2\big)

    An improper density has no constant of its own; this one makes Monte Carlo agree with :func:`kl_log_uniform`, which
    is 0 at infinite :math:`\alpha`. At w = 0 the log-density is infinite. There are no parameters: every dtype and
    device will do. The divergence from a Normal is finite at mean 0, where it vanishes.

    Raises:
        ImproperPriorError: for a draw, moment, entropy, quantile, distribution function or normalising constant.

    Args:
        batch_shape: The shape of the batch; the event shape is ``()``.
        kl: The divergence (nats) of :math:`N(\theta, \alpha\theta^2)` from this prior as a function of
            :math:`\log\alpha`: :func:`kl_log_uniform` or :func:`kl_log_uniform_approximate`.

    References:
        Kingma, Salimans and Welling 2015 (arXiv:1506.02557). Hron et al. 2018 (arXiv:1807.01969): with it the true
        posterior is in general improper as well, so what is learned is a penalty rather than Bayesian inference.

    Example::

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

    def expand(self, batch_shape: Shape, _instance: None = None) -> "LogUniform":
        """Return the same prior over a larger batch."""
        return LogUniform(batch_shape, validate_args=self._validate_args, kl=self.kl)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density in nats, up to the convention above; shape: that of ``value``, broadcast."""
        if self._validate_args:
            self._validate_sample(value)
        log_density = -value.abs().log() - 0.5 * (LOG_2_PI_E + EULER_GAMMA + math.log(2))
        return log_density.expand(torch.broadcast_shapes(value.shape, self.batch_shape))

    sample = _refusing("a draw")
    rsample = _refusing("a reparameterised draw")
    cdf = _refusing("its distribution function")
    icdf = _refusing("a quantile")
    entropy = _refusing("its entropy")
    mean = property(_refusing("its mean"))
    variance = property(_refusing("its variance"))
    normalizer = property(_refusing("its normalising constant"))


@register_kl(torch.distributions.Normal, LogUniform)
def _kl_normal_log_uniform(q: torch.distributions.Normal, p: LogUniform) -> Tensor:
    loc, scale = _at_least_float32(q.loc), _at_least_float32(q.scale)
    # The offset keeps log α finite at θ = 0; the slope of the divergence there is 0 all the same.
    kl = p.kl(log_alpha(loc, 2 * scale.log(), offset=torch.finfo(loc.dtype).tiny))
    return kl.to(q.loc.dtype).expand(broadcast(q.batch_shape, p.batch_shape))
