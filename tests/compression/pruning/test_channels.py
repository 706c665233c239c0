"""Channels: the residual block in the picture of the module, channel by channel."""

import math

import pytest
import torch
from torch import nn

from pyro_bnn.compression import graph_of, shrink
from pyro_bnn.compression.pruning.constants import find_constants
from pyro_bnn.compression.pruning.needed import mark_needed

VARIES = math.nan


class ResidualBlock(nn.Module):
    """``h + conv2(relu(conv1(h)))`` with ``h = stem(x)``, and the weights of the picture."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv1, self.conv2 = (
            nn.Conv2d(1, 4, 1),
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 4, 1),
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        h = self.stem(x)
        total = h + self.conv2(torch.relu(self.conv1(h)))
        return self.head(total.mean((2, 3)))


@torch.no_grad()
def picture():
    net = ResidualBlock()
    nonzero = {
        "stem": {(0, 0): 1.0, (2, 0): 2.0, (3, 0): -1.0},
        "conv1": {(0, 0): 1.0, (0, 3): -2.0, (1, 1): -0.8},
        "conv2": {(0, 0): 1.5, (2, 0): 0.5},
        "head": {(0, 0): 1.0, (1, 1): 2.0, (0, 2): -1.0},
    }
    biases = {
        "stem": [0.1, 0.5, 0.2, 0.3],
        "conv1": [0.3, 0.2, 0.1, 0.1],
        "conv2": [0.2, 0.3, 0.1, 0.3],
        "head": [0.0, 0.0],
    }
    for name, weights in nonzero.items():
        layer = net.get_submodule(name)
        layer.weight.zero_()
        for place, value in weights.items():
            layer.weight[place] = value
        layer.bias.copy_(torch.tensor(biases[name]))
    return net


@pytest.fixture
def flow():
    flow = find_constants(graph_of(picture()))
    mark_needed(flow)
    return flow


def by_name(flow):
    """Return the channels by the name of the layer or function."""
    return {getattr(node.target, "__name__", node.target): c for node, c in flow.channels.items()}


def test_the_forward_pass_finds_the_constants_of_the_picture(flow):
    expected = {
        "stem": [VARIES, 0.5, VARIES, VARIES],
        "conv1": [VARIES, -0.2, 0.1, 0.1],
        "relu": [VARIES, 0.0, 0.1, 0.1],
        "conv2": [VARIES, 0.3, VARIES, 0.3],
        "add": [VARIES, 0.8, VARIES, VARIES],
    }
    channels = by_name(flow)
    for name, constants in expected.items():
        assert channels[name].constant.tolist() == pytest.approx(constants, nan_ok=True), name


def test_the_backward_pass_finds_the_needed_channels_of_the_picture(flow):
    expected = {
        "stem": [True, False, True, True],
        "conv1": [True, False, False, False],
        "relu": [True, False, False, False],
        "conv2": [True, False, True, False],
        "add": [True, False, True, False],
    }
    channels = by_name(flow)
    for name, needed in expected.items():
        assert channels[name].needed.tolist() == needed, name


def test_both_sides_of_an_addition_share_a_space(flow):
    channels = by_name(flow)
    assert channels["stem"].space is channels["conv2"].space is channels["add"].space
    assert channels["conv1"].space is channels["relu"].space
    assert channels["stem"].space.keep.tolist() == [True, False, True, True]
    assert channels["conv1"].space.keep.tolist() == [True, False, False, False]


def test_the_block_is_cut_to_the_channels_of_the_picture():
    net = picture()
    small = shrink(net).module
    shapes = {name: tuple(value.shape[:2]) for name, value in small.named_parameters()}
    assert shapes["stem.weight"] == (3, 1)
    assert shapes["conv1.weight"] == (1, 3)
    assert shapes["conv2.weight"] == (3, 1)
    assert shapes["head.weight"] == (2, 3)
    assert small.head.bias.tolist() == pytest.approx([0.0, 2 * 0.8])  # the constant sum, folded
    x = torch.randn(5, 1, 3, 3)
    torch.testing.assert_close(small(x), net(x))
