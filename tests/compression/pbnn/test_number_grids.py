"""Grids hold numbers exactly, and every bit pattern comes back from a file."""

import math
import random

import pytest
import torch
from torch import nn

from pyro_bnn.compression.pbnn.codec import FormatError, decode, encode
from pyro_bnn.compression.pbnn.number_grids import DTYPES, NumberGrid, bits_of, numbers_of
from tests.compression.pbnn.networks import check_round_trip, same_bits, tensors, with_weight


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_pattern_comes_back(dtype):
    """Infinities, NaNs with payloads, subnormal numbers and zeros of both signs among them."""
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


def test_minus_zeros_come_back_and_cost_as_much_as_other_numbers():
    layer = with_weight(nn.Linear(300, 20), torch.zeros(20, 300), torch.zeros(20))
    positive = len(check_round_trip(layer))
    with torch.no_grad():
        layer.weight[torch.rand(20, 300) < 0.5] = -0.0
    assert len(check_round_trip(layer)) > positive + 600


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fixed", [False, True])
def test_a_grid_gives_back_the_exact_numbers(dtype, fixed):
    values = torch.tensor([-3.5, -0.25, 0.0, 0.125, 1.0, 96.0], dtype=dtype)
    patterns = bits_of(values).tolist()
    grid = NumberGrid.of(patterns, dtype, fixed)
    integers = grid.integers(patterns)
    assert integers == sorted(integers)
    assert grid.patterns(integers) == patterns
    if fixed:
        assert integers == [-28, -2, 0, 1, 8, 768]
        with_minus_zero = bits_of(torch.tensor([-0.0, 1.0], dtype=dtype)).tolist()
        assert NumberGrid.of(with_minus_zero, dtype, True) is None
    with pytest.raises(FormatError, match="larger ones"):
        grid.patterns([1 << 70])


def test_numbers_too_far_apart_for_fixed_point_have_no_such_grid():
    patterns = bits_of(torch.tensor([5e-324, 2.0**52], dtype=torch.float64)).tolist()
    assert NumberGrid.of(patterns, torch.float64, True) is None
    layer = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    layer.weight = nn.Parameter(numbers_of(patterns, torch.float64).reshape(1, 2))
    check_round_trip(layer)


@pytest.mark.parametrize(
    ("dtype", "integer", "scale", "number"),
    [
        (torch.bfloat16, 259, 0, 260.0),
        (torch.float16, 70_000, 0, float("inf")),
        (torch.float32, 2**24 + 1, 0, 2.0**24),
        (torch.float16, 2**40 + 2**29 + 1, 30, 1024.0),  # rounded to float32 first
        (torch.float16, -1, 25, -0.0),
        (torch.float64, 3, 1075, 2.0**-1073),
    ],
)
def test_a_number_of_a_fixed_grid_that_the_type_does_not_hold_is_rounded(
    dtype, integer, scale, number
):
    pattern = NumberGrid(dtype, True, scale).patterns([integer])
    assert pattern == bits_of(torch.tensor([number], dtype=dtype)).tolist()
