"""Files are as short as the entropy of what they hold, and every byte is accounted for."""

import math
import time

import pytest
import torch
from torch import nn

from pyro_bnn.compression.pbnn.codec import describe, encode
from pyro_bnn.compression.pruning.unit_order import sorted_units
from tests.compression.pbnn.networks import (
    Shared,
    check_round_trip,
    seeded,
    sparse,
    trained_norms,
    with_weight,
)

EDGES = {
    "zeros": lambda: torch.zeros(40, 30),
    "one value": lambda: torch.full((40, 30), -1.7),
    "one value and zeros": lambda: sparse(torch.full((40, 30), 0.1), 0.2),
    "one number": lambda: torch.zeros(40, 30).index_put(
        (torch.tensor(3), torch.tensor(29)), torch.tensor(0.3)
    ),
    "diagonal": lambda: torch.eye(900),
    "dense": lambda: torch.randn(40, 30),
    "two values": lambda: torch.randn(40, 30).sign(),
    "many values": lambda: torch.randint(1, 900, (40, 30)).float() / 256,
}


def seeded_weight(name):
    torch.manual_seed(0)
    return EDGES[name]()


@pytest.mark.parametrize("name", EDGES)
def test_regular_weights_take_few_bytes(name):
    weight = seeded_weight(name)
    rows, columns = weight.shape
    layer = with_weight(nn.Linear(columns, rows, bias=False), weight)
    length = len(check_round_trip(layer, torch.randn(2, columns)))
    most = {
        "zeros": 20,
        "one value": 25,
        "one number": 26,
        "dense": 4 * 1200 + 20,
        "two values": 175,
        "diagonal": 900,
    }
    assert length <= most.get(name, 4 * 1200 + 20)


def entropy(p):
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def test_a_sparse_codebook_costs_its_entropy():
    """No structure: 16,000 positions, 4 % of them with one of 8 equally frequent values."""
    weight = sparse(torch.zeros(80, 200), 0.04, levels=8)
    kept = int((weight != 0).sum())
    data = check_round_trip(with_weight(nn.Linear(200, 80, bias=False), weight))
    ideal = (weight.numel() * entropy(kept / weight.numel()) + 3 * kept) / 8
    assert len(data) < 1.03 * ideal + 40
    sizes = describe(data)
    assert (
        sizes.layers[0].positions < 1.03 * weight.numel() * entropy(kept / weight.numel()) / 8 + 8
    )
    assert sizes.layers[0].values < 1.06 * 3 * kept / 8 + 8


def fields(units=40, side=16, kept=0.5, seed=0):
    """Return receptive fields: each unit reads points around a center, all of one sign."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    weight = torch.zeros(units, side, side)
    for unit in range(units):
        cy, cx = torch.randint(side, (2,), generator=generator)
        near = ((y - cy) ** 2 + (x - cx) ** 2 <= 9) & (
            torch.rand(side, side, generator=generator) < kept
        )
        magnitude = 0.5 * torch.randint(1, 4, (side, side), generator=generator)
        weight[unit] = torch.where(near, magnitude * (1 if unit % 2 else -1), torch.zeros(()))
    return weight.flatten(1)


def test_receptive_fields_take_fewer_bytes_than_weights_without_structure():
    """Also when a selection leaves only some points of the image."""

    class Selected(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.register_buffer("index", (weight != 0).any(0).nonzero().flatten())
            self.fc = with_weight(
                nn.Linear(len(self.index), len(weight), bias=False), weight[:, self.index]
            )

        def forward(self, x):
            return self.fc(torch.index_select(x.flatten(1), 1, self.index))

    weight = fields()
    weight[:, torch.rand(256, generator=torch.Generator().manual_seed(1)) < 0.2] = 0
    net = Selected(weight).eval()
    data = check_round_trip(net, torch.randn(3, 256))
    kept, places = int((weight != 0).sum()), net.fc.weight.numel()
    row = describe(data).layers[1]
    assert row.positions < 0.75 * places * entropy(kept / places) / 8
    assert row.values < 0.9 * kept * math.log2(6) / 8
    shuffled = with_weight(nn.Linear(256, 40, bias=False), weight[:, torch.randperm(256)])
    assert len(encode(shuffled)) > 1.2 * len(data)


def test_a_codebook_used_again_is_not_written_again():
    first = sparse(torch.zeros(30, 20), 0.5, levels=16)

    def sizes_with(second):
        layers = [
            with_weight(nn.Linear(20, 30, bias=False), first),
            with_weight(nn.Linear(30, 20, bias=False), second),
        ]
        return describe(encode(nn.Sequential(*layers)))

    shared, different = sizes_with(first.T), sizes_with(1.25 * first.T)
    assert shared.layers[1].codebook < 2 < 6 < different.layers[1].codebook


def test_sorted_units_shorten_the_file_and_keep_the_function():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(24, 60),
        nn.BatchNorm1d(60),
        nn.ReLU(),
        nn.Linear(60, 10),
    )
    trained_norms(net).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(
                (parameter * 8).round() / 8 if parameter.dim() > 1 else torch.randn(len(parameter))
            )
        for name in ("0", "4", "7"):
            net.get_parameter(f"{name}.bias").mul_(16).round_().div_(16)
    net.double()
    x = torch.randn(7, 1, 8, 8, dtype=torch.float64)
    ordered = sorted_units(net)
    assert torch.allclose(ordered(x), net(x), rtol=1e-12, atol=1e-12)
    for name in ("0", "4", "7"):
        assert torch.equal(
            ordered.get_parameter(f"{name}.bias"), net.get_parameter(f"{name}.bias").sort().values
        )
        assert not torch.equal(
            ordered.get_parameter(f"{name}.weight"), net.get_parameter(f"{name}.weight")
        )
    assert torch.equal(ordered.get_parameter("10.bias"), net.get_parameter("10.bias"))
    assert len(encode(ordered)) < len(encode(net)) - 10
    shared = seeded(Shared)
    assert torch.equal(sorted_units(shared).get_parameter("turn.weight"), shared.turn.weight)


def test_large_dense_networks_are_written_raw_in_time():
    net = seeded(
        lambda: nn.Sequential(
            nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.Linear(100, 10)
        )
    )
    count = sum(parameter.numel() for parameter in net.parameters())
    start = time.process_time()
    data = check_round_trip(net, torch.randn(2, 784))
    assert len(data) < 4 * count + 30
    assert time.process_time() - start < 10
