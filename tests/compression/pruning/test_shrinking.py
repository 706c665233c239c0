"""Shrinking: the smaller network is the same function, nothing dead is left in it, and what stays has a reason."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bnn.compression import EmptyNetworkError, UnsupportedLayerError, shrink
from pyro_bnn.compression.pruning import constants, layers, shrinking
from pyro_bnn.models import LeNet5, LeNet300100


class Residual(nn.Module):
    """Two blocks with additions, one of them across a 1x1 convolution."""

    def __init__(self, padding=1, act=F.relu):
        super().__init__()
        self.act = act
        self.stem = nn.Conv2d(2, 6, 3, padding=padding)
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.down, self.conv3 = nn.Conv2d(6, 8, 1, bias=False), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.act(self.stem(x))
        x = self.act(x + self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))
        x = self.act(self.down(x) + self.conv3(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ResidualMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Linear(5, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        h = torch.sigmoid(self.a(x))
        g = h + torch.tanh(self.b(h))
        return self.d(g + self.c(h))


class Viewed(nn.Module):
    """The same step written in other ways: methods, views, operators."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = (
            nn.Conv2d(1, 5, 3, stride=2),
            nn.Linear(5 * 9, 7),
            nn.Linear(7, 2),
        )

    def forward(self, x):
        h = self.conv(x.view(-1, 1, 8, 8)).tanh()
        return self.fc2(self.fc1(h.view(h.size(0), -1)).sigmoid_())


class Constants(nn.Module):
    """Views with written-out sizes."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 5, 3), nn.Linear(5 * 36, 3)

    def forward(self, x):
        return self.fc(F.elu(self.conv(x)).reshape(-1, 5 * 36))


def sequential(*parts):
    return lambda: nn.Sequential(*parts)


def mlp(act):
    return lambda: nn.Sequential(
        nn.Linear(9, 8), act, nn.Linear(8, 7), act, nn.Linear(7, 6), act, nn.Linear(6, 3)
    )


def images(*layers, out, channels=2, head=nn.Linear):
    return lambda: nn.Sequential(
        *copy.deepcopy(layers), nn.Flatten(), head(out, 6), nn.Tanh(), nn.Linear(6, 3)
    )


C, R, P = nn.Conv2d, nn.ReLU(inplace=True), nn.MaxPool2d(2)
IMAGE, PIXELS, SERIES = (2, 8, 8), (9,), (2, 12)
# fmt: off
NETWORKS = {
    "relu": (mlp(nn.ReLU()), PIXELS),
    "tanh": (mlp(nn.Tanh()), PIXELS),
    "sigmoid": (mlp(nn.Sigmoid()), PIXELS),
    "softplus": (mlp(nn.Softplus(2.0)), PIXELS),
    "gelu": (mlp(nn.GELU("tanh")), PIXELS),
    "leaky": (mlp(nn.LeakyReLU(0.2)), PIXELS),
    "silu": (mlp(nn.SiLU()), PIXELS),
    "elu": (mlp(nn.ELU(0.7)), PIXELS),
    "dropout and batch norm": (
        lambda: nn.Sequential(
            nn.Linear(9, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)
        ),
        PIXELS,
    ),
    "norm of the input": (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(9), nn.Linear(9, 4)), (3, 3)),
    "plain": (images(C(2, 5, 3), R, P, C(5, 6, 2), R, out=24), IMAGE),
    "padded": (images(C(2, 5, 3, padding=1), R, P, C(5, 6, 3, padding="same"), R, out=96), IMAGE),
    "reflected": (
        images(C(2, 5, 3, padding=1), R, C(5, 6, 3, padding=1, padding_mode="reflect"), R, P, out=96),
        IMAGE,
    ),
    "stride and dilation": (images(C(2, 5, 3, stride=2), nn.Tanh(), C(5, 6, 2, dilation=2), R, out=6), IMAGE),
    "batch norm": (
        images(C(2, 5, 3, bias=False), nn.BatchNorm2d(5), R, C(5, 6, 3), nn.BatchNorm2d(6), R, out=96),
        IMAGE,
    ),
    "average": (images(C(2, 5, 3), R, nn.AvgPool2d(2), C(5, 6, 2), R, out=24), IMAGE),
    "average with padding": (images(C(2, 5, 3), R, nn.AvgPool2d(2, padding=1), C(5, 6, 2), R, out=54), IMAGE),
    "average without zeros": (
        images(C(2, 5, 3), R, nn.AvgPool2d(2, padding=1, count_include_pad=False), C(5, 6, 2), R, out=54),
        IMAGE,
    ),
    "average by another divisor": (
        images(C(2, 5, 3), R, nn.AvgPool2d(2, divisor_override=3), C(5, 6, 2), out=24),
        IMAGE,
    ),
    "ceil": (images(C(2, 5, 4), R, nn.AvgPool2d(2, ceil_mode=True), nn.MaxPool2d(2, 1, 1), out=80), IMAGE),
    "adaptive": (images(C(2, 5, 3), R, nn.AdaptiveAvgPool2d((2, None)), out=60), IMAGE),
    "depthwise": (images(C(2, 5, 1), R, C(5, 5, 3, groups=5), R, C(5, 6, 1), R, out=216), IMAGE),
    "depthwise and padded": (images(C(2, 5, 1), R, C(5, 5, 3, groups=5, padding=1), C(5, 6, 1), R, P, out=96), IMAGE),
    "groups": (images(C(2, 6, 3), R, C(6, 4, 3, groups=2), R, C(4, 6, 1), R, out=96), IMAGE),
    "one dimension": (
        images(nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.Sigmoid(), nn.MaxPool1d(2), nn.Conv1d(5, 4, 2),
               nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(2), out=8),
        SERIES,
    ),
    "residual": (Residual, IMAGE),
    "residual, constants": (lambda: Residual(0, torch.sigmoid), IMAGE),
    "residual, dense": (ResidualMLP, (5,)),
    "views": (Viewed, (64,)),
    "constant sizes": (Constants, (1, 8, 8)),
    "LeNet-5": (lambda: LeNet5(size=16, filters=(4, 6), hidden=9, outputs=3), (256,)),
    "LeNet-300-100": (lambda: LeNet300100(inputs=16, hidden=(9, 7), outputs=3), (4, 4)),
}
# fmt: on


@torch.no_grad()
def masked(make, seed, density=0.45, dead=0.35):
    """Return a network of random numbers with random zeros, dead rows and dead columns among its weights."""
    torch.manual_seed(seed)
    net = make()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.3, 2.0)
            layer.weight.normal_().mul_(torch.rand_like(layer.weight) > 0.15)
            layer.bias.normal_()
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.5).mul_(torch.rand_like(parameter) < density)
            parameter[torch.rand(len(parameter)) < dead] = 0.0
            parameter[:, torch.rand(parameter.shape[1]) < dead * (parameter.shape[1] > 1)] = 0.0
        elif "bn" not in name:
            parameter.normal_()
    return net.eval()


def difference(small, net, shape, dtype=torch.float64):
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )
    with torch.no_grad():
        expected, found = net(x), small(x)
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


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
def test_bugs_are_seen(bug, seeded_bug):
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


# --- nothing dead is left ---------------------------------------------------------------------------------------------


def alive(*weights):
    """Return by brute force which units lie on a path of nonzero weights from an input to an output, layer by layer."""
    steps = [weight != 0 for weight in weights]
    forward = [torch.ones(steps[0].shape[1], dtype=torch.bool)]
    for step in steps:
        forward.append((step & forward[-1]).any(1))
    backward = [torch.ones(len(steps[-1]), dtype=torch.bool)]
    for step in reversed(steps):
        backward.insert(0, (step & backward[0][:, None]).any(0))
    return [a & b for a, b in zip(forward, backward, strict=True)]


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Sigmoid()])
def test_a_dense_network_keeps_exactly_what_lies_on_a_path(act):
    widths = set()
    for seed in range(40):
        net = masked(mlp(act), seed, density=0.3)
        weights = [net[i].weight for i in (0, 2, 4, 6)]
        expected = alive(*weights)
        if not all(units.any() for units in expected[:-1]):
            with pytest.raises(EmptyNetworkError):
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


def test_lenet_5_keeps_exactly_what_lies_on_a_path():
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
def test_one_removal_leads_to_the_next():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    net[0].weight.copy_(torch.tensor([[1.0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]))
    net[2].weight.copy_(torch.tensor([[0.0, 1, 3], [1, 0, 0], [0, 0, 1]]))
    net[4].weight.copy_(torch.tensor([[1.0, 0, 5], [2, 0, 7]]))
    net[0].bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    net[2].bias.copy_(torch.tensor([0.0, 1.0, -0.1]))
    net[4].bias.zero_()
    small = shrink(net)
    # nobody reads unit 1 of the second layer, so nobody unit 0 of the first, so nobody inputs 0 and 1; unit 2 of the
    # first layer is the constant 0.3, unit 2 of the second so relu(0.3 - 0.1); input 3 was never read
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
def test_a_bias_is_made_where_one_is_needed():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2, bias=False))
    net[0].weight[0] = 0.0
    small = shrink(net)
    expected = torch.sigmoid(net[0].bias[0]) * net[2].weight[:, 0]
    assert torch.allclose(small.module.get_submodule("2").bias, expected)
    assert difference(small.module, net, (2,), torch.float32) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("padding", "bias", "width"), [(1, 0.5, 3), (1, -0.5, 2), (0, 0.5, 2)])
def test_constants_stay_only_where_padding_makes_them_visible(padding, bias, width):
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
def test_channels_of_a_sum_go_together():
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


# --- what is left whole, and what is refused --------------------------------------------------------------------------


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
    "softmax": (lambda: Around(nn.Softmax(-1)), "middle is left whole: a Softmax"),
    "called twice": (lambda: Around(Twice(nn.Linear(6, 6))), "middle.part is left whole: it is called more than once"),
    "hooks": (lambda: Around(hooked()), "middle is left whole: it has hooks"),
    "normalised weights": (
        lambda: Around(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))),
        "middle is left whole: a ParametrizedLinear",
    ),
    "tied": (lambda: Around(tied()), "middle.0 is left whole: another layer has the same weights"),
    "in place": (lambda: Around(Doubled()), "a stays whole: mul_() is not a step"),
    "batch statistics": (
        lambda: Around(nn.BatchNorm1d(6, track_running_stats=False)),
        "middle is left whole: it has no running statistics",
    ),
    "layer norm": (lambda: Around(nn.LayerNorm(6)), "middle is left whole: a LayerNorm"),
    "groups": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 1), nn.ReLU(), nn.Conv1d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(20, 2)),
        "2 is left whole: its channels are in groups",
    ),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_shrunk_is_left_whole_and_named(name):
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


def test_a_bare_layer_is_left_whole():
    net = nn.Linear(4, 2)
    small = shrink(net)
    assert torch.equal(small.module.weight, net.weight)
    assert small.notes == ("weight, bias stays whole: linear() is not a step that can be shrunk",)


@torch.no_grad()
@pytest.mark.parametrize("act", [nn.ReLU(), nn.Sigmoid()])
@pytest.mark.parametrize("i", [0, 2, 4, 6])
def test_a_network_of_which_nothing_is_left_is_refused(i, act):
    net = mlp(act)()
    net[i].weight.zero_()
    with pytest.raises(EmptyNetworkError, match=rf"^{i}: no unit .* constant; prune less"):
        shrink(net)


@torch.no_grad()
def test_a_branch_may_end():
    torch.manual_seed(0)
    net = Residual().eval()
    net.conv1.weight.zero_()
    small = shrink(net)
    assert difference(small.module, net, IMAGE, torch.float32) < 1e-5
    assert len(small.module.conv1.weight) == 1
    assert any("conv1" in note and "one channel" in note for note in small.notes)


def test_a_network_that_cannot_be_traced_is_refused():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(
        UnsupportedLayerError, match=r"Branches: .*torch\.fx can trace.*control flow"
    ):
        shrink(Branches())


# --- the smaller network is an ordinary module ------------------------------------------------------------------------


def test_the_smaller_network_can_be_copied_called_vectorised_and_traced():
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
