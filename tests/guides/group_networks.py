"""A small network of a convolution and a dense layer, and data of which most inputs are useless."""

import torch
from torch import nn

from pyro_bnn import (
    BayesianNet,
    likelihoods,
)


def model_of(prior, n=8):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    return BayesianNet(net, prior, likelihoods.Categorical(), n)


X, Y = torch.linspace(-1, 1, 8 * 16).reshape(8, 1, 4, 4), torch.arange(8) % 2


def data_with_useless_inputs(n=1000):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, 8, generator=generator)
    return x, (x[:, 0] * x[:, 1] > 0).long()  # six of eight inputs are useless


def trained_network(x, y, hidden=16):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02, weight_decay=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


def accuracy(net, x, y):
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()
