"""A posterior has the same interface whatever the inference was.

Statistical checks have fixed seeds and 5 standard errors (false-alarm rate below 1e-6 each).
"""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from torch import nn

from pyro_bnn import BayesianNet, Posterior, fit, likelihoods, priors
from pyro_bnn.guides import MeanField
from pyro_bnn.models import LeNet300100, linear_regression
from tests.posterior.programs import (
    X,
    are_equal,
    classifier,
    function_guide,
    network,
    posterior_of,
)


def test_a_sample_has_every_weight_in_its_shape():
    model = BayesianNet(
        LeNet300100(inputs=6, hidden=(5, 4)), priors.LogUniform(), likelihoods.Categorical(), 10
    )
    weights = posterior_of(model).sample(100)
    shapes = {"fc1.weight": (100, 5, 6), "fc2.weight": (100, 4, 5), "fc3.weight": (100, 10, 4)}
    assert {name: tuple(value.shape) for name, value in weights.items()} == shapes
    assert not any(value.requires_grad for value in weights.values())


PRIORS = {
    "jeffreys": priors.NormalJeffreys(),
    "horseshoe": priors.Horseshoe(),
    "slab": priors.Horseshoe(slab=2.0),
    "decomposed": priors.Horseshoe(decomposed=True),
    "per weight": priors.Horseshoe(group=None),
}


@pytest.mark.parametrize("name", PRIORS)
def test_the_weights_follow_from_their_sites(name):
    model = classifier(PRIORS[name])
    draws = posterior_of(model).sample(7, seed=3)
    for weight in ("0.weight", "2.weight"):
        unit = draws[f"{weight}.unit"]
        if name == "decomposed":
            z = (draws[f"{weight}.scale.gamma"] * draws[f"{weight}.scale.inverse_gamma"]).sqrt()
            s = (
                draws[f"{weight}.global_scale.gamma"]
                * draws[f"{weight}.global_scale.inverse_gamma"]
            ).sqrt()
        else:
            z, s = draws[f"{weight}.scale"], draws.get(f"{weight}.global_scale", torch.ones(()))
        scale = z * s
        if name == "slab":
            scale = 2 * scale / (4 + scale.square()).sqrt()
        assert torch.allclose(draws[weight], unit * scale, rtol=1e-5)
        assert draws[weight].shape == (
            7,
            *model.net.get_submodule(weight.split(".")[0]).weight.shape,
        )
    assert not torch.allclose(draws["0.weight"][0], draws["0.weight"][1])


def test_moments_of_draws_are_the_moments_of_the_guide():
    """Sample means of 4000 draws within 5 standard errors, variances within 5 * sqrt(2 / 4000)."""
    posterior = posterior_of(classifier(), scale=0.3)
    weights = posterior.sample(4000)
    for name, (mean, variance) in posterior.moments().items():
        assert ((weights[name].mean(0) - mean).abs() < 5 * (variance / 4000).sqrt()).all()
        assert ((weights[name].var(0) / variance - 1).abs() < 5 * math.sqrt(2 / 4000)).all()


def test_a_seed_fixes_the_draws_and_leaves_the_global_state_alone():
    posterior = posterior_of(classifier(priors.Horseshoe()))
    pyro.param("mine", torch.tensor(1.0))
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    a, b, c = posterior.sample(5, seed=1), posterior.sample(5, seed=1), posterior.sample(5, seed=2)
    p, q, r = (posterior.predict(X, draws=5, seed=seed).mean for seed in (1, 1, 2))
    _ = posterior.draws, posterior.moments(), posterior.mean_network()
    assert torch.equal(torch.rand(3), expected)
    assert are_equal(a, b)
    assert not torch.equal(a["0.weight"], c["0.weight"])
    assert torch.equal(p, q)
    assert not torch.equal(p, r)
    assert list(pyro.get_param_store().keys()) == ["mine"]


def test_draws_of_a_guide_are_one_chain_of_100():
    posterior = posterior_of(classifier(priors.NormalJeffreys()))
    assert {name: tuple(value.shape) for name, value in posterior.draws.items()} == {
        "0.weight.scale": (1, 100, 1, 3),
        "0.weight.unit": (1, 100, 4, 3),
        "2.weight.scale": (1, 100, 1, 4),
        "2.weight.unit": (1, 100, 2, 4),
    }


def test_stored_draws_are_pooled_and_repeated_only_when_all_are_used():
    posterior = posterior_of(classifier(priors.NormalJeffreys()))
    values = {name: torch.randn(3, 10, *value.shape[2:]) for name, value in posterior.draws.items()}
    stored = Posterior.from_draws(posterior.model, values)
    assert are_equal(stored.draws, values)
    pooled = stored.sample(30)
    flat = values["0.weight.unit"].flatten(0, 1)
    order = [int((flat == one).flatten(1).all(1).nonzero()) for one in pooled["0.weight.unit"]]
    assert sorted(order) == list(range(30))  # each once
    assert order != sorted(order)
    assert torch.equal(pooled["0.weight"], pooled["0.weight.unit"] * pooled["0.weight.scale"])
    again = stored.sample(75)["0.weight.unit"]
    counts = torch.stack([(again == one).flatten(1).all(1).sum() for one in flat])
    assert counts.min() == 2
    assert counts.max() == 3
    values["0.weight.unit"].zero_()
    assert not torch.equal(stored.draws["0.weight.unit"], values["0.weight.unit"])


def test_draws_must_be_finite_and_of_one_shape():
    model = linear_regression(5)
    good = {"weight": torch.zeros(2, 3, 1), "bias": torch.zeros(2, 3)}
    for name, bad in {"weight": torch.zeros(2, 4, 1), "bias": torch.zeros(2)}.items():
        with pytest.raises(ValueError, match=r"same shape \(chain, draw, ...\) for all sites"):
            Posterior.from_draws(model, good | {name: bad})
    for bad in ({}, {"bias": torch.zeros(2, 0)}):
        with pytest.raises(ValueError, match=r"same shape \(chain, draw"):
            Posterior.from_draws(model, bad)
    with pytest.raises(ValueError, match="'bias' contain NaN or infinity"):
        Posterior.from_draws(model, good | {"bias": torch.full((2, 3), math.nan)})


def test_draws_must_have_every_site_of_the_network():
    model = BayesianNet(
        nn.Linear(3, 2), {"*": priors.Normal()}, likelihoods.Categorical(), num_data=4
    )
    weight, bias = torch.randn(1, 5, 2, 3), torch.randn(1, 5, 2)
    assert Posterior.from_draws(model, {"weight": weight, "bias": bias}).predict(
        torch.randn(4, 3)
    ).mean.shape == (4, 2)
    with pytest.raises(ValueError, match="site 'bias': expected draws of shape \\(2,\\), got none"):
        Posterior.from_draws(model, {"weight": weight})
    with pytest.raises(ValueError, match="site 'weight': expected draws of shape \\(2, 3\\)"):
        Posterior.from_draws(model, {"weight": weight.mT, "bias": bias})


@pytest.mark.parametrize("num", [0, -1])
def test_a_sample_needs_at_least_one_draw(num):
    with pytest.raises(ValueError, match="at least one draw"):
        posterior_of(classifier()).sample(num)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


@pytest.mark.parametrize(
    "make", [network, Tied, lambda: LeNet300100(inputs=3, hidden=(4, 3), outputs=2)]
)
@pytest.mark.parametrize("prior", [priors.Normal(1.0), priors.Horseshoe()])
def test_the_mean_network_is_the_network_with_the_means(make, prior):
    original = make()
    model = BayesianNet(original, prior, likelihoods.Categorical(), 20)
    posterior = posterior_of(model)
    mean = posterior.mean_network()
    assert type(mean) is type(original)
    values = dict(original.state_dict()) | {
        name: value for name, (value, _) in posterior.moments().items()
    }
    if "b.weight" in values:
        values["b.weight"] = values["a.weight"]
        assert mean.a.weight is mean.b.weight
    expected = torch.func.functional_call(original, values, (X,), tie_weights=False)
    assert torch.equal(mean(X), expected)
    assert {name for name, _ in mean.named_parameters()} == {
        name for name, _ in original.named_parameters()
    }
    with torch.no_grad():
        for parameter in mean.parameters():
            parameter.zero_()
    assert not torch.equal(posterior.mean_network()(X), mean(X))  # a copy


def test_a_hand_written_program_has_no_mean_network():
    model = linear_regression(5, inputs=3)
    posterior = Posterior.from_guide(model, MeanField(model, X, torch.zeros(5)))
    with pytest.raises(TypeError, match="hand-written program has no network"):
        posterior.mean_network()
    assert set(posterior.sample(4)) == {"weight", "bias"}


def test_moments_are_copies_and_exist_for_a_single_draw():
    posterior = posterior_of(classifier())
    for mean, variance in posterior.moments().values():
        mean.zero_()
        variance.zero_()
    assert posterior.moments()["0.weight"][0].abs().min() > 0
    one = Posterior.from_draws(
        classifier(), {name: value[:, :1] for name, value in posterior.draws.items()}
    )
    assert torch.equal(one.mean_network()[0].weight, one.draws["0.weight"][0, 0])
    with pytest.raises(ValueError, match="has no variance"):
        one.as_prior()


def test_refitting_changes_no_earlier_posterior():
    model = classifier()
    guide = MeanField(model)
    y = torch.tensor([0, 1, 0, 1, 0])
    model.num_data = 5
    first = fit(model, guide, (X, y), epochs=3, learning_rate=0.1, progress=False)
    before = first.posterior.predict(X).mean
    second = fit(first.model, first.guide, (X, y), epochs=3, learning_rate=0.1, progress=False)
    assert torch.equal(first.posterior.predict(X).mean, before)
    assert not torch.equal(second.posterior.predict(X).mean, before)
    by_hand = Posterior.from_guide(model, guide)
    before = by_hand.predict(X).mean
    with torch.no_grad():
        for parameter in (*model.parameters(), *guide.parameters()):
            parameter.add_(1.0)
    assert torch.equal(by_hand.predict(X).mean, before)
    assert model.training
    assert guide.training


@pytest.mark.parametrize("kind", [AutoNormal, AutoLowRankMultivariateNormal])
def test_stock_guides_are_copied_and_remain_usable(kind):
    model = classifier()
    guide = kind(model, init_scale=0.1)
    y = torch.zeros(5).long()
    guide(X, y)
    posterior = Posterior.from_guide(model, guide)
    before = posterior.predict(X, draws=20).mean
    assert guide.model is not None
    guide(X, y)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(1.0)
    assert torch.equal(posterior.predict(X, draws=20).mean, before)
    assert set(posterior.sample(3)) == {"0.weight", "2.weight"}


def test_a_function_trained_by_stock_svi_becomes_a_posterior():
    model = linear_regression(5, inputs=3)
    y = X @ torch.tensor([1.0, 2.0, -1.0])
    svi = SVI(model, function_guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(20):
        svi.step(X, y)
    learned = {name: pyro.param(name).detach().clone() for name in ("loc", "scale", "b.loc")}
    posterior = Posterior.from_guide(model, function_guide, X, y)
    svi.step(X, y)
    pyro.clear_param_store()
    draws = posterior.sample(4000)
    assert (
        (draws["weight"].mean(0) - learned["loc"]).abs() < 5 * learned["scale"] / math.sqrt(4000)
    ).all()
    assert ((draws["weight"].std(0) / learned["scale"] - 1).abs() < 5 / math.sqrt(8000)).all()
    assert not list(pyro.get_param_store().keys())
