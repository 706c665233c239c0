"""Networks come back bit for bit; errors say what a file cannot hold."""

import os
import random
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bnn.compression.pbnn.codec import (
    FormatError,
    compression_rate,
    decode,
    describe,
    encode,
    load,
    save,
)
from pyro_bnn.compression.pbnn.graph_codes import OPERATIONS
from pyro_bnn.compression.pruning.graph import UnsupportedLayerError, graph_of
from tests.compression.pbnn.networks import (
    NETWORKS,
    check_round_trip,
    seeded,
    small,
    sparse,
    trained_norms,
    with_weight,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_comes_back_bit_for_bit(name, dtype):
    build, shape = NETWORKS[name]
    net = trained_norms(seeded(build)).to(dtype)
    check_round_trip(net, torch.randn(shape, dtype=dtype))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(
                sparse(parameter, 0.3, seed=parameter.numel()).mul(8).round().div(8) + 0.0
            )
    check_round_trip(net, torch.randn(shape, dtype=dtype))


def test_the_networks_of_these_tests_use_every_operation_of_the_format():
    used = {torch.flatten, torch.reshape, "output"}  # reshape: in the next test
    for build, _ in NETWORKS.values():
        graph = graph_of(seeded(build))
        for node in graph.graph.nodes:
            if node.op == "call_module":
                used.add(type(graph.get_submodule(node.target)))
            else:
                used.add(node.target)
    assert used >= {getattr(operation, "function", operation) for operation in OPERATIONS}


def test_a_reshape_of_flat_inputs_to_images_comes_back():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(12, 2)

        def forward(self, x):
            return self.fc(F.relu(self.conv(x.reshape(-1, 2, 4, 4))).flatten(1))

    check_round_trip(seeded(Net), torch.randn(3, 32), torch.randn(1, 32))


def test_random_dense_networks_come_back_bit_for_bit():
    for seed in range(12):
        generator = random.Random(seed)
        widths = [generator.randrange(1, 12) for _ in range(generator.randrange(2, 6))]
        torch.manual_seed(seed)
        layers = []
        for a, b in pairwise(widths):
            weight = sparse(
                torch.randn(b, a), generator.random(), generator.choice((0, 0, 1, 2, 5)), seed
            )
            bias = torch.randn(b).round(decimals=generator.randrange(4))
            layers.append(with_weight(nn.Linear(a, b), weight, bias))
            layers += [generator.choice((nn.ReLU(), nn.Tanh(), nn.Dropout(0.3), nn.Identity()))]
        check_round_trip(nn.Sequential(*layers).eval(), torch.randn(3, widths[0]))


def test_a_saved_network_is_loaded_and_every_byte_is_accounted_for(tmp_path):
    net, path = small(), tmp_path / "net.pbnn"
    sizes = save(net, path)
    assert path.stat().st_size == sizes.total == describe(path.read_bytes()).total
    assert [row.name for row in sizes.layers] == ["0", "2"]
    assert [row.name for row in describe(path.read_bytes()).layers] == ["layer0", "layer1"]
    assert [row.numbers for row in sizes.layers] == [35, 12]
    assert sum(row.total for row in sizes.layers) + sizes.graph + sizes.header == pytest.approx(
        sizes.total
    )
    assert 7 <= sizes.header < 8.5
    lines = str(sizes).splitlines()
    assert lines[0].split()[:3] == ["layer", "numbers", "positions"]
    assert lines[-1].split() == ["total", "47", str(sizes.total)]
    x = torch.randn(3, 6)
    assert torch.equal(load(path)(x), net(x))
    assert (
        compression_rate(path, 40) == compression_rate(path.read_bytes(), 40) == 160 / sizes.total
    )
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save(net, path)
    net[2].bias.data += 1
    save(net, path, overwrite=True)
    assert torch.equal(load(path)(x), net(x))
    assert os.listdir(tmp_path) == ["net.pbnn"]


def test_the_default_dtype_does_not_change_a_file():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 3))
    net[0].weight.data *= torch.rand(20, 64) > 0.7  # sparse, so that all forms are tried
    content = encode(net)
    torch.set_default_dtype(torch.float64)
    try:
        assert encode(net) == content
        decoded = decode(content)
    finally:
        torch.set_default_dtype(torch.float32)
    x = torch.randn(5, 64)
    assert torch.equal(decoded(x), net(x))


def test_the_minus_zeros_of_a_pruned_network_are_written_as_zeros(tmp_path):
    net = small()
    expected = len(encode(net))
    with torch.no_grad():
        net[0].weight.copy_(torch.where(net[0].weight == 0, -0.0, net[0].weight))
    assert len(encode(net)) > expected
    assert save(SimpleNamespace(module=net), tmp_path / "net.pbnn").total == expected
    assert net[0].weight[net[0].weight == 0].signbit().all()
    x = torch.randn(3, 6)
    assert torch.equal(load(tmp_path / "net.pbnn")(x), net(x))


def test_a_compression_rate_of_no_weights_is_an_error():
    with pytest.raises(ValueError, match=r"compression_rate: expected the number of weights"):
        compression_rate(b"abc", 0)


def test_loading_a_missing_file_or_one_of_another_format_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pbnn"):
        load(tmp_path / "none.pbnn")
    (tmp_path / "text.pbnn").write_text("this is no network")
    with pytest.raises(FormatError, match=r"load: .*text\.pbnn: expected a compressed network"):
        load(tmp_path / "text.pbnn")


def test_saving_a_posterior_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="save: expected a module or the result of prune, got a di"):
        save({}, tmp_path / "net.pbnn")


class Softmax(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return torch.softmax(self.fc(x), 1)


def test_networks_that_the_format_cannot_hold_are_an_error():
    with pytest.raises(
        UnsupportedLayerError, match=r"node 'softmax': the format has no operation softmax"
    ):
        encode(Softmax())
    with pytest.raises(UnsupportedLayerError, match=r"Bilinear|LayerNorm"):
        encode(nn.Sequential(nn.LayerNorm(3)))
    with pytest.raises(UnsupportedLayerError, match="running statistics"):
        encode(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)))
    mixed = nn.Linear(3, 2)
    mixed.bias = nn.Parameter(mixed.bias.detach().double())
    with pytest.raises(UnsupportedLayerError, match="not of one type"):
        encode(nn.Sequential(mixed))
    with pytest.raises(UnsupportedLayerError, match="not of one type"):
        encode(nn.Sequential(nn.Linear(3, 2, dtype=torch.complex64)))


def test_encoding_changes_neither_the_network_nor_the_random_state():
    net = small().train()
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    decode(encode(net))
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
