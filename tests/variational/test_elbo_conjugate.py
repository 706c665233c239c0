"""The ELBO of linear regression, whose posterior and evidence are known."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_bnn import ELBO, BayesianNet, likelihoods, local_reparameterization, priors
from pyro_bnn.guides import (
    MeanField,
    PointEstimate,
)
from pyro_bnn.models import linear_regression
from tests.variational.estimates import agree, double, estimate, gradients, stock_loss, values

pytestmark = pytest.mark.usefixtures("store_stays_empty")


N, D, NOISE, PRIOR = 12, 3, 0.5, 1.5


@pytest.fixture
def conjugate():
    """Linear regression without bias: data, posterior precision and mean, log evidence."""
    x = torch.randn(N, D, dtype=torch.float64) @ double(
        [[1.0, 0.5, 0.0], [0.0, 1.0, -0.4], [0.0, 0.0, 0.7]]
    )
    y = x @ double([1.0, -2.0, 0.5]) + NOISE * torch.randn(N, dtype=torch.float64)
    precision = x.T @ x / NOISE**2 + torch.eye(D, dtype=torch.float64) / PRIOR**2
    mean = torch.linalg.solve(precision, x.T @ y / NOISE**2)
    covariance = NOISE**2 * torch.eye(N, dtype=torch.float64) + PRIOR**2 * x @ x.T
    evidence = float(
        torch.distributions.MultivariateNormal(double([0.0] * N), covariance).log_prob(y)
    )
    return x, y, precision, mean, evidence


def linear_model(**options):
    net = nn.Linear(D, 1, bias=False)
    likelihood = likelihoods.Gaussian(NOISE)
    return BayesianNet(net, priors.Normal(PRIOR), likelihood, num_data=N, **options).double()


def at_optimum(model, precision, mean):
    guide = MeanField(model)
    guide.sites.weight.loc.data = mean[None].clone()
    guide.sites.weight.log_scale.data = -0.5 * precision.diagonal().log()[None]
    return guide


@pytest.mark.parametrize("local", [False, True])
def test_the_gradient_vanishes_at_the_mean_field_optimum(conjugate, local):
    x, y, precision, mean, _ = conjugate
    guide = at_optimum(linear_model(), precision, mean)
    loss = ELBO(linear_model(), local_reparameterization(guide) if local else guide)
    gradient, error = gradients(lambda: loss(x, y), list(loss.parameters()), 20_000)
    assert (gradient.abs() < 5 * error).all()
    assert error.max() < 0.1
    # away from the optimum the gradient does not vanish
    guide.sites.weight.loc.data += 0.5 * precision.diagonal().rsqrt()
    gradient, error = gradients(lambda: loss(x, y), list(loss.parameters()), 20_000)
    assert (gradient.abs() > 10 * error).any()


def test_training_finds_the_ridge_solution_and_its_variances(conjugate):
    x, y, precision, mean, _ = conjugate
    guide = MeanField(linear_model(), init_scale=0.3).double()
    loss = ELBO(linear_model(), local_reparameterization(guide))
    steps = 250
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / steps) ** 1.5)
    for _ in range(steps):
        optimizer.zero_grad()
        values(lambda: loss(x, y), 200).mean().backward()
        optimizer.step()
        schedule.step()
    stddev = precision.diagonal().rsqrt()
    assert ((guide.sites.weight.loc.detach()[0] - mean).abs() < 0.1 * stddev).all()
    assert torch.allclose(guide.sites.weight.log_scale.detach()[0].exp(), stddev, rtol=0.05)


@pytest.mark.parametrize("local", [False, True])
def test_the_elbo_misses_the_log_evidence_by_the_divergence_from_the_posterior(conjugate, local):
    x, y, precision, mean, evidence = conjugate
    guide = at_optimum(linear_model(), precision, mean)
    # KL(N(m, D^-1) || N(m, P^-1)) = (tr P D^-1 - d + log |D| - log |P|) / 2, where D = diag P
    gap = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
    assert gap > 0.1
    loss = ELBO(linear_model(), local_reparameterization(guide) if local else guide)
    value, error = estimate(lambda: loss(x, y), 200_000)
    agree((value, error), (gap - evidence, 0.0), errors=4)
    assert error < gap / 10
    assert value > -evidence


def test_the_full_covariance_guide_reaches_the_log_evidence(conjugate):
    x, y, precision, mean, evidence = conjugate

    def guide(x, y):
        q = dist.MultivariateNormal(mean[None], precision_matrix=precision).to_event(1)
        pyro.sample("weight", q)

    # at the exact posterior, log p(y, w) - log q(w) is the same for every w: there is no error
    loss = ELBO(linear_model(), guide)
    assert torch.allclose(values(lambda: loss(x, y), 20), double(-evidence), rtol=1e-10)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_the_mean_over_disjoint_batches_is_the_full_batch_loss(conjugate, size):
    x, y, *_ = conjugate
    loss = ELBO(linear_model(), PointEstimate(linear_model()))
    batches = [loss(x[i : i + size], y[i : i + size]).item() for i in range(0, N, size)]
    assert np.mean(batches) == pytest.approx(loss(x, y).item(), rel=1e-12)


@pytest.mark.parametrize("size", [1, 4])
def test_the_optimum_is_the_same_for_every_batch_size(conjugate, size):
    x, y, precision, mean, _ = conjugate
    guide = at_optimum(linear_model(), precision, mean)
    loss = ELBO(linear_model(), local_reparameterization(guide))
    total, variance = 0.0, 0.0
    for i in range(0, N, size):
        batch = x[i : i + size], y[i : i + size]
        gradient, error = gradients(
            functools.partial(loss, *batch), list(loss.parameters()), 10_000
        )
        total, variance = total + gradient * size / N, variance + (error * size / N) ** 2
    assert (total.abs() < 5 * variance.sqrt()).all()
    assert variance.max() < 0.01


def test_the_plate_draws_the_minibatch_without_bias(conjugate):
    x, y, *_ = conjugate
    model = linear_model(subsample_size=4)
    loss = ELBO(model, PointEstimate(model))
    full = ELBO(linear_model(), PointEstimate(model))
    # the indices of a plate cannot be vectorized
    drawn = double([loss(x, y).item() for _ in range(400)])
    agree((float(drawn.mean()), float(drawn.std() / 20)), (full(x, y).item(), 0.0), errors=4)
    assert drawn.std() > 1


def test_the_divergence_of_two_gaussians_is_closed(conjugate):
    x, y, *_ = conjugate
    model = linear_model()
    guide = MeanField(model, init_scale=0.2)
    q, p = dist.Normal(guide.sites.weight.loc, 0.2), dist.Normal(double(0.0), PRIOR)
    expected = (
        torch.log(p.scale / q.scale) + (q.scale**2 + q.loc**2) / (2 * p.scale**2) - 0.5
    ).sum()
    assert float(ELBO(model, guide).terms(x, y).kl["weight"].detach()) == pytest.approx(
        expected.item()
    )


def test_a_point_mass_has_the_deterministic_training_loss(conjugate):
    x, y, *_ = conjugate
    model = linear_model()
    guide = PointEstimate(model)
    w = guide.sites.weight.loc.detach()
    square = ((y - x @ w[0]) ** 2).sum() / (2 * NOISE**2) + N * math.log(
        NOISE * math.sqrt(2 * math.pi)
    )
    decay = (w**2).sum() / (2 * PRIOR**2) + D * math.log(PRIOR * math.sqrt(2 * math.pi))
    assert ELBO(model, guide)(x, y).item() == pytest.approx((square + decay).item(), rel=1e-12)


def test_the_loss_of_a_hand_written_program_is_that_of_pyro(conjugate):
    x, y, *_ = conjugate
    model = linear_regression(num_data=N, inputs=D, prior_scale=PRIOR, noise=NOISE)
    guide = MeanField(model, x, y, init_scale=0.2)
    ours = ELBO(model, guide)
    with pyro.get_param_store().scope():
        agree(
            estimate(lambda: ours(x, y), 20_000),
            estimate(lambda: stock_loss(model, guide, x, y), 20_000),
        )
