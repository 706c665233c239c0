"""A trained ensemble of small networks, and its networks as plain modules."""

import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.guides import MeanField

X = torch.linspace(-2, 2, 18).reshape(6, 3)


def classifier(outputs=4, likelihood=None, scale=0.7, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs))
    model = BayesianNet(net, priors.Normal(1.0), likelihood or likelihoods.Categorical(), 20)
    return Posterior.from_guide(model, MeanField(model, init_scale=scale))


def fixed_draws(posterior, draws=50):
    """Return the posterior as fixed draws, and the outputs of each network from plain modules."""
    sites = {name: value[None] for name, value in posterior.sample(draws).items()}
    fixed = Posterior.from_draws(posterior.model, sites)
    outputs = []
    with torch.no_grad():
        for index in range(draws):
            weights = {name: value[0, index] for name, value in sites.items()}
            outputs.append(posterior.model.network_with(weights)(X).double())
    return fixed, torch.stack(outputs)
