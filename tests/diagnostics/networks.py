"""A small network of classes and its variational posterior."""

import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.guides import MeanField

CLASSES = (torch.linspace(-1, 1, 30).reshape(10, 3), torch.tensor([0, 1] * 5))


def network(prior=None, **more):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return BayesianNet(net, prior or priors.Normal(1.0), likelihoods.Categorical(), 10, **more)


def variational(model):
    return Posterior.from_guide(model, MeanField(model), *CLASSES)
