"""Draws and predictions are the same, vectorized or one by one, in chunks or as a whole."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.guides import MeanField
from pyro_bnn.models import hidden_layer_regression
from pyro_bnn.posterior.draw_source import DrawSource
from tests.posterior import ensembles
from tests.posterior.programs import Branch, X, classifier, network, posterior_of


def by_hand(posterior, x, draws):
    """Average the networks' distributions with plain modules and a loop."""
    weights = posterior.sample(draws)
    outputs = []
    for index in range(draws):
        drawn = posterior.model.network_with(
            {name: weights[name][index] for name in posterior.model.names}
        ).eval()
        with torch.no_grad():
            outputs.append(drawn(x).softmax(-1))
    return torch.stack(outputs)


@pytest.mark.parametrize("make", [network, Branch])
def test_vectorized_and_looped_predictions_have_the_same_distribution(make):
    """Class probabilities of 600 draws on each side: 5 standard errors of the difference."""
    torch.manual_seed(2)
    model = BayesianNet(make(), priors.Normal(1.0), likelihoods.Categorical(), 20)
    posterior = posterior_of(model, scale=0.8)
    got = torch.cat([part["probs"] for part in posterior.components(X, draws=600)])
    expected = by_hand(posterior, X, 600)
    assert got.shape == expected.shape
    error = ((got.var(0) + expected.var(0)) / 600).sqrt()
    assert ((got.mean(0) - expected.mean(0)).abs() < 5 * error).all()
    assert ((got.square().mean(0) - expected.square().mean(0)).abs() < 10 * error).all()
    assert torch.allclose(posterior.predict(X, draws=600).mean, got.mean(0), atol=1e-6)


def test_stored_draws_are_used_exactly():
    model = classifier()
    posterior = Posterior.from_draws(model, posterior_of(model, 0.5).draws)
    for maker in (model, BayesianNet(Branch(), priors.Normal(), likelihoods.Categorical(), 5)):
        posterior = Posterior.from_draws(maker, posterior_of(maker, 0.5).draws)
        assert torch.allclose(
            posterior.predict(X, draws=100).mean, by_hand(posterior, X, 100).mean(0), atol=1e-6
        )


def test_a_guide_or_prior_that_cannot_be_vectorized_is_run_draw_by_draw():
    class Hesitant(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2, 3))

        def forward(self, *args):
            value = pyro.sample("weight", dist.Normal(self.loc, 1.0).to_event(2))
            assert float(value.sum()) < 1e9

    def prior(name, shape, group_dim):
        value = pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))
        assert float(value.sum()) < 1e9
        return value

    model = BayesianNet(nn.Linear(3, 2), prior, likelihoods.Categorical(), 5)
    posterior = Posterior.from_guide(model, Hesitant())
    weights = posterior.sample(6)["weight"]
    assert weights.shape == (6, 2, 3)
    assert len(weights.flatten(1).unique(dim=0)) == 6
    assert posterior.predict(X, draws=3).mean.shape == (5, 2)


def test_batch_normalisation_and_dropout_predict_as_in_evaluation():
    layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model = BayesianNet(layers, priors.Normal(), likelihoods.Categorical(), 5)
    model.train()
    posterior = posterior_of(model)
    together = posterior.predict(X, draws=6).mean
    alone = torch.cat([posterior.predict(x[None], draws=6).mean for x in X])
    assert torch.allclose(together, alone, atol=1e-6)
    assert int(posterior.model.state_dict()["net.1.num_batches_tracked"]) == 0


def test_a_hand_written_model_predicts():
    model = hidden_layer_regression(5)
    x, y = torch.linspace(-1, 1, 5)[:, None], torch.zeros(5)
    posterior = Posterior.from_guide(model, MeanField(model, x, y))
    prediction = posterior.predict(x, draws=10)
    assert prediction.mean.shape == (5,)
    sites = posterior.sample(400)
    assert (sites["noise"] > 0).all()
    assert prediction.aleatoric.mean() == pytest.approx(
        float(sites["noise"].square().mean()), rel=0.1
    )


def test_a_model_without_data_cannot_predict():
    def silent(x, y=None):
        pyro.sample("weight", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="no unobserved data site"):
        Posterior.from_guide(silent, MeanField(silent, X)).predict(X)


@pytest.mark.parametrize("given", [False, True])
def test_memory_does_not_grow_with_the_number_of_draws(given, monkeypatch):
    posterior = ensembles.classifier()
    if given:
        posterior = Posterior.from_draws(posterior.model, posterior.draws)
    monkeypatch.setattr("pyro_bnn.posterior.draw_source.CHUNK", 1000)
    largest, whole = {}, DrawSource.predict_batch

    def spy(self, sites, x):
        result = whole(self, sites, x)
        tensors = [*sites.values(), *result.values()]
        largest[draws] = max(largest.get(draws, 0), *(tensor.numel() for tensor in tensors))
        return result

    monkeypatch.setattr(DrawSource, "predict_batch", spy)
    for draws in (40, 400):
        prediction = posterior.predict(ensembles.X, draws=draws)
        prediction.log_prob(torch.zeros(6).long())
    assert largest[40] == largest[400]
    assert largest[40] <= 1000


def test_the_size_of_chunks_does_not_change_the_prediction(monkeypatch):
    posterior = ensembles.classifier()
    posterior = Posterior.from_draws(posterior.model, posterior.draws)
    whole = posterior.predict(ensembles.X, draws=30)
    for size in (1, 50, 700):
        monkeypatch.setattr("pyro_bnn.posterior.draw_source.CHUNK", size)
        parts = posterior.predict(ensembles.X, draws=30)
        assert torch.allclose(parts.mean, whole.mean, atol=1e-6)
        assert torch.allclose(parts.epistemic, whole.epistemic, atol=1e-6)
