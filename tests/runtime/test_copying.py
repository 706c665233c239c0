"""Copies of programs that belong together."""

import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_bnn import BayesianNet, likelihoods, priors
from pyro_bnn.runtime.copying import deepcopy_together


def test_modules_that_two_programs_share_are_shared_by_their_copies():
    layer = nn.Linear(2, 2)
    one, other = deepcopy_together(nn.Sequential(layer), nn.Sequential(layer))
    assert one[0] is other[0]
    assert one[0] is not layer
    assert torch.equal(one[0].weight, layer.weight)


def test_an_autoguide_and_its_copy_keep_their_models():
    model = BayesianNet(nn.Linear(2, 1), {"*": priors.Normal()}, likelihoods.Gaussian(0.1), 5)
    guide = AutoNormal(model)
    bound = guide.model
    _, copied = deepcopy_together(model, guide)
    assert guide.model is bound
    assert copied.model is not bound
    for autoguide in (guide, copied):
        assert autoguide(torch.ones(5, 2)).keys() >= {"weight", "bias"}
