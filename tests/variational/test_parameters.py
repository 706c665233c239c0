"""Parameters belong to the loss, and the global parameter store is left alone."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from pyro_bnn import ELBO, BayesianNet, likelihoods, priors
from pyro_bnn.guides import (
    BernoulliDropout,
    FactorizedGaussian,
    MeanField,
    PointEstimate,
)

pytestmark = pytest.mark.usefixtures("store_stays_empty")


def test_the_parameter_store_of_the_user_is_unchanged(toy):
    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(1, 3))
        pyro.sample(
            "weight",
            dist.Normal(
                loc, pyro.param("scale", torch.ones(1, 3), constraint=constraints.positive)
            ).to_event(2),
        )

    model = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(0.5), num_data=6)
    store = pyro.get_param_store()
    with store.scope():
        pyro.param("loc", torch.tensor([7.0]))
        mine = store._params["loc"]
        loss = ELBO(model, guide)
        loss(*toy).backward()
        with pytest.raises(ValueError, match="has no site"):
            ELBO(model, lambda x, y: None)(*toy)
        assert list(store.keys()) == ["loc"]
        assert store._params["loc"] is mine
        assert mine.grad is None


@pytest.mark.parametrize("make", [MeanField, FactorizedGaussian, PointEstimate, BernoulliDropout])
def test_the_loss_leaves_the_parameter_store_empty(make, toy):
    model = BayesianNet(nn.Linear(3, 1), priors.LearnedNormal(), likelihoods.Gaussian(), num_data=6)
    loss = ELBO(model, make(model))
    loss(*toy).backward()
    loss.terms(*toy)
    loss.trace(*toy)
    assert not list(pyro.get_param_store().keys())
    assert all(p.grad is not None for p in loss.parameters())
    assert {n for n, _ in loss.named_parameters()} >= {
        "model.net.bias",
        "model.likelihood.log_scale",
    }


class WithPyroParam(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.full((1, 3), 0.5), constraint=constraints.positive)
        self.loc = nn.Parameter(torch.zeros(1, 3))

    def forward(self, x, y):
        pyro.sample("weight", dist.Normal(self.loc, self.scale).to_event(2))


def test_a_pyro_param_of_a_guide_is_a_parameter_of_the_loss(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(0.5), num_data=6)
    guide = WithPyroParam()
    loss = ELBO(model, guide)
    loss(*toy).backward()
    assert guide.scale_unconstrained.grad is not None
    assert {"guide.loc", "guide.scale_unconstrained"} <= {
        name for name, _ in loss.named_parameters()
    }


def test_parameter_statements_of_functions_become_parameters_of_the_loss(toy):
    encoder = nn.Linear(2, 3)

    def guide(x, y):
        pyro.module("encoder", encoder)
        loc = encoder(torch.ones(2))[None]
        scale = pyro.param(
            "q.scale", lambda: torch.full((1, 3), 0.2), constraint=constraints.positive
        )
        pyro.param("values", torch.zeros(()))  # the name of a method of the container
        assert torch.equal(pyro.param("q.scale"), scale)  # repeated without its constraint
        pyro.sample("weight", dist.Normal(loc, scale).to_event(2))

    model = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(0.5), num_data=6)
    loss = ELBO(model, guide)
    assert len(list(loss.parameters())) == 1  # the bias
    loss(*toy).backward()
    parameters = dict(loss.named_parameters())
    assert any(p is encoder.weight for p in parameters.values())
    assert any(p is encoder.bias for p in parameters.values())
    raw = parameters["param_store.unconstrained.q/scale"]
    assert torch.allclose(raw.detach().exp(), torch.tensor(0.2))
    # and they are trained: the divergence alone pulls the scale to that of the prior
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    for _ in range(120):
        optimizer.zero_grad()
        loss.terms(*toy).kl["weight"].backward()
        optimizer.step()
    assert torch.allclose(raw.detach().exp(), torch.tensor(1.0), atol=0.05)
