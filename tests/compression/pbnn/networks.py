"""Networks for the tests of the file format, and the check that all of their numbers come back."""

import torch
import torch.nn.functional as F
from torch import nn

from pyro_bnn.compression.pbnn.codec import decode, encode
from pyro_bnn.compression.pbnn.number_grids import DTYPES
from pyro_bnn.compression.pruning.graph import graph_of


def seeded(build, seed=0):
    torch.manual_seed(seed)
    return build().eval()


def tensors(module):
    """Return the tensors of a network in the order of use, whatever their names."""
    graph = graph_of(nn.Sequential(module))
    layers = dict.fromkeys(
        str(node.target) for node in graph.graph.nodes if node.op == "call_module"
    )
    result = []
    for name in layers:
        state = graph.get_submodule(name).state_dict()
        result += [state[key] for key in sorted(state) if key != "num_batches_tracked"]
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            result.append(graph.get_buffer(str(node.target)))
    return result


def same_bits(a, b):
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype in DTYPES:
        integer = DTYPES[a.dtype].integer
        return torch.equal(a.view(integer), b.view(integer))
    return torch.equal(a, b)


def check_round_trip(module, *examples):
    """Encode and decode a network, compare numbers and outputs, and return the file."""
    data = encode(module)
    decoded = decode(data)
    before, after = tensors(module), tensors(decoded)
    assert len(before) == len(after)
    assert all(map(same_bits, before, after))
    assert not decoded.training
    with torch.no_grad():
        for x in examples:
            assert same_bits(module(x), decoded(x))
    assert encode(decoded) == data
    return data


def sparse(weight, kept, levels=0, seed=0):
    """Keep a random fraction of a weight, with few distinct values if ``levels`` is given."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(weight.shape, generator=generator) < kept
    if levels:
        values = torch.linspace(-1, 1, levels).half().float()
        weight = values[torch.randint(levels, weight.shape, generator=generator)]
    return torch.where(mask, weight, torch.zeros(()))


def with_weight(layer, weight, bias=None):
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer.eval()


def trained_norms(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net


def small():
    """Return a network of two sparse layers with few distinct values."""
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)))
    with torch.no_grad():
        net[0].weight.copy_(sparse(net[0].weight, 0.5, levels=3))
        net[2].weight.copy_(sparse(net[2].weight, 0.9, levels=2, seed=1))
        net[0].bias.copy_(torch.tensor([0.5, -0.25, 0.5, 0.5, 0.0]))
        net[2].bias.zero_()
    return net


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.plain = nn.BatchNorm2d(4, affine=False, eps=0.0123)
        self.register_buffer("index", torch.tensor([3, 0, 2]))
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        h = F.relu(self.norm(self.first(x)))
        h = h + self.plain(self.second(h))
        return self.last(torch.index_select(h.mean((2, 3)), 1, self.index))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.turn = nn.Linear(5, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.turn(torch.tanh(self.turn(x)))))


class Activations(nn.Module):
    def forward(self, x):
        x = torch.relu(x) + torch.tanh(x) + torch.sigmoid(x) + F.silu(x)
        x = x + F.gelu(x) + F.gelu(x, approximate="tanh")
        x = F.leaky_relu(x, 0.3) + F.leaky_relu(x, 0.01) + F.elu(x, alpha=0.7)
        return F.softplus(x, beta=2.0, threshold=15.0) + F.softplus(x)


IMAGES = (5, 3, 12, 12)


NETWORKS = {
    "dense": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)),
        (4, 6),
    ),
    "one weight": (lambda: nn.Linear(1, 1), (4, 1)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
            nn.Conv2d(6, 6, 3, groups=3, padding="same"),
            nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(4, 4, 1, padding="valid"),
        ),
        IMAGES,
    ),
    "pools": (
        lambda: nn.Sequential(
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            nn.AvgPool2d((2, 3), (1, 2), (1, 0), count_include_pad=False, divisor_override=5),
            nn.Conv2d(3, 2, 1),
            nn.AdaptiveAvgPool2d((2, None)),
            nn.Flatten(),
        ),
        IMAGES,
    ),
    "one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 4, 3, padding=2, dilation=2, padding_mode="circular"),
            nn.BatchNorm1d(4),
            nn.MaxPool1d(2),
            nn.AvgPool1d(2, 1),
            nn.AdaptiveAvgPool1d(3),
            nn.Flatten(),
            nn.Linear(12, 2),
        ),
        (5, 3, 20),
    ),
    "residual": (Residual, IMAGES),
    "shared": (Shared, (4, 5)),
    "activations": (Activations, (4, 7)),
}
