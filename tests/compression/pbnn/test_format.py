"""The file format is frozen."""

import torch
import torch.nn.functional as F

from pyro_bnn.compression.pbnn.codec import decode, encode
from tests.compression.pbnn.networks import same_bits

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
