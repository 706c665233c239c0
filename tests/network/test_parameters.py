"""Which parameters a BayesianNet has, and the plain networks that it gives back."""

import warnings

import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_bnn import ELBO, BayesianNet, guides, likelihoods, priors
from tests.network.networks import NETWORKS, Shared, Tied, bayesian, load, networks, new_weights


@networks
def test_free_parameters_are_the_parameters_without_a_site(name):
    make, inputs = NETWORKS[name]
    net, x = make(), inputs()
    model = bayesian(net)
    sites = set(model.names)
    free = {name.removeprefix("net.") for name in model.free_parameters()}
    everything = {name for name, _ in net.named_parameters()}
    assert free == everything - sites
    assert sites <= everything
    assert all(net.get_parameter(name).dim() >= 2 for name in sites)
    # every one of them gets a gradient: there is no dead weight among them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = ELBO(model, guides.MeanField(model))
        loss(x, torch.randint(2, (6,))).backward()
    assert all(p.grad is not None for p in loss.parameters())


@networks
def test_network_with_returns_a_plain_network_with_the_given_weights(name):
    make, inputs = NETWORKS[name]
    net, x = make().eval(), inputs()
    model = bayesian(net).eval()
    weights = new_weights(model)
    back, plain = model.network_with(weights), load(net, model, weights)
    assert type(back) is type(net)
    assert [name for name, _ in back.named_parameters()] == [
        name for name, _ in net.named_parameters()
    ]
    assert back.state_dict().keys() == net.state_dict().keys()
    torch.testing.assert_close(back(x), plain(x))
    net.load_state_dict(back.state_dict())
    torch.testing.assert_close(net(x), plain(x))
    with torch.no_grad():  # it is a copy
        for p in back.parameters():
            p.zero_()
    torch.testing.assert_close(poutine.condition(model, weights)(x), plain(x))


def test_network_with_raises_for_missing_and_misshapen_weights():
    model = bayesian(nn.Linear(3, 2))
    with pytest.raises(
        ValueError, match=r"'weight' of shape \(2, 3\), got one of shape \(5, 2, 3\)"
    ):
        model.network_with({"weight": torch.zeros(5, 2, 3)})
    with pytest.raises(ValueError, match="got none"):
        model.network_with({})


def test_tied_weights_are_one_site_with_several_names():
    model = bayesian(Tied())
    assert model.names == ["encoder.weight", "decoder.weight", "table.weight"]
    assert {site.name: site.aliases for site in model.sites} == {
        "encoder.weight": ("encoder.weight", "again.weight"),
        "decoder.weight": ("decoder.weight",),
        "table.weight": ("table.weight", "out.weight"),
    }
    back = model.network_with(new_weights(model))
    assert back.out.weight is back.table.weight
    assert back.again.weight is back.encoder.weight
    assert bayesian(Tied(), {"out.weight": priors.Normal()}).names == [
        "table.weight"
    ]  # any of its names will do


def test_a_module_registered_twice_has_one_site_per_weight():
    model = bayesian(Shared())
    assert model.names == ["a.weight", "head.weight"]
    assert model.net.a is model.net.b
    back = model.network_with(new_weights(model))
    assert back.a is back.b


def test_each_model_has_its_own_parameters_of_priors_and_likelihood():
    prior, likelihood = priors.LearnedNormal(0.5), likelihoods.Gaussian()
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    one, other = (BayesianNet(net, prior, likelihood, 6) for _ in range(2))
    assert set(one.free_parameters()) == {
        *("net.0.bias", "net.1.bias", "likelihood.log_scale"),
        *("priors.0/weight.log_scale", "priors.1/weight.log_scale"),  # one for each weight
    }
    with torch.no_grad():
        for p in one.free_parameters().values():
            p.add_(1.0)
    one.freeze()
    torch.testing.assert_close(prior.log_scale.detach(), torch.tensor(0.5).log())
    assert all(
        p.requires_grad
        for p in (prior.log_scale, likelihood.log_scale, *other.free_parameters().values())
    )
    assert (other.likelihood.log_scale == likelihood.log_scale).all()


@networks
def test_a_frozen_model_has_sites_and_no_parameters(name):
    make, inputs = NETWORKS[name]
    net, x = make().eval(), inputs()
    model = BayesianNet(net, priors.Normal(), likelihoods.Categorical(), num_data=6).eval()
    weights = new_weights(model)
    before = poutine.condition(model, weights)(x).detach()
    assert model.freeze() is model
    assert not list(model.parameters())
    assert not model.free_parameters()
    torch.testing.assert_close(poutine.condition(model, weights)(x), before)
    torch.testing.assert_close(model.network_with(weights)(x), before)
    assert ELBO(model, guides.MeanField(model))(x, torch.randint(2, (6,))).isfinite()


def test_freezing_keeps_the_values_of_noise_and_prior_scales():
    model = BayesianNet(
        nn.Linear(3, 1), priors.LearnedNormal(0.5), likelihoods.Gaussian(), num_data=6
    )
    x, y = torch.randn(6, 3), torch.randn(6)
    weights = new_weights(model)
    before = poutine.trace(poutine.condition(model, weights)).get_trace(x, y).log_prob_sum()
    model.freeze()
    trace = poutine.trace(poutine.condition(model, weights)).get_trace(x, y)
    torch.testing.assert_close(trace.log_prob_sum(), before)
    assert not [name for name, site in trace.nodes.items() if site["type"] == "param"]


def test_prior_of_an_unknown_weight_names_the_uncertain_ones():
    model = bayesian(nn.Linear(3, 2))
    assert isinstance(model.prior_of("weight"), priors.Normal)
    with pytest.raises(KeyError, match="expected one of the uncertain weights weight, got 'bias'"):
        model.prior_of("bias")
