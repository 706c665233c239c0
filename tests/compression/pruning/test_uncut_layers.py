"""Layers that cannot be cut keep their size and are named; constant networks are an error."""

import pytest
import torch
from torch import nn

from pyro_bnn.compression import EmptyNetworkError, UnsupportedLayerError, shrink
from tests.compression.pruning.networks import IMAGE, Residual, difference, mlp


class Around(nn.Module):
    """Dense layers around something else."""

    def __init__(self, middle, first=None):
        super().__init__()
        self.a, self.middle, self.b = first or nn.Linear(5, 6), middle, nn.Linear(6, 2)

    def forward(self, x):
        return self.b(torch.relu(self.middle(torch.relu(self.a(x)))))


class Twice(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(torch.relu(self.part(x)))


class Doubled(nn.Module):
    def forward(self, x):
        y = x.clone()
        y.mul_(2.0)
        x.mul_(3.0)
        return x + y


def hooked():
    layer = nn.Linear(6, 6)
    layer.register_forward_pre_hook(lambda layer, args: (2 * args[0],))
    return layer


def tied():
    one, two = nn.Linear(6, 6), nn.Linear(6, 6)
    two.weight = one.weight
    return nn.Sequential(one, two)


WHOLE = {
    "softmax": (lambda: Around(nn.Softmax(-1)), "middle cannot be cut: a Softmax"),
    "called twice": (
        lambda: Around(Twice(nn.Linear(6, 6))),
        "middle.part cannot be cut: it is called more than once",
    ),
    "hooks": (lambda: Around(hooked()), "middle cannot be cut: it has hooks"),
    "normalised weights": (
        lambda: Around(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))),
        "middle cannot be cut: a ParametrizedLinear",
    ),
    "tied": (lambda: Around(tied()), "middle.0 cannot be cut: another layer has the same weights"),
    "in place": (lambda: Around(Doubled()), "a cannot be cut: mul_() is not a step"),
    "batch statistics": (
        lambda: Around(nn.BatchNorm1d(6, track_running_stats=False)),
        "middle cannot be cut: it has no running statistics",
    ),
    "layer norm": (lambda: Around(nn.LayerNorm(6)), "middle cannot be cut: a LayerNorm"),
    "groups": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 1),
            nn.ReLU(),
            nn.Conv1d(4, 4, 1, groups=2),
            nn.Flatten(),
            nn.Linear(20, 2),
        ),
        "2 cannot be cut: its channels are in groups",
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", WHOLE)
def test_a_layer_that_cannot_be_cut_keeps_its_size_and_is_named(name):
    make, note = WHOLE[name]
    torch.manual_seed(0)
    net = make().eval()
    shape = (2, 5) if name == "groups" else (5,)
    first = net.a if isinstance(net, Around) else net[0]
    first.weight[1] = 0.0
    small = shrink(net)
    assert any(note in line for line in small.notes), small.notes
    assert difference(small.module, net, shape, torch.float32) < 1e-5
    assert len(small.module.get_submodule("a" if isinstance(net, Around) else "0").weight) == len(
        first.weight
    )


def test_a_bare_layer_keeps_its_size():
    net = nn.Linear(4, 2)
    small = shrink(net)
    assert torch.equal(small.module.weight, net.weight)
    assert small.notes == ("weight, bias cannot be cut: linear() is not a step that can be shrunk",)


@torch.no_grad()
@pytest.mark.parametrize("act", [nn.ReLU(), nn.Sigmoid()])
@pytest.mark.parametrize("i", [0, 2, 4, 6])
def test_a_network_whose_output_is_constant_is_an_error(i, act):
    net = mlp(act)()
    net[i].weight.zero_()
    with pytest.raises(EmptyNetworkError, match=rf"^{i}: no unit .* constant; prune less"):
        shrink(net)


@torch.no_grad()
def test_a_branch_without_influence_keeps_one_channel():
    torch.manual_seed(0)
    net = Residual().eval()
    net.conv1.weight.zero_()
    small = shrink(net)
    assert difference(small.module, net, IMAGE, torch.float32) < 1e-5
    assert len(small.module.conv1.weight) == 1
    assert any("conv1" in note and "one channel" in note for note in small.notes)


def test_a_network_that_cannot_be_traced_is_an_error():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(
        UnsupportedLayerError, match=r"Branches: .*torch\.fx can trace.*control flow"
    ):
        shrink(Branches())
