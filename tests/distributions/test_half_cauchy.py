"""Divergences of log-normal posteriors from priors of scales, against quadrature.

Statistical tests have fixed seeds, so they pass or fail for good; on a fresh seed each would fail
falsely with a probability of 6e-5 per compared number at 4 standard errors (6e-7 at 5), two-sided,
and 1e-4 where a p-value decides.
"""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import kl_divergence

from pyro_bnn.distributions import (
    half_cauchy_as_product,
)
from tests.distributions.reference import double, expectation


def log_normal_kl(loc, scale, log_density):
    """KL of LogNormal(loc, scale) by quadrature over y = log z.

    ``log_density`` is that of y, so the Jacobian cancels.
    """
    entropy = 0.5 * math.log(2 * math.pi * math.e * scale**2)
    return -entropy - expectation(log_density, loc, scale)


@pytest.mark.parametrize("log_sd", [0.05, 0.3, 1.0, 2.0, 4.0])
@pytest.mark.parametrize(("loc", "tau"), [(0.0, 1.0), (-3.0, 1.0), (0.7, 1e-3), (1.5, 20.0)])
def test_the_divergence_from_a_half_cauchy_equals_quadrature(log_sd, loc, tau):
    def log_density(y):
        return math.log(2 / (math.pi * tau)) - np.logaddexp(0, 2 * (y - math.log(tau))) + y

    value = kl_divergence(dist.LogNormal(double(loc), double(log_sd)), dist.HalfCauchy(double(tau)))
    assert value.item() == pytest.approx(log_normal_kl(loc, log_sd, log_density), abs=1e-5)


@pytest.mark.parametrize("log_sd", [0.3, 1.0])
@pytest.mark.parametrize(("concentration", "rate"), [(0.5, 1.0), (0.5, 6.25), (2.5, 0.7)])
def test_the_divergences_from_gamma_and_inverse_gamma_equal_quadrature(log_sd, concentration, rate):
    loc = -0.4
    q = dist.LogNormal(double(loc), double(log_sd))
    gamma, inverse = (
        stats.gamma(concentration, scale=1 / rate),
        stats.invgamma(concentration, scale=rate),
    )
    for p, truth in (
        (dist.Gamma(double(concentration), double(rate)), gamma),
        (dist.InverseGamma(double(concentration), double(rate)), inverse),
        (torch.distributions.InverseGamma(double(concentration), double(rate)), inverse),
    ):
        expected = log_normal_kl(loc, log_sd, lambda y, truth=truth: truth.logpdf(math.exp(y)) + y)
        assert kl_divergence(q, p).item() == pytest.approx(expected, abs=1e-8)


def test_divergences_of_the_decomposed_horseshoe_equal_reference_values():
    q = dist.LogNormal(double(-1.2), double(math.sqrt(0.3)))
    a, b = half_cauchy_as_product(double(math.sqrt(0.4)))
    assert kl_divergence(q, a).item() == pytest.approx(0.77211, abs=6e-6)
    assert kl_divergence(q, b).item() == pytest.approx(3.01284, abs=6e-6)
    best = dist.LogNormal(double(math.log(0.4 / 2) - 1), double(math.sqrt(2)))
    assert kl_divergence(best, a).item() == pytest.approx(0.15343, abs=6e-6)


def test_a_half_cauchy_variable_is_the_root_of_the_product_of_its_factors():
    torch.manual_seed(0)
    for tau in (0.3, 5.0):
        a, b = half_cauchy_as_product(tau)
        s = (a.sample((20_000,)) * b.sample((20_000,))).sqrt()
        assert stats.kstest(s.numpy(), stats.halfcauchy(scale=tau).cdf).pvalue > 1e-4


def test_divergences_of_scales_have_exact_gradients_and_broadcast():
    loc, sd, tau = (double(x).requires_grad_() for x in ([-1.0, 0.4], [0.3, 1.1], 0.7))
    assert torch.autograd.gradcheck(
        lambda m, s, t: kl_divergence(dist.LogNormal(m, s), dist.HalfCauchy(t)), (loc, sd, tau)
    )
    for family in (dist.Gamma, dist.InverseGamma):
        assert torch.autograd.gradcheck(
            lambda m, s, t, family=family: kl_divergence(dist.LogNormal(m, s), family(t, t + 1)),
            (loc, sd, tau),
        )
    q, single = dist.LogNormal(torch.zeros(4, 1), 1.0), dist.LogNormal(0.0, 1.0)
    priors = (
        dist.HalfCauchy(torch.ones(3)),
        dist.Gamma(torch.ones(3), 1.0),
        dist.InverseGamma(torch.ones(3), 1.0),
    )
    for p in priors:
        torch.testing.assert_close(kl_divergence(q, p), kl_divergence(single, p).expand(4, 3))
        torch.testing.assert_close(
            kl_divergence(q.expand([4, 3]).to_event(1), p.to_event(1).expand([4])),
            3 * kl_divergence(q, p)[:, 0],
        )
    assert kl_divergence(single, priors[0]).dtype == torch.float32
