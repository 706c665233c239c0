"""The file format: every number comes back bit for bit, files are as short as they can be, and bad ones are refused."""

import math
import os
import random
import time
import zlib
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
from pyro_bnn.compression.pbnn.graph_codes import LAYERS, OPERATIONS, Operation, code_operation
from pyro_bnn.compression.pbnn.number_grids import DTYPES, NumberGrid, bits_of, numbers_of
from pyro_bnn.compression.pbnn.range_coder import RangeEncoder
from pyro_bnn.compression.pbnn.tensor_codes import State
from pyro_bnn.compression.pruning.graph import UnsupportedLayerError, graph_of
from pyro_bnn.compression.pruning.unit_order import sorted_units


def seeded(build, seed=0):
    torch.manual_seed(seed)
    return build().eval()


def tensors(module):
    """The tensors of a network in the order of use, whatever their names."""
    graph = graph_of(nn.Sequential(module))
    layers = dict.fromkeys(
        str(node.target) for node in graph.graph.nodes if node.op == "call_module"
    )
    found = []
    for name in layers:
        state = graph.get_submodule(name).state_dict()
        found += [state[key] for key in sorted(state) if key != "num_batches_tracked"]
    return found + [
        graph.get_buffer(str(n.target)) for n in graph.graph.nodes if n.op == "get_attr"
    ]


def same_bits(a, b):
    as_integers = [t.view(DTYPES[t.dtype][0]) if t.dtype in DTYPES else t for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_integers)


def check_round_trip(module, *examples):
    data = encode(module)
    made = decode(data)
    before, after = tensors(module), tensors(made)
    assert len(before) == len(after)
    assert all(map(same_bits, before, after))
    assert not made.training
    with torch.no_grad():
        for x in examples:
            assert same_bits(module(x), made(x))
    assert encode(made) == data
    return data


def sparse(weight, kept, levels=0, seed=0):
    """Zero all but a fraction of a weight; give what is left few distinct values."""
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


# --- every layer ------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
        )
        self.norm, self.plain = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False, eps=0.0123)
        self.register_buffer("index", torch.tensor([3, 0, 2]))
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        h = F.relu(self.norm(self.first(x)))
        h = h + self.plain(self.second(h))
        return self.last(torch.index_select(h.mean((2, 3)), 1, self.index))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.turn, self.last = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.turn(torch.tanh(self.turn(x)))))


class Activations(nn.Module):
    def forward(self, x):
        x = (
            torch.relu(x)
            + torch.tanh(x)
            + torch.sigmoid(x)
            + F.silu(x)
            + F.gelu(x)
            + F.gelu(x, approximate="tanh")
        )
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


def trained_norms(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip_of_every_layer(name, dtype):
    build, shape = NETWORKS[name]
    net = trained_norms(seeded(build)).to(dtype)
    check_round_trip(net, torch.randn(shape, dtype=dtype))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(
                sparse(parameter, 0.3, seed=parameter.numel()).mul(8).round().div(8) + 0.0
            )
    check_round_trip(net, torch.randn(shape, dtype=dtype))


def test_every_operation_of_the_format_is_tested():
    used = set()
    for build, _ in NETWORKS.values():
        graph = graph_of(seeded(build))
        for node in graph.graph.nodes:
            used.add(
                type(graph.get_submodule(node.target)) if node.op == "call_module" else node.target
            )
    used |= {torch.flatten, torch.reshape, "output"}  # reshape: below
    assert used >= {getattr(operation, "function", operation) for operation in OPERATIONS}


def test_images_from_flat_inputs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(12, 2)

        def forward(self, x):
            return self.fc(F.relu(self.conv(x.reshape(-1, 2, 4, 4))).flatten(1))

    check_round_trip(seeded(Net), torch.randn(3, 32), torch.randn(1, 32))


def test_random_networks():
    for seed in range(12):
        generator = random.Random(seed)
        widths = [generator.randrange(1, 12) for _ in range(generator.randrange(2, 6))]
        torch.manual_seed(seed)
        layers = []
        for a, b in pairwise(widths):
            weight = sparse(
                torch.randn(b, a), generator.random(), generator.choice((0, 0, 1, 2, 5)), seed
            )
            layers += [
                with_weight(
                    nn.Linear(a, b), weight, torch.randn(b).round(decimals=generator.randrange(4))
                )
            ]
            layers += [generator.choice((nn.ReLU(), nn.Tanh(), nn.Dropout(0.3), nn.Identity()))]
        check_round_trip(nn.Sequential(*layers).eval(), torch.randn(3, widths[0]))


# --- every number -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_bit_patterns(dtype):
    """Random bits hold infinities, NaNs with payloads, subnormal numbers and zeros of both signs."""
    width = 8 * dtype.itemsize
    generator = random.Random(0)
    special = [
        0,
        -(1 << width - 1),
        -1,
        (1 << width - 1) - 1,
        1,
        -2,
        *bits_of(torch.tensor([math.inf], dtype=dtype)),
    ]
    for count in (1, 7, 500):
        bits = [
            generator.choice((*special, generator.getrandbits(width) - (1 << width - 1)))
            for _ in range(count)
        ]
        weight = numbers_of([int(b) for b in bits], dtype).reshape(1, count)
        layer = nn.Linear(count, 1, dtype=dtype)
        layer.weight = nn.Parameter(weight)
        assert same_bits(tensors(decode(encode(layer)))[1], weight)


def test_minus_zero_is_a_number_like_others():
    layer = with_weight(nn.Linear(300, 20), torch.zeros(20, 300), torch.zeros(20))
    positive = len(check_round_trip(layer))
    with torch.no_grad():
        layer.weight[torch.rand(20, 300) < 0.5] = -0.0
    assert len(check_round_trip(layer)) > positive + 600


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fixed", [False, True])
def test_grids_are_exact(dtype, fixed):
    values = torch.tensor([-3.5, -0.25, 0.0, 0.125, 1.0, 96.0], dtype=dtype)
    patterns = bits_of(values).tolist()
    lattice = NumberGrid.of(patterns, dtype, fixed)
    integers = lattice.integers(patterns)
    assert integers == sorted(integers)
    assert lattice.patterns(integers) == patterns
    if fixed:
        assert integers == [-28, -2, 0, 1, 8, 768]
        with_minus_zero = bits_of(torch.tensor([-0.0, 1.0], dtype=dtype)).tolist()
        assert NumberGrid.of(with_minus_zero, dtype, True) is None
    with pytest.raises(FormatError, match="larger ones"):
        lattice.patterns([1 << 70])


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


@pytest.mark.parametrize("name", EDGES)
def test_edges(name):
    weight = seeded_tensor(EDGES[name])
    rows, columns = weight.shape
    length = len(
        check_round_trip(
            with_weight(nn.Linear(columns, rows, bias=False), weight), torch.randn(2, columns)
        )
    )
    most = {
        "zeros": 20,
        "one value": 25,
        "one number": 26,
        "dense": 4 * 1200 + 20,
        "two values": 175,
        "diagonal": 900,
    }
    assert length <= most.get(name, 4 * 1200 + 20)


def seeded_tensor(build):
    torch.manual_seed(0)
    return build()


# --- how short --------------------------------------------------------------------------------------------------------


def entropy(p):
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def test_a_sparse_codebook_costs_its_entropy():
    """No structure at all: 16,000 places with 4 % of weights, 8 values of equal frequency; all of the file counts."""
    weight = sparse(torch.zeros(80, 200), 0.04, levels=8)
    kept = int((weight != 0).sum())
    data = check_round_trip(with_weight(nn.Linear(200, 80, bias=False), weight))
    ideal = (weight.numel() * entropy(kept / weight.numel()) + 3 * kept) / 8
    assert len(data) < 1.03 * ideal + 40
    sizes = describe(data)
    assert sizes.layers[0].support < 1.03 * weight.numel() * entropy(kept / weight.numel()) / 8 + 8
    assert sizes.layers[0].values < 1.06 * 3 * kept / 8 + 8


def fields(units=40, side=16, kept=0.5, seed=0):
    """Receptive fields: every unit reads points around a centre of its own, all of one sign."""
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


def test_images_are_seen():
    """Fields of images cost less than places and signs without structure, also when only some points are read."""

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
    assert row.support < 0.75 * places * entropy(kept / places) / 8
    assert row.values < 0.9 * kept * math.log2(6) / 8
    shuffled = with_weight(nn.Linear(256, 40, bias=False), weight[:, torch.randperm(256)])
    assert len(encode(shuffled)) > 1.2 * len(data)


def test_repeated_codebooks_are_listed_once():
    first = sparse(torch.zeros(30, 20), 0.5, levels=16)
    nets = [
        nn.Sequential(
            with_weight(nn.Linear(20, 30, bias=False), first),
            with_weight(nn.Linear(30, 20, bias=False), factor * first.T),
        )
        for factor in (1.0, 1.25)
    ]
    shared, different = (describe(encode(net)) for net in nets)
    assert shared.layers[1].codebook < 2 < 6 < different.layers[1].codebook


def test_sorted_units_shorten_the_file_and_change_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(24, 60), nn.BatchNorm1d(60), nn.ReLU(), nn.Linear(60, 10),
    )  # fmt: skip
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


def test_large_dense_networks_are_written_as_they_are():
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


# --- files ------------------------------------------------------------------------------------------------------------


def small():
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)))
    with torch.no_grad():
        net[0].weight.copy_(sparse(net[0].weight, 0.5, levels=3))
        net[2].weight.copy_(sparse(net[2].weight, 0.9, levels=2, seed=1))
        net[0].bias.copy_(torch.tensor([0.5, -0.25, 0.5, 0.5, 0.0]))
        net[2].bias.zero_()
    return net


def test_save_and_load(tmp_path):
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
    assert len({len(line) for line in lines}) == 1
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


def test_the_default_dtype_has_no_say():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 3))
    net[0].weight.data *= torch.rand(20, 64) > 0.7  # sparse, so grids and supports are looked for
    content = encode(net)
    torch.set_default_dtype(torch.float64)
    try:
        assert encode(net) == content
        decoded = decode(content)
    finally:
        torch.set_default_dtype(torch.float32)
    x = torch.randn(5, 64)
    assert torch.equal(decoded(x), net(x))


def test_pruned_networks_have_no_minus_zeros(tmp_path):
    net = small()
    expected = len(encode(net))
    with torch.no_grad():
        net[0].weight.copy_(torch.where(net[0].weight == 0, -0.0, net[0].weight))
    assert len(encode(net)) > expected
    assert save(SimpleNamespace(module=net), tmp_path / "net.pbnn").total == expected
    assert net[0].weight[net[0].weight == 0].signbit().all()
    x = torch.randn(3, 6)
    assert torch.equal(load(tmp_path / "net.pbnn")(x), net(x))


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="number of weights"):
        compression_rate(b"abc", 0)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.pbnn")
    (tmp_path / "text.pbnn").write_text("this is no network")
    with pytest.raises(FormatError, match=r"text\.pbnn: expected a compressed network"):
        load(tmp_path / "text.pbnn")


class Softmax(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return torch.softmax(self.fc(x), 1)


def test_what_the_format_does_not_have():
    with pytest.raises(
        UnsupportedLayerError, match=r"node 'softmax': softmax is none of the operations"
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


def test_nothing_but_the_network_is_touched():
    net = small().train()
    state, before = (
        torch.get_rng_state(),
        {name: value.clone() for name, value in net.state_dict().items()},
    )
    decode(encode(net))
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# --- files that are none ----------------------------------------------------------------------------------------------


def checked(body):
    """Return a file with a right checksum."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_every_flipped_bit_and_every_other_length_is_an_error():
    data = encode(small())
    decode(data)
    bad = [data[:k] for k in range(len(data))]
    bad += [data + b"\0", data + data, b"\0" + data]
    for k in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[k // 8] ^= 1 << k % 8
        bad.append(bytes(flipped))
    for file in bad:
        with pytest.raises(FormatError, match=r"^expected"):
            decode(file)
    with pytest.raises(FormatError, match="expected version 1 of the format, found 2"):
        decode(checked(data[:2] + b"\2" + data[3:-4]))


def test_no_byte_may_follow_even_under_a_right_checksum():
    for net in (small(), seeded(lambda: nn.Linear(30, 20))):
        data = encode(net)
        for more in (b"\0", b"\x01", b"\x80", b"\xff\xff", bytes(9)):
            with pytest.raises(FormatError):
                decode(checked(data[:-4] + more))


def hostile(inputs, outputs, after=()):
    """The head of a network with one enormous layer."""
    coder, state = RangeEncoder(), State()
    code_operation(coder, state, 0, -1)
    for value, context in [(0, "back"), (0, "type"), (inputs, "width"), (outputs, "width"), *after]:
        state.numbers.code(coder, value, context)
    return checked(b"PB\1" + coder.finish())


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(2**24, 2**24), (2**40, 2**30), (2**71, 1), (5000, 4000)]
)
def test_claims_of_terabytes_are_refused_before_memory_is_taken(inputs, outputs):
    start = time.process_time()
    with pytest.raises(FormatError, match=r"numbers and more|expected a size up to"):
        decode(hostile(inputs, outputs))
    assert time.process_time() - start < 1


def test_claims_of_endless_masks_are_refused_in_time():
    for support, values in [(1, 0), (1, 2), (2, 0), (0, 0), (0, 1), (0, 2)]:
        for inputs, outputs in [(700, 700), (1, 400_000), (400_000, 1), (4000, 4000)]:
            after = [(support, ("support", "weight")), (values, ("values", "weight"))]
            start = time.process_time()
            with pytest.raises(FormatError):
                decode(hostile(inputs, outputs, after))
            assert time.process_time() - start < 3


def mutated(generator, data):
    """A file with flipped bits, cut, extended, spliced, overwritten or random; mostly with a right checksum."""
    body = bytearray(data[:-4])
    kind = generator.randrange(6)
    if kind == 0:
        for _ in range(generator.randrange(1, 4)):
            body[generator.randrange(len(body))] ^= 1 << generator.randrange(8)
    elif kind == 1:
        del body[generator.randrange(len(body)) :]
    elif kind == 2:
        body += generator.randbytes(generator.randrange(1, 9))
    elif kind == 3:
        a, b, c = sorted(generator.randrange(len(body)) for _ in range(3))
        body = body[:a] + body[b:c] + body[a:]
    elif kind == 4:
        for _ in range(generator.randrange(1, 6)):
            body[generator.randrange(len(body))] = generator.randrange(256)
    else:
        body[3:] = bytes(
            generator.choice((0, 255, generator.randrange(256)))
            for _ in range(generator.randrange(60))
        )
    if generator.random() < 0.9:
        body[:3] = data[:3]
        return checked(bytes(body))
    return bytes(body) + data[-4:]


def test_ten_thousand_mutations_end_in_one_error_or_in_a_network():
    """A mutation under a right checksum may be a network, of the operations of the format and nothing else."""
    allowed = {operation.function for operation in OPERATIONS if isinstance(operation, Operation)}
    nets = [small(), seeded(Shared), seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU()))]
    files = [encode(net) for net in nets]
    networks, slowest = 0, 0.0
    for seed in range(10_000):
        generator = random.Random(seed)
        file = mutated(generator, generator.choice(files))
        start = time.process_time()
        try:
            made = decode(file)
        except FormatError:
            made = None
        slowest = max(slowest, time.process_time() - start)
        if made is None:
            continue
        networks += 1
        for node in made.graph.nodes:
            if node.op == "call_function":
                assert node.target in allowed
            if node.op == "call_module":
                assert type(made.get_submodule(node.target)) in LAYERS
    assert 100 < networks < 5000
    assert slowest < 2


# --- the format is frozen ---------------------------------------------------------------------------------------------

FROZEN = bytes.fromhex(
    "5042013ebbd3a86126c6e4dbf8b76800000000cdcccc3d000000c0000040409a9999be26f4d9fc"
)


def test_files_of_version_1_stay_readable():
    net = decode(FROZEN)
    weight = torch.tensor([[0.5, 0.0, -1.25], [0.0, 0.5, 0.5]])
    assert same_bits(net.layer0.weight, weight)
    assert same_bits(net.layer0.bias, torch.tensor([0.1, -2.0]))
    assert same_bits(net.layer1.weight, torch.tensor([[3.0, -0.3]]))
    assert net.layer1.bias is None
    x = torch.tensor([[1.0, 2.0, 3.0]])
    assert same_bits(
        net(x), F.linear(F.leaky_relu(F.linear(x, weight, net.layer0.bias), 0.2), net.layer1.weight)
    )
    assert encode(net) == FROZEN
