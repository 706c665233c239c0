"""PointEstimate is training with weight decay."""

import math

import pytest
import torch
from torch import nn

from pyro_bnn import ELBO, priors
from pyro_bnn.guides import (
    PointEstimate,
)
from tests.guides.networks import (
    Net,
    X,
    Y,
    model_with,
)


def test_a_point_estimate_is_training_with_weight_decay():
    net, s = Net(), 0.6
    model = model_with(priors.Normal(s), net)
    guide = PointEstimate(model)
    loss = ELBO(model, guide)(X, Y)
    weight = [net.conv.weight, net.up.weight, net.fc.weight]
    decay = sum(
        (w**2).sum() / (2 * s**2) + w.numel() * math.log(s * math.sqrt(2 * math.pi)) for w in weight
    )
    expected = nn.functional.cross_entropy(net(X), Y, reduction="sum") + decay
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = torch.autograd.grad(loss, list(guide.parameters()))
    for gradient, usual in zip(gradients, torch.autograd.grad(expected, weight), strict=True):
        assert torch.allclose(gradient, usual, atol=1e-4)
