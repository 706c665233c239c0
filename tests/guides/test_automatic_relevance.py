"""Automatic relevance determination as a prior of networks: which weights training prunes."""

import math

import pytest
import torch
from torch import nn

from pyro_bnn import ELBO, BayesianNet, fit, likelihoods, mcmc, priors
from pyro_bnn.distributions import (
    ImproperPriorError,
)
from pyro_bnn.guides import GaussianDropout as GaussianDropoutGuide
from pyro_bnn.guides import MeanField, SparseVariationalDropout
from tests.guides.group_networks import (
    X,
    Y,
    model_of,
)


@pytest.mark.parametrize(
    "kind", [pytest.param(MeanField, marks=pytest.mark.slow), SparseVariationalDropout]
)
def test_training_prunes_at_one_standard_error_on_an_orthogonal_design(kind):
    torch.manual_seed(1)
    n, noise = 64, 0.5
    x = torch.linalg.qr(torch.randn(n, 6))[0] * math.sqrt(n)
    error = noise / math.sqrt(n)
    ratios = torch.tensor(
        [0.1, 0.4, 2.0, 4.0, 10.0, -0.3]
    )  # of the maximum-likelihood value to its error
    residual = torch.randn(n)
    residual -= x @ (x.T @ residual) / n  # orthogonal to the inputs, so that the ratios are exact
    y = x @ (ratios * error) + noise * residual
    net = nn.Linear(6, 1, bias=False)
    nn.init.constant_(net.weight, 0.1)
    model = BayesianNet(net, priors.AutomaticRelevance(), likelihoods.Gaussian(noise), num_data=n)
    options = {"clip": None, "mask": None} if kind is SparseVariationalDropout else {}
    result = fit(
        model,
        kind(model, **options),
        (x, y),
        epochs=1200,
        learning_rate=lambda e: 0.02 * (1 - e / 1200),
        progress=False,
    )
    mean, variance = result.posterior.moments()["weight"]
    log_alpha = (variance / mean.square()).log().flatten()
    alive = ratios.abs() > 1
    assert (log_alpha[~alive] > 3).all()
    r = 1 / ratios[alive] ** 2
    assert torch.allclose(
        log_alpha[alive], (r / (1 - r)).log(), atol=0.6
    )  # a step's noise in a scale of 4 nats
    assert (log_alpha[alive] < 1).all()


@pytest.mark.parametrize("kind", [MeanField, SparseVariationalDropout, GaussianDropoutGuide])
def test_guides_use_the_closed_divergence(kind):
    model = model_of(priors.AutomaticRelevance())
    guide = kind(model)
    kl = ELBO(model, guide).terms(X, Y).kl
    for name, (mean, variance) in guide.moments().items():
        if kind is SparseVariationalDropout:
            variance = (guide.log_alpha()[name]).exp() * mean.square()
        expected = 0.5 * torch.log1p(mean.square() / variance).sum()
        assert kl[name].item() == pytest.approx(expected.item(), rel=1e-3)


def test_groups_are_input_units_and_output_channels():
    model = model_of(priors.AutomaticRelevance(group=True))
    guide = MeanField(model, init_scale=0.3)
    kl = ELBO(model, guide).terms(X, Y).kl
    for name, axis in (("0.weight", 0), ("3.weight", 1)):
        mean, variance = (t.double() for t in guide.moments()[name])
        square = mean.square() + variance
        pooled = square.movedim(axis, 0).flatten(1).mean(1)
        size = square.numel() // square.shape[axis]
        expected = 0.5 * (size * pooled.log().sum() - variance.log().sum())
        assert kl[name].item() == pytest.approx(expected.item(), rel=1e-5)
    whole = BayesianNet(
        nn.Linear(3, 2), {"*": priors.AutomaticRelevance(group=True)}, likelihoods.Categorical(), 8
    )
    assert ELBO(whole, MeanField(whole))(
        X.flatten(1)[:, :3], Y
    ).isfinite()  # biases: each a group of its own


def test_samplers_and_prior_predictions_raise():
    model = model_of({"*": priors.AutomaticRelevance()})
    with pytest.raises(ImproperPriorError, match=r"LearnedNormal"):
        model(X)
    with pytest.raises(ImproperPriorError, match=r"LearnedNormal"):
        mcmc.hmc(model, (X, Y), chains=1, warmup=1, draws=1, progress=False)
