"""The file format is frozen, and its specification is enough to write a decoder."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pyro_bnn import compression
from pyro_bnn.compression.pbnn import codec
from pyro_bnn.compression.pbnn.codec import decode, encode
from pyro_bnn.compression.pbnn.graph_codes import LIKELY, OPERATIONS
from tests.compression.pbnn import independent_decoder
from tests.compression.pbnn.networks import NETWORKS, same_bits, seeded, small, trained_norms

RECORDS = Path(__file__).parents[3] / "benchmarks" / "records"
FROZEN = bytes.fromhex(
    "5042013ebbd3a86126c6e4dbf8b76800000000cdcccc3d000000c0000040409a9999be26f4d9fc"
)
FROZEN_IMAGES = bytes.fromhex("5042017b8165b73da5ba5675f6e611803b1254")
HASHES = {
    "small": "2b9f0f078d3572a768f9e6c91bd46628e25fce55ef2dd19e64d912635f81e55c",
    "residual": "770ce921613092cf952e7d799d37f30f0674b05af9954540746ee0517c840fb3",
    "one dimension": "e5e6b4cea665b9902f8536d057248df3334f76fae0eb94859bb424931bee949b",
}


def test_files_of_version_1_stay_readable():
    net = decode(FROZEN)
    weight = torch.tensor([[0.5, 0.0, -1.25], [0.0, 0.5, 0.5]])
    assert same_bits(net.layer0.weight, weight)
    assert same_bits(net.layer0.bias, torch.tensor([0.1, -2.0]))
    assert same_bits(net.layer1.weight, torch.tensor([[3.0, -0.3]]))
    assert net.layer1.bias is None
    x = torch.tensor([[1.0, 2.0, 3.0]])
    hidden = F.leaky_relu(F.linear(x, weight, net.layer0.bias), 0.2)
    assert same_bits(net(x), F.linear(hidden, net.layer1.weight))
    assert encode(net) == FROZEN


def test_a_mask_of_an_image_and_numbers_in_fixed_point_stay_readable():
    net = decode(FROZEN_IMAGES)
    vertical = [[0.0, 0.5, 0.0], [0.0, 0.5, 0.0], [0.0, 0.5, 0.0]]
    horizontal = [[0.0, 0.0, 0.0], [0.5, -0.25, 0.5], [0.0, 0.0, 0.0]]
    assert same_bits(net.layer0.weight, torch.tensor([[vertical], [horizontal]]))
    assert same_bits(net.layer0.bias, torch.tensor([0.75, -1.5]))


def rounded(name):
    """Return a network whose numbers are multiples of 1/8, the same on every machine."""
    if name == "small":
        return small()
    net = trained_norms(seeded(NETWORKS[name][0]))
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.copy_((8 * value).round() / 8 + 0.0)
    return net


@pytest.mark.parametrize("name", HASHES)
def test_a_network_is_encoded_to_its_frozen_bytes(name):
    assert hashlib.sha256(encode(rounded(name))).hexdigest() == HASHES[name]


def test_a_record_is_encoded_to_its_frozen_bytes():
    path = RECORDS / "lenet-5-caffe.pbnn"
    if not path.exists():
        pytest.skip("the records are part of a checkout only")
    assert encode(compression.load(path)) == path.read_bytes()


def specification():
    return Path(codec.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")


def test_the_specification_lists_the_operations_and_the_likely_ones_after_each():
    section = specification().partition("## 6. ")[2].partition("## 7. ")[0]
    likely = {}
    for line in section.splitlines():
        row = re.match(r"\| (-?\d+) \|.*\| ([\d, ]*)\|$", line)
        if row:
            likely[int(row[1])] = tuple(map(int, re.findall(r"\d+", row[2])))
    assert list(likely) == list(range(-1, len(OPERATIONS)))
    assert {code: after for code, after in likely.items() if after} == LIKELY


@pytest.mark.parametrize(
    ("heading", "end", "file"),
    [
        ("## 11. Example", "holds a linear layer", FROZEN),
        ("## 12. Example with images", "holds a convolution", FROZEN_IMAGES),
    ],
)
def test_the_examples_of_the_specification_are_the_frozen_files(heading, end, file):
    example = specification().partition(heading + "\n")[2].partition(end)[0]
    assert bytes.fromhex("".join(re.findall(r"\b[0-9a-f]{2}\b", example))) == file


@pytest.mark.parametrize("name", ["lenet-300-100.pbnn", "lenet-5-caffe.pbnn"])
def test_a_decoder_written_from_the_specification_reads_a_record_bit_for_bit(name):
    path = RECORDS / name
    if not path.exists():
        pytest.skip("the records are part of a checkout only")
    network = compression.load(path)
    decoder = independent_decoder.Decoder(path.read_bytes())
    layers = [layer for layer in network.children() if hasattr(layer, "weight")]
    assert len(decoder.layers) == len(layers)
    for (weight, bias), layer in zip(decoder.layers, layers, strict=True):
        assert np.array_equal(weight.view("<u4"), layer.weight.detach().numpy().view("<u4"))
        assert np.array_equal(bias.view("<u4"), layer.bias.detach().numpy().view("<u4"))
    assert decoder.selections == [network.index0.tolist()]


def test_the_independent_decoder_is_short_and_needs_numpy_alone():
    source = Path(independent_decoder.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 200
    assert not re.search(r"^(import|from) (torch|pyro)", source, re.MULTILINE)
