"""Small models and guides for the tests of posteriors."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import constraints

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.guides import MeanField

X = torch.linspace(-1, 1, 15).reshape(5, 3)


def network(inputs=3, outputs=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs))


def classifier(prior=None, n=20):
    return BayesianNet(network(), prior or priors.Normal(1.0), likelihoods.Categorical(), n)


def posterior_of(model, scale=0.1):
    return Posterior.from_guide(model, MeanField(model, init_scale=scale))


class Branch(nn.Module):
    """A network with a branch on its numbers, which vmap cannot vectorize."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        y = self.layer(x)
        return y if float(self.layer.weight.sum()) > -1e9 else -y


def function_guide(x, y=None):
    loc = pyro.param("loc", torch.zeros(3))
    scale = pyro.param("scale", torch.full((3,), 0.1), constraint=constraints.positive)
    pyro.sample("weight", dist.Normal(loc, scale).to_event(1))
    pyro.sample("bias", dist.Normal(pyro.param("b.loc", torch.tensor(0.0)), 0.1))


def are_equal(a, b):
    """Return whether two dictionaries hold the same tensors."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
