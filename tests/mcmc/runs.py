"""Short runs of every sampler on one small regression, and their comparison."""

import torch

from pyro_bnn import mcmc
from pyro_bnn.models import linear_regression

N = 10
torch.manual_seed(2)
X, Y = torch.randn(N, 2), torch.randn(N)
MODEL = linear_regression(N, inputs=2)
SETTINGS = {
    "hmc": {},
    "sgld": {"step_size": 1e-3, "batch_size": 4},
    "psgld": {"step_size": 1e-3, "batch_size": 4},
    "sghmc": {"step_size": 1e-3, "batch_size": 4},
    "baoa": {"step_size": 1e-2, "batch_size": 4},
}
SAMPLERS = tuple(SETTINGS)
STOCHASTIC = ("sgld", "psgld", "sghmc", "baoa")
DEFAULTS = {"chains": 3, "warmup": 10, "draws": 8, "seed": 5, "compile": False, "progress": False}


def run(name, **settings):
    """Run a sampler by name, uncompiled."""
    return getattr(mcmc, name)(MODEL, (X, Y), **DEFAULTS | SETTINGS[name] | settings)


def same_tensors(one, other):
    """Whether two mappings hold the same names with the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same(one, other):
    """Whether two posteriors have the same draws and the same statistics, bit for bit."""
    draws = same_tensors(one.draws, other.draws)
    return draws and same_tensors(one.statistics, other.statistics)
