"""Shrinking: the smaller network is the same function, and no unit in it is without influence."""

import copy

import pytest
import torch
from torch import nn

from pyro_bnn.compression import EmptyNetworkError, shrink
from pyro_bnn.compression.pruning import constants, layers, shrinking
from pyro_bnn.models import LeNet5
from tests.compression.pruning.networks import (
    NETWORKS,
    ResidualMLP,
    difference,
    masked,
    mlp,
)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_smaller_network_is_the_same_function(name):
    make, shape = NETWORKS[name]
    empty = 0
    for seed in range(10):
        net = masked(make, seed).double()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        try:
            small = shrink(net)
        except EmptyNetworkError:
            x = torch.randn(9, *shape, dtype=torch.float64)
            assert torch.allclose(net(x), net(x[:1] * 0).expand(9, -1), atol=1e-12)
            empty += 1
            continue
        assert difference(small.module, net, shape) < 1e-10, seed
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        single = masked(make, seed)
        assert difference(shrink(single).module, single, shape, torch.float32) < 1e-5
        again = shrink(small.module)
        assert difference(again.module, net, shape) < 1e-10
        sizes, sizes_again = (
            [tuple(p.shape) for p in s.module.parameters()] for s in (small, again)
        )
        assert sizes == sizes_again, "a second pass finds nothing more"
    assert empty < 9


BUGS = {
    "constants are not folded": (shrinking, "_fold_constants", "+ shift)", ")", "tanh"),
    "constants go through padding": (
        *(layers, "pads_zeros", "any(layer.padding)", "False"),
        "residual, constants",
    ),
    "activations are forgotten": (
        *(constants, "_elementwise_output", "node.target(source.constant,", "(lambda c: c)("),
        "sigmoid",
    ),
    "means of batch norms": (
        constants,
        "norm_constants",
        "(constant - mean)",
        "constant",
        "batch norm",
    ),
    "zeros around averages": (
        *(constants, "pool_keeps_constants", 'node.kwargs["count_include_pad"]', "False"),
        "average with padding",
    ),
    "one side of a sum": (
        *(constants, "_addition_output", "first.constant + second.constant", "first.constant"),
        "residual, dense",
    ),
    "sums share their channels": (
        *(constants, "_addition_output", "first.space.merge(second.space)", "pass"),
        "residual, dense",
    ),
    "order of features": (
        *(layers, "weight_blocks", "channels, -1)", "-1, channels).transpose(1, 2)"),
        "average",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_comparison_of_outputs_sees_bugs(bug, seeded_bug):
    owner, name, right, wrong, network = BUGS[bug]
    seeded_bug(owner, name, right, wrong)
    make, shape = NETWORKS[network]
    failures = 0
    for seed in range(10):
        net = masked(make, seed).double()
        try:
            failures += not difference(shrink(net).module, net, shape) < 1e-6
        except EmptyNetworkError:
            continue
        except (RuntimeError, TypeError):
            failures += 1
    assert failures


# --- no unit without influence remains ---


def alive(*weights):
    """Return, by brute force, the units on a path of nonzero weights from input to output."""
    steps = [weight != 0 for weight in weights]
    forward = [torch.ones(steps[0].shape[1], dtype=torch.bool)]
    for step in steps:
        forward.append((step & forward[-1]).any(1))
    backward = [torch.ones(len(steps[-1]), dtype=torch.bool)]
    for step in reversed(steps):
        backward.insert(0, (step & backward[0][:, None]).any(0))
    return [a & b for a, b in zip(forward, backward, strict=True)]


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Sigmoid()])
def test_a_dense_network_keeps_exactly_the_units_on_a_path(act):
    widths = set()
    for seed in range(40):
        net = masked(mlp(act), seed, density=0.3)
        weights = [net[i].weight for i in (0, 2, 4, 6)]
        expected = alive(*weights)
        if not all(units.any() for units in expected[:-1]):
            with pytest.raises(
                EmptyNetworkError, match="no unit of this layer depends on the inputs"
            ):
                shrink(net)
            continue
        small = shrink(net)
        for i, (left, units) in enumerate(
            zip(expected[:-1], [*expected[1:-1], torch.ones(3) > 0], strict=True)
        ):
            layer = small.module.get_submodule(str(2 * i))
            assert (
                layer.weight.shape
                == (layer.out_features, layer.in_features)
                == (units.sum(), left.sum())
            )
            rows, columns = small.kept[f"{2 * i}.weight"]
            assert torch.equal(columns, left.nonzero().flatten())
            assert torch.equal(rows, units.nonzero().flatten())
            assert torch.equal(layer.weight, weights[i][rows][:, columns])
        assert small.notes == ()
        widths.add(tuple(int(units.sum()) for units in expected))
    assert len(widths) > 10


def test_lenet_5_keeps_exactly_the_units_on_a_path():
    found = set()
    for seed in range(8):
        net = masked(
            lambda: LeNet5(size=20, filters=(6, 8), hidden=9, outputs=3),
            seed,
            density=0.4,
            dead=0.4,
        )
        one, two = (layer.weight.flatten(2).ne(0).any(-1) for layer in (net.conv1, net.conv2))
        spread = torch.eye(8).repeat_interleave(4, 0)  # feature 4 c + k is channel c
        first, conv1, conv2, features, fc1, _ = alive(
            one, two, spread, net.fc1.weight, net.fc2.weight
        )
        if not first.all() or not features.any():
            continue
        small = shrink(net)
        module = small.module
        assert [len(module.conv1.weight), len(module.conv2.weight)] == [conv1.sum(), conv2.sum()]
        assert (module.fc1.in_features, module.fc2.in_features) == (features.sum(), fc1.sum())
        assert torch.equal(small.kept["fc1.weight"][1], features.nonzero().flatten())
        assert difference(module, net, (1, 20, 20), torch.float32) < 1e-5
        found.add(module.fc1.in_features)
    assert len(found) > 3


@torch.no_grad()
def test_removing_a_unit_removes_the_units_that_only_it_reads():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    net[0].weight.copy_(torch.tensor([[1.0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]))
    net[2].weight.copy_(torch.tensor([[0.0, 1, 3], [1, 0, 0], [0, 0, 1]]))
    net[4].weight.copy_(torch.tensor([[1.0, 0, 5], [2, 0, 7]]))
    net[0].bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    net[2].bias.copy_(torch.tensor([0.0, 1.0, -0.1]))
    net[4].bias.zero_()
    small = shrink(net)
    # No unit reads unit 1 of the second layer, hence none unit 0 of the first, hence none inputs 0
    # and 1. Unit 2 of the first layer is the constant 0.3, hence unit 2 of the second
    # relu(0.3 - 0.1). Input 3 was never read.
    assert [tuple(p.shape) for p in small.module.parameters()] == [
        (1, 1),
        (1,),
        (1, 1),
        (1,),
        (2, 1),
        (2,),
    ]
    assert small.module.inputs.tolist() == [2]
    assert torch.allclose(small.module.get_submodule("2").bias, torch.tensor([0.0 + 3 * 0.3]))
    assert torch.allclose(small.module.get_submodule("4").bias, torch.tensor([5 * 0.2, 7 * 0.2]))
    kept = shrink(net, keep_inputs=True).module
    assert kept.get_submodule("0").weight.shape == (1, 4)
    assert not hasattr(kept, "inputs")


@torch.no_grad()
def test_a_layer_without_bias_gets_one_for_a_folded_constant():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2, bias=False))
    net[0].weight[0] = 0.0
    small = shrink(net)
    expected = torch.sigmoid(net[0].bias[0]) * net[2].weight[:, 0]
    assert torch.allclose(small.module.get_submodule("2").bias, expected)
    assert difference(small.module, net, (2,), torch.float32) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("padding", "bias", "width"), [(1, 0.5, 3), (1, -0.5, 2), (0, 0.5, 2)])
def test_constants_stay_only_under_zero_padding(padding, bias, width):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=padding), nn.Flatten()
    )
    net[0].weight[1] = 0.0
    net[0].bias[1] = bias  # relu makes zero of a negative one
    small = shrink(net)
    assert len(small.module.get_submodule("0").weight) == width
    assert difference(small.module, net, (1, 8, 8), torch.float32) < 1e-5
    assert [note.partition(":")[0] for note in small.notes] == [
        "2 keeps constant channels of its input (1)"
    ] * (width == 3)


@torch.no_grad()
def test_channels_of_a_sum_stay_or_go_together():
    torch.manual_seed(0)
    net = ResidualMLP().double()
    for layer in (net.a, net.b, net.c):
        layer.weight[:3] = 0.0  # constants on all sides
    net.c.weight[3] = 0.0  # a constant on one side
    net.d.weight[:, 4] = 0.0  # read by b and c all the same
    small = shrink(net)
    assert len(small.module.a.weight) == len(small.module.c.weight) == 5
    assert difference(small.module, net, (5,)) < 1e-10
    assert any("add" in note and "(3)" in note for note in small.notes)
    for layer in (net.b, net.c):
        layer.weight[:, 4] = 0.0
    assert len(shrink(net).module.a.weight) == 4


# --- the smaller network is an ordinary module ---


def test_the_smaller_network_can_be_copied_called_vectorized_and_traced():
    net = masked(NETWORKS["LeNet-5"][0], seed=1)
    module = shrink(net).module
    x = torch.randn(5, 256)
    expected = module(x)
    assert torch.equal(copy.deepcopy(module)(x), expected)
    parameters = dict(module.named_parameters())
    assert torch.equal(torch.func.functional_call(module, parameters, (x,)), expected)
    stacked = {name: torch.stack([value, 2 * value]) for name, value in parameters.items()}
    both = torch.vmap(lambda p: torch.func.functional_call(module, p, (x,)))(stacked)
    assert torch.allclose(both[0], expected, atol=1e-6)
    traced = torch.fx.experimental.proxy_tensor.make_fx(
        lambda p: torch.func.functional_call(module, p, (x,))
    )(parameters)
    assert torch.allclose(traced(parameters), expected, atol=1e-6)
    assert torch.allclose(torch.compile(module, backend="aot_eager")(x), expected, atol=1e-6)
    assert not module.training
