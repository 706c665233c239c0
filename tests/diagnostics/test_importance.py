"""Importance sampling against the conjugate regression, whose densities are known."""

import math
import warnings

import pytest
import torch

from pyro_bnn import Posterior
from pyro_bnn.diagnostics import to_arviz
from pyro_bnn.diagnostics.densities import log_densities
from pyro_bnn.diagnostics.importance import leave_one_out, pareto_k
from pyro_bnn.models import linear_regression
from tests.diagnostics.regression import DATA, N, X, Y, conjugate, exact, leave_one_out_exactly

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz")


def test_psis_estimates_exact_leave_one_out_densities():
    """Each example within 0.05 nats; over seeds the largest error is about 0.01."""
    posterior = exact(4, 1000)
    log_likelihood = torch.as_tensor(
        to_arviz(posterior, DATA, prior_draws=0)["log_likelihood"]["y"].values
    )
    loo = leave_one_out(log_likelihood)
    assert (loo.pointwise - leave_one_out_exactly()).abs().max() < 0.05
    assert loo.k.max() < loo.threshold == 0.7
    # not the trivial answer, the density of the data in the posterior that has seen them
    seen = log_likelihood.flatten(0, 1).logsumexp(0) - math.log(4000)
    assert (seen - leave_one_out_exactly()).abs().max() > 0.1
    # ArviZ estimates the number of effective draws otherwise, which moves the tail
    theirs = az.loo(to_arviz(posterior, DATA, prior_draws=0))
    assert loo.elpd == pytest.approx(theirs.elpd_loo, abs=0.02)
    assert loo.standard_error == pytest.approx(theirs.se, abs=0.02)


def test_k_hat_tells_good_guides_from_narrow_ones():
    """log p - log q of exact draws is constant; draws of a third of the width miss the tails.

    In ten dimensions, over seeds, k-hat of 2000 draws is above 1 at a third of the width and below
    0.2 at 1.05 times it.
    """
    torch.manual_seed(0)
    x, y = torch.randn(N, 9, dtype=X.dtype), Y
    mean, covariance = conjugate(x, y)
    noise = torch.randn(2000, 10, dtype=X.dtype) @ torch.linalg.cholesky(covariance).T
    k_hat = {}
    for scale in (1.0, 1.05, 0.3):
        draws = mean + scale * noise
        q = torch.distributions.MultivariateNormal(mean, scale**2 * covariance)
        sites = {"weight": draws[:, :-1], "bias": draws[:, -1]}
        posterior = Posterior.from_draws(
            linear_regression(N, 9), {name: value[None] for name, value in sites.items()}
        )
        k_hat[scale] = pareto_k(
            log_densities(posterior, sites, (x, y)).log_joint, q.log_prob(draws)
        )
    assert k_hat[1.0] == 0.0
    assert k_hat[1.05] < 0.5
    assert k_hat[0.3] > 0.7


def test_k_hat_needs_25_finite_ratios():
    with pytest.raises(ValueError, match=r"at least 25 draws .* got 24"):
        pareto_k(torch.zeros(24), torch.zeros(24))
    with pytest.raises(ValueError, match="NaN or infinity"):
        pareto_k(torch.full((30,), math.inf), torch.zeros(30))
