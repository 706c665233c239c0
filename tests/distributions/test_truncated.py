"""Truncated log-normal noise against quadrature, simulation and finite differences.

Kolmogorov-Smirnov tests fail falsely with a probability of 1e-4.
"""

import math

import pytest
import torch
from scipy import integrate, stats
from torch.distributions import kl_divergence

from pyro_bnn.distributions import (
    TruncatedLogNormal,
    TruncatedLogUniform,
)

LOW, HIGH = -20.0, 0.0


# at the starting point, in the middle, as wide as the prior, with its mode outside on either side
PARAMETERS = [
    (0.0, 0.0067),
    (-1.0, 0.5),
    (-3.0, 2.0),
    (-10.0, 30.0),
    (0.5, 0.2),
    (1.0, 0.1),
    (-22.0, 0.7),
    (0.3, 0.01),
]


def double(values):
    return torch.as_tensor(values, dtype=torch.float64)


def noise(mu, sigma, low=LOW, high=HIGH):
    return TruncatedLogNormal(double(mu), double(sigma), double(low), double(high))


def density(mu, sigma):
    """Return an expectation under the density of t = log z on [LOW, HIGH], and the density."""
    mode = min(max(mu, LOW), HIGH)

    def kernel(t):
        return math.exp(-(((t - mu) / sigma) ** 2 - ((mode - mu) / sigma) ** 2) / 2)

    # a truncated tail falls off over sigma^2 / distance
    width = sigma if mode == mu else min(sigma, sigma**2 / abs(mode - mu))
    ends = (max(LOW, mode - 50 * width), min(HIGH, mode + 50 * width))
    points = [t for t in (mode - 3 * width, mode, mode + 3 * width) if ends[0] < t < ends[1]]

    def integral(f):
        return integrate.quad(
            lambda t: f(t) * kernel(t), *ends, points=points or None, epsabs=0, limit=500
        )[0]

    total = integral(lambda t: 1.0)
    return lambda f: integral(f) / total, lambda t: kernel(t) / total


@pytest.mark.parametrize(("mu", "sigma"), PARAMETERS)
def test_moments_and_divergence_are_those_of_quadrature(mu, sigma):
    q = noise(mu, sigma)
    mean_of, p = density(mu, sigma)
    first = mean_of(math.exp)
    variance = mean_of(lambda t: (math.exp(t) - first) ** 2)
    assert q.mean.item() == pytest.approx(first, rel=1e-8)
    assert q.variance.item() == pytest.approx(variance, rel=1e-6)
    assert q.signal_to_noise.item() == pytest.approx(first / math.sqrt(variance), rel=1e-6)
    kl = kl_divergence(q, TruncatedLogUniform(double(LOW), double(HIGH))).item()
    assert kl == pytest.approx(
        mean_of(lambda t: math.log(p(t)) if p(t) else 0.0) + math.log(HIGH - LOW), rel=1e-7
    )
    for t in (HIGH - 1e-3, -1.0, LOW + 0.1):
        if p(t) > 0:
            assert q.log_prob(double(t).exp()).item() == pytest.approx(
                math.log(p(t)) - t, rel=1e-6, abs=1e-6
            )


@pytest.mark.parametrize(("mu", "sigma"), PARAMETERS)
def test_single_precision_agrees_with_double(mu, sigma):
    q, exact = TruncatedLogNormal(torch.tensor(mu), torch.tensor(sigma)), noise(mu, sigma)
    prior = TruncatedLogUniform(torch.tensor(LOW), torch.tensor(HIGH))
    for value, expected in (
        (q.mean, exact.mean),
        (q.variance, exact.variance),
        (
            kl_divergence(q, prior),
            kl_divergence(exact, TruncatedLogUniform(double(LOW), double(HIGH))),
        ),
    ):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected.item(), rel=2e-4)


@pytest.mark.parametrize(("mu", "sigma"), [*PARAMETERS, (5.0, 0.1), (-60.0, 0.5)])
def test_draws_follow_the_truncated_distribution(mu, sigma):
    torch.manual_seed(0)
    q = noise(mu, sigma)
    log_z = q.rsample(torch.Size([5000])).log().numpy()
    assert log_z.min() >= LOW
    assert log_z.max() <= HIGH
    bounds = ((LOW - mu) / sigma, (HIGH - mu) / sigma)
    assert stats.kstest(log_z, stats.truncnorm(*bounds, mu, sigma).cdf).pvalue > 1e-4


@pytest.mark.parametrize(("mu", "sigma"), PARAMETERS)
def test_gradients_are_those_of_finite_differences(mu, sigma):
    loc, scale = double(mu).requires_grad_(), double(sigma).requires_grad_()

    def kl(m, s):
        return kl_divergence(noise(m, s), TruncatedLogUniform(double(LOW), double(HIGH)))

    step = 1e-3 * sigma
    for f in (kl, lambda m, s: noise(m, s).mean.log(), lambda m, s: noise(m, s).variance.log()):
        for gradient, (dm, ds) in zip(
            torch.autograd.grad(f(loc, scale), (loc, scale)), ((1, 0), (0, 1)), strict=True
        ):
            with torch.no_grad():
                up, down = (f(loc + sign * dm * step, scale + sign * ds * step) for sign in (1, -1))
            assert gradient.item() == pytest.approx(
                ((up - down) / (2 * step)).item(), rel=1e-3, abs=1e-3 / sigma
            )


@pytest.mark.parametrize(("mu", "sigma"), [*PARAMETERS, (5.0, 0.1)])
def test_draws_have_the_gradient_of_their_quantile(mu, sigma):
    for u in (0.02, 0.5, 0.97):
        values = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TruncatedLogNormal, "_uniform", lambda self, shape, u=u: double(u))
            loc, scale = double(mu).requires_grad_(), double(sigma).requires_grad_()
            draw = noise(loc, scale).rsample().log()
            gradients = torch.autograd.grad(draw, (loc, scale))
            step = 1e-4 * sigma
            for m, s in (
                (mu + step, sigma),
                (mu - step, sigma),
                (mu, sigma + step),
                (mu, sigma - step),
            ):
                values.append(noise(m, s).rsample().log().item())
        for gradient, (up, down) in zip(gradients, (values[:2], values[2:]), strict=True):
            # at the far end of a truncated tail the draw hardly depends on anything
            assert gradient.item() == pytest.approx(
                (up - down) / (2 * step), rel=1e-3, abs=1e-6 / sigma
            )


def test_values_and_gradients_are_finite_far_outside_the_bounds():
    for mu in (-1e3, -25.0, 0.0, 3.0, 1e3):
        for sigma in (1e-4, 1e-2, 1.0, 1e3):
            loc, scale = (
                torch.tensor(mu, requires_grad=True),
                torch.tensor(sigma, requires_grad=True),
            )
            q = TruncatedLogNormal(loc, scale)
            kl = kl_divergence(q, TruncatedLogUniform(LOW, HIGH))
            (kl + q.rsample() + q.mean).backward()
            for value in (kl, q.mean, q.variance, q.signal_to_noise, loc.grad, scale.grad):
                assert value.isfinite(), (mu, sigma)
            assert kl > -1e-4


def test_the_distribution_of_infinite_width_is_the_prior():
    q, p = noise(-10.0, 1e4), TruncatedLogUniform(double(LOW), double(HIGH))
    assert abs(kl_divergence(q, p).item()) < 1e-6
    assert q.mean.item() == pytest.approx(p.mean.item(), rel=1e-5)
    assert q.variance.item() == pytest.approx(p.variance.item(), rel=1e-5)
    assert p.mean.item() == pytest.approx(integrate.quad(lambda t: math.exp(t) / 20, -20, 0)[0])
    torch.manual_seed(0)
    assert (
        stats.kstest(p.sample(torch.Size([5000])).log().numpy(), stats.uniform(-20, 20).cdf).pvalue
        > 1e-4
    )
    assert kl_divergence(noise(0.0, 1.0, high=1.0), p) == math.inf  # mass where the prior has none
