"""The likelihoods against torch's losses and scipy's densities."""

import math

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from scipy import stats
from torch import nn

from pyro_bnn import BayesianNet, likelihoods, priors


def test_categorical_is_the_cross_entropy():
    outputs, y = torch.randn(7, 4), torch.randint(4, (7,))
    q = likelihoods.Categorical()(outputs)
    assert q.batch_shape == (7,)
    assert torch.allclose(q.log_prob(y), -F.cross_entropy(outputs, y, reduction="none"))


@pytest.mark.parametrize("shape", [(7,), (7, 1)])
def test_bernoulli_is_the_binary_cross_entropy(shape):
    outputs, y = torch.randn(shape), torch.randint(2, (7,)).float()
    q = likelihoods.Bernoulli()(outputs)
    assert q.batch_shape == (7,)
    expected = -F.binary_cross_entropy_with_logits(outputs.reshape(7), y, reduction="none")
    assert torch.allclose(q.log_prob(y), expected)


def test_bernoulli_with_several_labels_sums_over_them():
    outputs, y = torch.randn(7, 3), torch.randint(2, (7, 3)).float()
    q = likelihoods.Bernoulli()(outputs)
    assert (q.batch_shape, q.event_shape) == ((7,), (3,))
    assert torch.allclose(
        q.log_prob(y), -F.binary_cross_entropy_with_logits(outputs, y, reduction="none").sum(-1)
    )


@pytest.mark.parametrize("shape", [(7,), (7, 1), (1, 1)])
def test_gaussian_drops_a_trailing_axis_of_size_one(shape):
    outputs, y = torch.randn(shape), torch.randn(shape[0])
    q = likelihoods.Gaussian(0.3)(outputs)
    assert q.batch_shape == (shape[0],)
    expected = stats.norm.logpdf(y, outputs.reshape(-1), 0.3)
    assert torch.allclose(q.log_prob(y), torch.as_tensor(expected, dtype=torch.float32), rtol=1e-4)


@pytest.mark.parametrize("shape", [(7, 3), (7, 2, 3)])
def test_gaussian_with_several_outputs_sums_over_them(shape):
    outputs, y = torch.randn(shape), torch.randn(shape)
    q = likelihoods.Gaussian(0.3)(outputs)
    assert (q.batch_shape, q.event_shape) == ((7,), shape[1:])
    expected = stats.norm.logpdf(y, outputs, 0.3).reshape(7, -1).sum(-1)
    assert torch.allclose(q.log_prob(y), torch.as_tensor(expected, dtype=torch.float32), rtol=1e-4)


def test_the_learned_noise_is_the_standard_deviation_of_the_residuals():
    likelihood = likelihoods.Gaussian()
    residual = 0.2 * torch.randn(500)
    optimizer = torch.optim.LBFGS(likelihood.parameters(), line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -likelihood(torch.zeros(500)).log_prob(residual).sum()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    assert likelihood.log_scale.exp().item() == pytest.approx(
        residual.square().mean().sqrt().item(), rel=1e-4
    )


@pytest.mark.parametrize(
    "prior", [dist.HalfNormal(0.5), torch.distributions.LogNormal(0.0, 0.1), dist.Gamma(2.0, 1.0)]
)
def test_an_inferred_noise_is_one_site_outside_the_plate(prior):
    model = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(prior), num_data=5)
    x, y = torch.randn(5, 3), torch.randn(5)
    trace = poutine.trace(model).get_trace(x, y)
    site = trace.nodes["noise"]
    assert site["value"].shape == ()
    assert not site["cond_indep_stack"]
    assert float(site["fn"].log_prob(torch.tensor(0.7))) == pytest.approx(
        float(prior.log_prob(torch.tensor(0.7)))
    )
    assert torch.equal(trace.nodes["y"]["fn"].scale, site["value"].expand(5))
    assert not list(model.likelihood.parameters())


def test_any_function_of_the_outputs_is_a_likelihood():
    model = BayesianNet(
        nn.Linear(3, 1),
        priors.Normal(),
        lambda outputs: dist.Poisson(outputs.exp().squeeze(-1)),
        num_data=5,
    )
    y = torch.arange(5.0)
    site = poutine.trace(model).get_trace(torch.randn(5, 3), y).nodes["y"]
    assert site["fn"].log_prob(y).shape == (5,)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_noise_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match="noise scale above zero"):
        likelihoods.Gaussian(scale)


def test_the_noise_follows_to_double_precision():
    for likelihood in (
        likelihoods.Gaussian(0.3),
        likelihoods.Gaussian(),
        likelihoods.Gaussian(dist.HalfNormal(1.0)),
    ):
        likelihood = likelihood.double()
        assert (
            likelihood(torch.zeros(2, dtype=torch.float64), **likelihood.sites()).scale.dtype
            == torch.float64
        )
