"""What the tests of codebooks share: a pruned network, its code length, and all clusterings."""

import math

import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.compression import prune
from pyro_bnn.compression.quantization.codebooks import codes
from pyro_bnn.guides import MeanField


def pruned_net(seed=0, sizes=(20, 12, 3), dropped=0.4):
    """Return a pruned network with zeros in weights and biases, and variances of all sizes."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(*sizes[:2]), nn.Tanh(), nn.Linear(*sizes[1:]))
    model = BayesianNet(net, priors.LogUniform(), likelihoods.Categorical(), 10)
    with torch.no_grad():
        model.net[0].bias[::3] = 0
    guide = MeanField(model)
    with torch.no_grad():
        for _, family in guide.families().items():
            family.loc.normal_()
            family.log_scale.copy_(math.log(0.05) + torch.randn(family.loc.shape))
            family.log_scale[torch.rand(family.loc.shape) < dropped] = 4.0
    return prune(Posterior.from_guide(model, guide))


def parameter(pruned, name):
    return dict(pruned.module.named_parameters())[name]


def value_bits(pruned):
    """Return the bits per nonzero number, by the empirical entropies of the codebooks."""
    books = codes(pruned).values()
    numbers = sum(int(book.counts.sum()) for book in books)
    return sum(book.bits * int(book.counts.sum()) for book in books) / numbers


def clusterings(n, levels):
    """Return all assignments of n values to clusters, as indicators (assignments, n, levels)."""
    ways = torch.cartesian_prod(*[torch.arange(levels)] * n).view(-1, n)
    return torch.nn.functional.one_hot(ways, levels).double()
