"""Soft weight sharing: the mixture of the equation, and the recovery of planted values."""

import math

import pytest
import torch
from torch import nn

from pyro_bnn import ELBO, BayesianNet, Posterior, fit, likelihoods, priors
from pyro_bnn.compression import prune
from pyro_bnn.compression.quantization.weight_sharing import WeightSharing, shared
from pyro_bnn.guides import MeanField, PointEstimate


def scattered(levels=4):
    """Return a prior whose parameters are not at their initial values."""
    prior = WeightSharing(
        levels, zero_probability=0.7, variances=(3.0, 0.4), zero_variance=(7.0, 0.1)
    )
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return prior


def components(prior):
    """Return proportions, means and deviations, by the equation alone."""
    share = prior.logits.exp() / prior.logits.exp().sum()
    proportions = torch.cat([torch.tensor([0.7]), 0.3 * share])
    means = torch.cat([torch.zeros(1), prior.means])
    return proportions.tolist(), means.tolist(), prior.log_variances.exp().sqrt().tolist()


def density(w, proportion, mean, deviation):
    return (
        proportion
        * math.exp(-0.5 * ((w - mean) / deviation) ** 2)
        / (deviation * math.sqrt(2 * math.pi))
    )


@torch.no_grad()
def test_responsibilities_are_those_of_the_equation():
    prior = scattered()
    weights = torch.randn(3, 5)
    responsibilities = prior.responsibilities(weights)
    values = prior.shared(weights)
    for index in torch.cartesian_prod(torch.arange(3), torch.arange(5)):
        w = float(weights[tuple(index)])
        terms = [density(w, *component) for component in zip(*components(prior), strict=True)]
        assert responsibilities[tuple(index)].tolist() == pytest.approx(
            [term / sum(terms) for term in terms], rel=1e-4
        )
        mean = components(prior)[1][terms.index(max(terms))]
        assert float(values[tuple(index)]) == pytest.approx(mean, rel=2**-11)
    assert torch.equal(prior.codebook(weights), values.unique()[values.unique() != 0])
    assert torch.equal(values, values.half().float())


def log_inverse_gamma(v, a, b):
    return a * math.log(b) - math.lgamma(a) - (a + 1) * math.log(v) - b / v


@torch.no_grad()
def test_the_loss_is_minus_the_log_joint():
    """-log p(y | x, w) - log p(w | means, variances) - log p(variances), number by number."""
    model = BayesianNet(nn.Linear(3, 1, bias=False), scattered(), likelihoods.Gaussian(0.5), 7)
    prior = model.prior_of("weight")
    guide = PointEstimate(model)
    x, y = torch.randn(7, 3), torch.randn(7)
    weights = model.weights()["weight"][0]
    expected = sum(0.5 * ((y - x @ weights) / 0.5) ** 2 + math.log(0.5 * math.sqrt(2 * math.pi)))
    for w in weights.tolist():
        expected -= math.log(
            sum(density(w, *component) for component in zip(*components(prior), strict=True))
        )
    hyper = [(7.0, 0.1)] + 4 * [(3.0, 0.4)]
    for (a, b), log_variance in zip(hyper, prior.log_variances.tolist(), strict=True):
        expected -= log_inverse_gamma(math.exp(log_variance), a, b)
    assert float(ELBO(model, guide)(x, y)) == pytest.approx(float(expected), rel=1e-5)


def test_every_tensor_learns_a_mixture_of_its_own():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    prior = WeightSharing(5)
    model = BayesianNet(net, prior, likelihoods.Categorical(), 20)
    assert model.prior_of("0.weight") is not model.prior_of("2.weight")
    learned = {name for name in model.free_parameters() if "priors" in name}
    expected = {
        f"priors.{n}/weight.{part}" for n in (0, 2) for part in ("means", "log_variances", "logits")
    }
    assert learned == expected
    x, y = torch.randn(20, 3), torch.randint(2, (20,))
    result = fit(model, PointEstimate(model), (x, y), epochs=3, learning_rate=0.1, progress=False)
    first, second = (result.posterior.model.prior_of(name) for name in ("0.weight", "2.weight"))
    assert not torch.equal(first.means, prior.means)
    assert not torch.equal(first.means, second.means)
    assert float(first.zero_probability) == pytest.approx(0.99)
    assert float(first.log_proportions().exp().sum().detach()) == pytest.approx(1, abs=1e-5)
    assert result.posterior.predict(x, draws=1).mean.shape == (20, 2)


def test_planted_values_are_recovered():
    """64 weights, of which 40 are zero and 24 have three values, from 500 noisy sums of 64.

    Least squares finds a weight to within s = 0.3 / sqrt(500 - 64), about 0.0145. The values are at
    least 17 s apart, so the chance that any of 64 weights gets a wrong one (8 s off) is below
    1e-13. The mean of eight weights is known to 0.005, and 0.02 is four times that.
    """
    planted = torch.tensor([0.0] * 40 + [-0.5] * 8 + [0.25] * 8 + [1.0] * 8)
    x = torch.randn(500, 64)
    y = x @ planted + 0.3 * torch.randn(500)
    net = nn.Linear(64, 1, bias=False)
    nn.init.normal_(net.weight, 0, 0.1)
    prior = WeightSharing(6, reach=1.0, zero_probability=0.6, zero_variance=(250.0, 0.1))
    model = BayesianNet(net, prior, likelihoods.Gaussian(0.3), 500)
    decaying = {"epochs": 250, "learning_rate": lambda epoch: 0.03 * (1 - epoch / 250)}
    result = fit(model, PointEstimate(model), (x, y), progress=False, **decaying)
    network = result.posterior.mean_network()
    fitted = result.posterior.model.prior_of("weight")
    found = shared(network, {"weight": fitted}).weight.detach()[0]
    assert torch.equal(found == 0, planted == 0)
    assert float((found - planted).abs().max()) < 0.02
    assert len(fitted.codebook(network.weight.detach())) == 3
    assert len(network.weight.unique()) > 30  # the argument is not changed


def test_a_pruned_network_is_shared_within_its_support():
    model = BayesianNet(nn.Linear(8, 3), priors.Normal(), likelihoods.Categorical(), 10)
    guide = MeanField(model, init_scale=0.01)
    with torch.no_grad():
        guide.families()["weight"].log_scale[:, ::2] = 3.0
    pruned = prune(Posterior.from_guide(model, guide))
    prior = scattered()
    small = shared(pruned, {"weight": prior})
    weight = dict(pruned.module.named_parameters())["weight"].detach()
    expected = torch.where(weight == 0, 0, prior.shared(weight))
    assert torch.equal(dict(small.module.named_parameters())["weight"], expected)
    assert small.report[0].kept == int((expected != 0).sum())


def test_impossible_settings_and_unknown_names_are_errors():
    for options in (
        {"levels": 1},
        {"zero_probability": 1.0},
        {"variances": (0.0, 1.0)},
        {"reach": -1.0},
    ):
        with pytest.raises(ValueError, match="WeightSharing: expected two levels or more"):
            WeightSharing(**options)
    with pytest.raises(
        ValueError, match="the network has no weight 'fc'; its weights are weight, bias"
    ):
        shared(nn.Linear(2, 2), {"fc": WeightSharing()})
