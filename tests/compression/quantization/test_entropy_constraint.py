"""Entropy-constrained codebooks: their length against that of k-means and of all codes."""

import math

import pytest
import torch

from pyro_bnn.compression.quantization.codebooks import codes, quantize
from tests.compression.quantization.pruned_networks import (
    clusterings,
    parameter,
    pruned_net,
    value_bits,
)


def nats(pruned, small, name, bits_weight):
    """Return the description length of the equation: distortion, code, table."""
    before, after = (parameter(p, name).detach() for p in (pruned, small))
    kept = before != 0
    distortion = ((before - after).square() / (2 * pruned.variances[name]))[kept].sum()
    code = codes(small)[name]
    bits = code.bits * int(kept.sum()) + 16 * len(code.values)
    return float(distortion) + bits_weight * math.log(2) * bits


@pytest.mark.parametrize("bits_weight", [1.0, 30.0])
def test_the_entropy_constraint_lowers_the_description_length(bits_weight):
    pruned = pruned_net()
    constrained = quantize(pruned, 12, "posterior", bits_weight)
    for name in pruned.variances:
        length = nats(pruned, constrained, name, bits_weight)
        others = [
            nats(pruned, quantize(pruned, levels), name, bits_weight) for levels in (1, 2, 4, 8, 12)
        ]
        assert length <= min(others)  # k-means of any size costs as much or more
        assert length < others[-1]


def test_a_higher_price_of_bits_gives_fewer_bits_and_more_distortion():
    pruned = pruned_net()
    lengths, distortions = [], []
    for bits_weight in (0.0, 0.03, 0.3, 3.0, 1e5):
        small = quantize(pruned, 16, "posterior", bits_weight)
        lengths.append(value_bits(small))
        distortions.append(sum(nats(pruned, small, name, 0.0) for name in pruned.variances))
    assert lengths == sorted(lengths, reverse=True)
    assert distortions == sorted(distortions)
    assert lengths[0] > 3
    assert lengths[-1] == 0  # one value for all weights


def test_small_codes_are_within_a_percent_of_the_best_of_all_codes():
    for seed in range(5):
        pruned = pruned_net(seed, sizes=(4, 2, 3), dropped=0.0)
        small = quantize(pruned, 3, "posterior", 0.02)
        for name, variance in pruned.variances.items():
            weight = parameter(pruned, name).detach()
            kept = weight != 0
            values, precision = weight[kept].double(), 1 / variance[kept].double()
            best = least_length(values, precision, 3, 0.02)
            # half precision costs up to 2^-11 of a value: what that is in nats, on top
            slack = float((precision * (values * 2.0**-11).square()).sum())
            assert nats(pruned, small, name, 0.02) <= 1.01 * best + slack


def least_length(values, precision, levels, bits_weight):
    """Return the least description length over all codes."""
    member = clusterings(len(values), levels)
    mass, first, second = ((precision * values**power) @ member for power in range(3))
    distortion = (second - first.square() / mass.clamp_min(1e-300)).sum(1) / 2
    counts = member.sum(1)
    code = torch.xlogy(counts, len(values) / counts.clamp_min(1)).sum(1)
    return float((distortion + bits_weight * (code + 16 * math.log(2) * (counts > 0).sum(1))).min())
