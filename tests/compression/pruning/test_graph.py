"""The normal form: every way of writing a network has the same nodes, and is the same function."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bnn.compression import UnsupportedLayerError, graph_of
from pyro_bnn.models import MLP, LeNet5, LeNet300100


def operations(module):
    """Return the steps of a graph: layers by their type, functions with their arguments."""
    steps = []
    for node in module.graph.nodes:
        if node.op == "call_module":
            steps.append(type(module.get_submodule(node.target)))
        elif node.op == "call_function":
            arguments = [
                argument for argument in node.args if not isinstance(argument, torch.fx.Node)
            ]
            steps.append((node.target, *arguments, *node.kwargs.items()))
        else:
            steps.append(node.op)
    return steps


def written(body, *layers):
    """Return a module whose forward is ``body(self, x)``."""
    net = nn.Module()
    for number, layer in enumerate(layers):
        setattr(net, f"layer{number}", layer)
    kind = type("Written", (nn.Module,), {"forward": body})
    net.__class__ = kind
    return net


def same(one, two, x):
    assert operations(graph_of(one)) == operations(graph_of(two))
    for net in (one, two):
        assert torch.allclose(graph_of(net)(x.clone()), net.eval()(x.clone()), atol=1e-7)


ACTIVATIONS = {
    "relu": (
        nn.ReLU(),
        [
            nn.ReLU(inplace=True),
            F.relu,
            torch.relu,
            F.relu_,
            lambda x: x.relu(),
            lambda x: F.relu(x, True),
        ],
        (torch.relu,),
    ),
    "tanh": (nn.Tanh(), [F.tanh, torch.tanh, torch.tanh_, lambda x: x.tanh_()], (torch.tanh,)),
    "sigmoid": (nn.Sigmoid(), [F.sigmoid, torch.sigmoid, lambda x: x.sigmoid()], (torch.sigmoid,)),
    "silu": (
        nn.SiLU(),
        [F.silu, nn.SiLU(inplace=True), lambda x: F.silu(x, inplace=True)],
        (F.silu,),
    ),
    "gelu": (
        nn.GELU(),
        [F.gelu, lambda x: F.gelu(x, approximate="none")],
        (F.gelu, ("approximate", "none")),
    ),
    "leaky": (
        nn.LeakyReLU(0.2),
        [lambda x: F.leaky_relu(x, 0.2), lambda x: F.leaky_relu_(x, negative_slope=0.2)],
        (F.leaky_relu, 0.2),
    ),
    "elu": (
        nn.ELU(0.5),
        [lambda x: F.elu(x, 0.5), lambda x: F.elu_(x, alpha=0.5)],
        (F.elu, ("alpha", 0.5)),
    ),
    "softplus": (
        nn.Softplus(2.0),
        [lambda x: F.softplus(x, 2.0), lambda x: F.softplus(x, beta=2.0)],
        (F.softplus, ("beta", 2.0), ("threshold", 20.0)),
    ),
    "max pool": (
        nn.MaxPool2d(2),
        [
            lambda x: F.max_pool2d(x, 2),
            lambda x: torch.max_pool2d(x, (2, 2), 2),
            nn.MaxPool2d((2, 2), stride=2),
        ],
        (
            *(F.max_pool2d, ("kernel_size", (2, 2)), ("stride", (2, 2)), ("padding", (0, 0))),
            *(("dilation", (1, 1)), ("ceil_mode", False)),
        ),
    ),
    "average pool": (
        nn.AvgPool2d(3, 2, 1),
        [
            lambda x: F.avg_pool2d(x, 3, 2, 1),
            lambda x: F.avg_pool2d(x, kernel_size=(3, 3), stride=2, padding=(1, 1)),
        ],
        (
            *(
                F.avg_pool2d,
                ("kernel_size", (3, 3)),
                ("stride", (2, 2)),
                ("padding", (1, 1)),
                ("ceil_mode", False),
            ),
            *(("count_include_pad", True), ("divisor_override", None)),
        ),
    ),
    "adaptive pool": (
        nn.AdaptiveAvgPool2d(1),
        [lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: F.adaptive_avg_pool2d(x, (1, 1))],
        (F.adaptive_avg_pool2d, (1, 1)),
    ),
    "mean": (
        written(lambda self, x: torch.mean(x, (2, 3))),
        [lambda x: x.mean((2, 3)), lambda x: x.mean(dim=(2, 3), keepdim=False)],
        (torch.mean, (2, 3), ("keepdim", False)),
    ),
    "flatten": (
        nn.Flatten(),
        [
            lambda x: x.flatten(1),
            lambda x: torch.flatten(x, 1),
            lambda x: x.view(x.size(0), -1),
            lambda x: x.reshape(x.shape[0], -1),
            lambda x: x.reshape((x.size()[0], -1)),
        ],
        (torch.flatten, 1, -1),
    ),
    "reshape": (
        written(lambda self, x: x.reshape(-1, 2, 36)),
        [
            lambda x: x.view(-1, 2, 36),
            lambda x: x.view((x.size(0), 2, 36)),
            lambda x: torch.reshape(x, (-1, 2, 36)),
        ],
        (torch.reshape, (-1, 2, 36)),
    ),
    "sum": (
        written(lambda self, x: torch.add(x, self.layer0(x)), nn.Conv2d(2, 2, 1)),
        [],
        (torch.add,),
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_spelling_of_an_operation_has_one_form(name):
    torch.manual_seed(0)
    first, others, expected = ACTIVATIONS[name]
    x = torch.randn(3, 2, 6, 6)
    net = nn.Sequential(nn.Conv2d(2, 2, 1), first)
    assert operations(graph_of(net))[-2] == expected
    for other in others:
        step = (
            other
            if isinstance(other, nn.Module)
            else written(lambda self, x, other=other: other(x))
        )
        same(net, nn.Sequential(net[0], step), x)


def test_every_spelling_of_a_sum_has_one_form():
    x = torch.randn(3, 4)
    bodies = [
        lambda self, x: self.layer0(x) + x,
        lambda self, x: self.layer0(x).add(x),
        lambda self, x: operator.add(self.layer0(x), x),
        lambda self, x: operator.iadd(self.layer0(x), x),
        lambda self, x: torch.add(self.layer0(x), x, alpha=1),
    ]
    first = written(bodies[0], nn.Linear(4, 4))
    assert operations(graph_of(first)) == ["placeholder", nn.Linear, (torch.add,), "output"]
    for body in bodies[1:]:
        same(first, written(body, first.layer0), x)


def test_dropout_and_identities_vanish():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Identity(), nn.Tanh(), nn.AlphaDropout())
    assert operations(graph_of(net)) == ["placeholder", nn.Linear, (torch.tanh,), "output"]
    functional = written(
        lambda self, x: F.dropout(self.layer0(x), 0.5, self.training), nn.Linear(3, 3)
    )
    assert operations(graph_of(functional)) == ["placeholder", nn.Linear, "output"]
    always = written(lambda self, x: F.dropout(self.layer0(x), 0.5), nn.Linear(3, 3))
    assert len(operations(graph_of(always))) == 4  # it drops in evaluation mode too, so it stays


@pytest.mark.parametrize(
    "net",
    [LeNet5(), LeNet300100(), MLP(784, (5,), 2), nn.Sequential(nn.Flatten(), nn.Linear(784, 2))],
)
def test_the_copy_has_the_names_of_the_original(net):
    x = torch.randn(4, 784)
    names = [name for name, _ in net.named_parameters()]
    net.train()
    module = graph_of(net)
    assert [name for name, _ in module.named_parameters()] == names
    assert net.training
    assert not module.training
    assert torch.equal(module(x), net.eval()(x))
    with torch.no_grad():
        module.get_parameter(names[0]).zero_()
    assert net.get_parameter(names[0]).any()
    again = graph_of(module)
    assert operations(again) == operations(module)
    assert torch.equal(again(x), module(x))


def test_operations_in_place_still_overwrite():
    """After ``h.relu_()``, readers of h read its relu; an operation without readers is kept."""

    def body(self, x):
        h = self.layer0(x)
        before = h + 0.0
        h.relu_()
        g = h + before
        g.mul_(2.0)
        return self.layer1(g) + h

    net = written(body, nn.Linear(3, 4), nn.Linear(4, 4))
    x = torch.randn(9, 3)
    assert torch.equal(graph_of(net)(x), net(x))
    assert not torch.allclose(net(x), written(body, net.layer0, net.layer1)(x) * 0)


def test_an_operation_without_normal_form_stays_as_it_was():
    def body(self, x):
        h = torch.cat([self.layer0(x), torch.sin(x)], 1).softmax(-1) * 2.0
        return F.max_pool1d(h[:, None], 2, return_indices=True)[0].reshape(-1)

    net = written(body, nn.Linear(3, 3))
    x = torch.randn(4, 3)
    module = graph_of(net)
    assert torch.equal(module(x), net(x))
    assert nn.Linear in operations(module)


def test_an_option_left_at_its_default_is_not_a_second_input():
    net = written(lambda self, x, scale=None: self.layer0(x), nn.Linear(3, 2))
    assert operations(graph_of(net)) == ["placeholder", nn.Linear, "output"]


def test_a_network_that_is_not_feed_forward_is_an_error():
    layer = nn.Linear(3, 2)
    cases = {
        r"can trace, got TraceError": written(
            lambda self, x: self.layer0(x) if x.sum() > 0 else x, layer
        ),
        r"can trace.*x.shape\[0\] instead of len\(x\)": written(
            lambda self, x: self.layer0(x).view(len(x), -1), layer
        ),
        r"one input, got 2": written(lambda self, x, z: self.layer0(x) + z, layer),
        r"one tensor, got \(": written(lambda self, x: (self.layer0(x), x), layer),
    }
    for message, net in cases.items():
        with pytest.raises(UnsupportedLayerError, match=rf"^Written: expected .*{message}"):
            graph_of(net)
