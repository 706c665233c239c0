"""Sites are listed at their initial values, without random numbers."""

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from pyro_bnn import BayesianNet, guides, likelihoods, priors
from tests.network.networks import bayesian
from tests.network.prior_kinds import EVERY_PRIOR, every_prior


@every_prior
def test_sites_are_listed_without_sampling_and_compose_the_networks_own_weight(kind):
    make, parts = EVERY_PRIOR[kind]
    net = nn.Sequential(nn.Conv2d(1, 3, (2, 3)), nn.Flatten(), nn.Linear(3, 2))
    model = bayesian(net, {"*": make()})
    state = torch.get_rng_state()
    trace = poutine.trace(model.weights).get_trace()
    weights = model.weights()
    assert (torch.get_rng_state() == state).all()  # no random number was drawn
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=1e-5, atol=1e-6)
    latent = [name for name, site in trace.iter_stochastic_nodes()]
    assert latent == [f"{name}{part}" for name, _ in net.named_parameters() for part in parts]


def test_initialize_includes_the_unknowns_of_the_likelihood():
    model = BayesianNet(
        nn.Linear(3, 1),
        priors.NormalJeffreys(),
        likelihoods.Gaussian(dist.HalfNormal(1.0)),
        num_data=6,
    )
    trace = poutine.trace(model.initialize).get_trace()
    latent = [name for name, _ in trace.iter_stochastic_nodes()]
    assert latent == ["weight.scale", "weight.unit", "noise"]
    assert trace.nodes["noise"]["value"] == 1
    full = poutine.trace(poutine.replay(model, trace=trace)).get_trace(
        torch.randn(6, 3), torch.randn(6)
    )
    assert [name for name, _ in full.iter_stochastic_nodes() if name != "data"] == latent
    assert not [
        name for name in full.nodes if name == "noise" and full.nodes[name]["cond_indep_stack"]
    ]


def test_weights_are_composed_of_replayed_sites():
    model = bayesian(nn.Linear(3, 2), priors.NormalJeffreys())
    guide = guides.MeanField(model, init_scale=0.5)
    trace = poutine.trace(guide).get_trace()
    weights = poutine.replay(model.weights, trace=trace)()
    expected = trace.nodes["weight.scale"]["value"] * trace.nodes["weight.unit"]["value"]
    torch.testing.assert_close(weights["weight"], expected)
