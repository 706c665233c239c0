"""Posteriors to be compared, and the rows of a comparison."""

from functools import partial

import torch
from torch import nn

from pyro_bnn import BayesianNet, likelihoods, priors
from tests.diagnostics.regression import exact

AT = torch.linspace(-3, 3, 15, dtype=torch.float64)[:, None]
TRUE = 0.7 * AT[:, 0] - 0.2

exact_draws = partial(exact, num=500, centered=True)


def classifier(n=12):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3, bias=False))
    return BayesianNet(net, priors.Normal(1.0), likelihoods.Categorical(), n)


def row(comparison, name):
    """Return the row of a method."""
    return next(row for row in comparison.rows if row["method"] == name)
