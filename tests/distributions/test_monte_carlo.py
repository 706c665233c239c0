"""The Monte Carlo estimate of a divergence.

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

from pyro_bnn.distributions import (
    kl_monte_carlo,
)
from tests.distributions.reference import double


def test_the_estimate_for_a_scale_mixture_is_unbiased():
    torch.manual_seed(0)
    q = dist.Normal(double([0.0, 1.2]), double([0.3, 0.8]))
    weights, scales = [0.75, 0.25], [1.0, 0.1]
    p = dist.MixtureSameFamily(
        dist.Categorical(double(weights)), dist.Normal(double([0.0, 0.0]), double(scales))
    )

    def log_ratio(w, loc, scale):
        density = sum(c * stats.norm.pdf(w, 0, s) for c, s in zip(weights, scales, strict=True))
        return stats.norm.logpdf(w, loc, scale) - np.log(density)

    n = 40_000
    estimate = kl_monte_carlo(q, p, n)
    assert estimate.shape == (2,)
    for i, (loc, scale) in enumerate([(0.0, 0.3), (1.2, 0.8)]):
        w = np.linspace(loc - 9 * scale, loc + 9 * scale, 4001)
        pdf, ratio = stats.norm.pdf(w, loc, scale), log_ratio(w, loc, scale)
        exact = np.trapezoid(pdf * ratio, w)
        error = math.sqrt(np.trapezoid(pdf * (ratio - exact) ** 2, w) / n)
        assert abs(estimate[i].item() - exact) < 4 * error


def test_the_estimate_has_the_gradient_of_the_divergence():
    torch.manual_seed(0)
    loc = torch.tensor(1.0, requires_grad=True)
    # KL(N(m, 1) || N(0, 1)) = m²/2; the gradient m + n of log q - log p = m w - m²/2 has the
    # standard error 1/√S
    value = kl_monte_carlo(dist.Normal(loc, 1.0), dist.Normal(0.0, 1.0), 10_000)
    (gradient,) = torch.autograd.grad(value, loc)
    assert abs(gradient - 1) < 4 / math.sqrt(10_000)


def test_no_draws_or_no_reparameterized_draws_raise():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        kl_monte_carlo(dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0), 0)
    with pytest.raises(ValueError, match="Poisson has no reparameterized draws"):
        kl_monte_carlo(dist.Poisson(1.0), dist.Poisson(1.0), 3)
