r"""The KL divergence of a Gaussian from the log-uniform prior: exact, and as published.

Both are functions of :math:`\log\alpha`, the log variance of the multiplicative noise.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from numpy.polynomial import Polynomial
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["at_least_float32", "kl_log_uniform", "kl_log_uniform_approximate"]

# With u = exp(-la)/2 and la = log α, the exact divergence and its slope are integrals of Dawson's
# function D:
#
#     KL = 2 ∫₀^√u D(s) ds,     dKL/dla = -√u D(√u).
#
# KL is analytic in u at 0 and equals log(u)/2 + const + O(1/u) at infinity. Hence, with
# t = u/(12 + u) = sigmoid(-la - log 24),
#
#     KL = log(1 + u/12)/2 + t P(2t - 1),
#
# where P is smooth on [-1, 1]. P is a polynomial of degree 17, fitted to KL and its slope together
# by iteratively reweighted least squares (towards minimax) at 1401 values of la in [-26, 26], with
# KL = u ₂F₂(1, 1; 3/2, 2; -u) in 30 digits and with P(-1) and P(1) held at their exact limits 23/2
# and (γ + log 48)/2. The largest error of KL and of its slope before rounding is 1.8e-8. The factor
# 12 balances the two ends: a smaller one brings the singularity at t = 1 closer, a larger one
# squeezes t near 0.
_SHIFT = math.log(24)
_P = Polynomial(
    [
        3.71051445026,
        -2.61345172172,
        1.99723029892,
        -1.51702111159,
        1.07255845445,
        -0.622354205244,
        0.189856268672,
        0.114302895208,
        -0.167772047985,
        0.018823608174,
        0.0918154173844,
        -0.0336572418784,
        -0.0466049738543,
        0.023890478587,
        0.0180175016831,
        -0.010693279768,
        -0.00351120057894,
        0.00226474719238,
    ]
)
# Every degree costs time at each training step, and single precision shows little of it. Degree 11,
# fitted in the same way, is within 4.1e-6 for value and slope.
_P_SINGLE = Polynomial(
    [
        *(3.71051875, -2.61344602, 1.99713149, -1.51727953, 1.0744648, -0.620690382),
        *(0.177139782, 0.111738422, -0.128758211, 0.0126047695, 0.0319023686, -0.0111138766),
    ]
)


def _derivative(polynomial: Polynomial) -> Polynomial:
    """Return the factor F* in d(t F(s))/dla = t F*(s), where s = 2t - 1.

    Since dt/dla = -t(1 - t), F* = (s - 1)/2 · (F + (1 + s) F').
    """
    s = Polynomial([0.0, 1.0])
    return (s - 1) / 2 * (polynomial + (1 + s) * polynomial.deriv())


class _Divergence(NamedTuple):
    """The polynomials in s = 2t - 1 from which a divergence is computed.

    Slope and curvature are derived from the value, so that the three agree.
    """

    value: Polynomial
    slope: Polynomial
    curvature: Polynomial


def _with_derivatives(value: Polynomial) -> _Divergence:
    slope = _derivative(value) - 0.5  # the slope of log(1 + u/12)/2 is -t/2
    return _Divergence(value, slope, _derivative(slope))


_DOUBLE = _with_derivatives(_P)
_SINGLE = _with_derivatives(_P_SINGLE)


def _horner(polynomial: Polynomial, s: Tensor) -> Tensor:
    """Evaluate a polynomial in operations that autograd can differentiate."""
    value = torch.full_like(s, polynomial.coef[-1])
    for coefficient in reversed(polynomial.coef[:-1]):
        value = value * s + coefficient
    return value


def _horner_in_place(polynomial: Polynomial, s: Tensor) -> Tensor:
    """Evaluate a polynomial in one pass per degree and one tensor; fresh ones cost many passes."""
    value = torch.full_like(s, polynomial.coef[-1])
    for coefficient in reversed(s.new_tensor(polynomial.coef[:-1]).unbind()):
        torch.addcmul(coefficient, value, s, out=value)
    return value


def _curvature(log_alpha: Tensor) -> Tensor:
    """Return the second derivative of the divergence, differentiable by autograd again."""
    t = torch.sigmoid(-log_alpha - _SHIFT)
    return t * _horner(_DOUBLE.curvature, 2 * t - 1)


class _LogUniformKL(torch.autograd.Function):
    """The exact divergence and its slope.

    Returning both lets the backward pass, and the backward pass of that, reuse the slope.
    """

    @staticmethod
    def forward(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
        divergence = _SINGLE if log_alpha.dtype == torch.float32 else _DOUBLE
        # With y = -la - log 24: e^y = u/12, softplus(y) = log(1 + u/12), t = e^y / (1 + e^y).
        # Above 80, softplus(y) = y in floating point.
        y = torch.rsub(log_alpha, -_SHIFT)
        e = y.clamp(max=80).exp_()
        value = torch.maximum(e.log1p(), y, out=y).mul_(0.5)
        t = e.div_(e + 1)
        s = (2 * t).sub_(1)
        value.addcmul_(_horner_in_place(divergence.value, s), t)
        slope = _horner_in_place(divergence.slope, s).mul_(t)
        return value, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        (log_alpha,) = inputs
        _, slope = output
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(log_alpha, slope)
        ctx.save_for_forward(log_alpha, slope)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None], log_alpha: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[int | None, int | None]]:
        # elementwise: a batch is a larger tensor
        return _LogUniformKL.apply(log_alpha), (in_dims[0], in_dims[0])

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, grad_slope: Tensor | None) -> Tensor | None:
        log_alpha, slope = ctx.saved_tensors
        grad = None if grad_value is None else grad_value * slope
        if grad_slope is None:  # the slope itself is not differentiated
            return grad
        curved = grad_slope * _curvature(log_alpha)
        return curved if grad is None else grad + curved

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha, slope = ctx.saved_tensors
        return tangent * slope, tangent * _curvature(log_alpha)


def at_least_float32(x: Tensor) -> Tensor:
    """Return half-precision numbers in single precision, and all others as they are."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return x.float()
    return x


def kl_log_uniform(log_alpha: Tensor) -> Tensor:
    r"""Return the exact divergence of a Gaussian from the log-uniform prior.

    .. math::
        \mathrm{KL}\big(N(\theta, \alpha\theta^2) \,\|\, 1/|w|\big)
        = 2 \int_0^{\sqrt u} D(s)\, ds, \quad
        u = \tfrac{1}{2\alpha}, \quad
        \frac{d\,\mathrm{KL}}{d \log\alpha} = -\sqrt u\, D(\sqrt u),

    with Dawson's function :math:`D`. The prior is improper: its constant is chosen such that the
    divergence tends to 0 at infinite :math:`\alpha`. Value and slope are smooth approximations
    with an error of at most 2e-8 in float64 and 5e-6 in float32; half precision is computed in
    float32. The function is differentiable to any order in reverse mode, once in forward mode, and
    under ``torch.func``. At :math:`\log\alpha = \infty` value and slope are 0; at
    :math:`-\infty` they are :math:`\infty` and -1/2.

    Args:
        log_alpha: :math:`\log(\sigma^2/\theta^2)`, any shape; see
            :func:`~pyro_bnn.distributions.log_alpha`.

    Returns:
        The divergence in nats, elementwise, of the shape and dtype of ``log_alpha``.

    References:
        Hron, Matthews & Ghahramani (2017), arXiv:1711.02989, and (2018), arXiv:1807.01969, who
        give the same gradient and show how the improper prior affects the posterior.

    Example:
        >>> kl_log_uniform(torch.tensor([-5.0, 0.0, 5.0]))
        tensor([3.1318, 0.4267, 0.0034])
    """
    value: Tensor = _LogUniformKL.apply(at_least_float32(log_alpha))[0]
    return value.to(log_alpha.dtype)


def kl_log_uniform_approximate(log_alpha: Tensor) -> Tensor:
    r"""Return the published approximation of :func:`kl_log_uniform` by a sigmoid.

    .. math::
        \tfrac12 \log(1 + \alpha^{-1}) + k_1\, \mathrm{sigmoid}(-k_2 - k_3 \log\alpha)

    Its error is at most 0.0094 nats, near :math:`\log\alpha = -3.5`.

    Args:
        log_alpha: :math:`\log(\sigma^2/\theta^2)`, any shape.

    Returns:
        The divergence in nats, elementwise, of the shape of ``log_alpha``.

    References:
        Molchanov, Ashukha & Vetrov (2017), arXiv:1701.05369, equation 14, with the constant that
        makes the divergence 0 at infinity.

    Example:
        >>> kl_log_uniform_approximate(torch.tensor(0.0))
        tensor(0.4312)
    """
    # k1 - k1 sigmoid(z) = k1 sigmoid(-z), and log(1 + exp(-la)) = softplus(-la): no cancellation
    # and no overflow
    return 0.5 * softplus(-log_alpha) + 0.63576 * torch.sigmoid(-1.87320 - 1.48695 * log_alpha)
