"""Every published compression rate comes out; Huffman codes are the best of all prefix codes."""

import itertools
import math

import pytest
import torch

from pyro_bnn.compression.rates import (
    csr_rate,
    entropy,
    fast_prediction_rate,
    huffman_lengths,
    layer_sizes,
    maximum_compression_rate,
    pruning_rate,
    starred_pruning_rate,
)

LENET_300_100, LENET_5, VGG = 266_200, 430_500, 14_977_728
DENSE, SMALL, WIDE = {}, {"convolutions": 2}, {"convolutions": 13, "kernel": 3, "channels": 3}


def test_the_original_networks_have_their_published_sizes():
    assert layer_sizes("784-300-100") == [235_200, 30_000, 1_000]
    assert layer_sizes("20-50-800-500", **SMALL) == [500, 25_000, 400_000, 5_000]
    widths = "64-64-128-128-256-256-256-512-512-512-512-512-512-512-512"
    assert sum(layer_sizes(widths, **WIDE)) == VGG
    assert [sum(layer_sizes("784-300-100")), sum(layer_sizes("20-50-800-500", **SMALL))] == [
        LENET_300_100,
        LENET_5,
    ]


GNJ_VGG = "63-64-128-128-245-155-63-26-24-20-14-12-11-11-15"
GHS_VGG = "51-62-125-128-228-129-38-13-9-6-5-6-6-6-20"
# network, kind, architecture, bits, remaining weights in %, then the rates of pruning and of fast
# prediction, as printed and exactly
ROWS = [
    (LENET_300_100, DENSE, "278-98-13", "8-9-14", 10.8, (9, 36), (9.29, 36.8)),
    (LENET_300_100, DENSE, "311-86-14", "13-11-10", 10.6, (9, 23), (9.48, 23.5)),
    (LENET_5, SMALL, "5-10-76-16", "10-10-14-13", 0.6, (156, 419), (156.5, 419.3)),
    (VGG, WIDE, GNJ_VGG, "10-10-10-10-8-8-8-5-5-5-5-5-6-7-11", 6.7, (14, 56), (14.96, 56.8)),
    (VGG, WIDE, GHS_VGG, "11-12-9-14-10-8-5-5-6-6-6-8-11-17-10", 5.5, (18, 59), (18.2, 59.85)),
]


@pytest.mark.parametrize(
    ("weights", "kind", "architecture", "bits", "share", "printed", "exact"), ROWS
)
def test_the_published_rows_of_group_methods_are_reproduced(
    weights, kind, architecture, bits, share, printed, exact
):
    sizes = layer_sizes(architecture, **kind)
    rates = (
        pruning_rate(weights, sum(sizes)),
        fast_prediction_rate(weights, sizes, [int(bit) for bit in bits.split("-")]),
    )
    assert tuple(map(math.floor, rates)) == printed  # the tables round down
    for rate, published in zip(rates, exact, strict=True):
        decimals = len(str(published).partition(".")[2])
        assert rate == pytest.approx(published, abs=0.5000001 * 10**-decimals)
    assert round(100 * sum(sizes) / weights, 1) == share


def test_one_published_row_holds_the_rates_of_another_architecture():
    """The rates of the printed 8-13-88-13 are 105.7 and 355.3; those of 8-13-88-12 are printed."""
    bits = [18, 10, 7, 9]
    rates = {}
    for architecture in ("8-13-88-13", "8-13-88-12"):
        sizes = layer_sizes(architecture, **SMALL)
        rates[architecture] = (
            pruning_rate(LENET_5, sum(sizes)),
            fast_prediction_rate(LENET_5, sizes, bits),
        )
    assert rates["8-13-88-13"] == pytest.approx((105.7, 355.3), abs=0.05)
    assert rates["8-13-88-12"] == pytest.approx((108.3, 361.8), abs=0.05)
    assert tuple(map(math.floor, rates["8-13-88-12"])) == (108, 361)


@pytest.mark.parametrize(
    ("share", "nominal", "printed"),
    [(8.0, 12.5, 6), (1.8, 55.6, 28), (4.3, 23, 12), (0.9, 111, 55), (0.5, 200, 100)],
)
def test_the_published_starred_rows_are_halved(share, nominal, printed):
    assert nominal == pytest.approx(100 / share, rel=0.015)
    # printed without a rule: 6.25 as 6, 11.5 as 12, 55.5 as 55
    assert abs(starred_pruning_rate(nominal) - printed) <= 0.5


@pytest.mark.parametrize(
    ("weights", "architecture", "share", "bits", "printed"),
    [(LENET_300_100, "512-114-72", 2.2, 69.3, 21), (LENET_5, "14-19-242-131", 0.7, 72.6, 63)],
)
def test_the_published_sparse_rows_are_reproduced_within_rounding(
    weights, architecture, share, bits, printed
):
    """The fraction of nonzero weights is printed to a tenth of a percent."""
    units = sum(map(int, architecture.split("-")))
    layers = len(architecture.split("-"))
    rows = [units, *[0] * (layers - 1)]

    def rate_of(percent):
        return csr_rate(weights, [round(percent / 100 * weights), *[0] * (layers - 1)], rows)

    assert rate_of(share + 0.05) < printed + 1
    assert printed < rate_of(share - 0.05)
    assert 32 * weights / (printed * share / 100 * weights) == pytest.approx(bits, abs=0.06)


def test_compressed_sparse_rows_counted_by_hand():
    # values 1 2 3, columns 0 2 1, pointers 0 1 3: nine words for 6 weights; 11 words with a
    # second, empty matrix of one row
    assert csr_rate(6, [3], [2]) == 6 / 9
    assert csr_rate(6, [3, 0], [2, 1]) == 6 / 11


def test_a_string_that_is_not_an_architecture_is_an_error():
    for text in ("", "3--4", "a-b", "3-0-2", "-3"):
        with pytest.raises(ValueError, match="layer_sizes: expected widths of at least 1"):
            layer_sizes(text)
    with pytest.raises(ValueError, match="first 5 of them filters of convolutions"):
        layer_sizes("5-10-76-16", convolutions=5)


def total_length(counts, lengths):
    return sum(count * length for count, length in zip(counts, lengths, strict=True))


def least_total(counts):
    """Return the least total length over all word lengths of a prefix code (Kraft)."""
    n = len(counts)
    totals = []
    for lengths in itertools.product(range(1, n), repeat=n):
        if sum(2.0**-length for length in lengths) <= 1:
            totals.append(total_length(counts, lengths))
    return min(totals)


@pytest.mark.parametrize(
    "counts",
    [[1, 1], [3, 1, 1], [5, 4, 3, 2], [1, 1, 1, 1, 1], [13, 8, 5, 3, 2], [100, 1, 1, 1, 7]],
)
def test_a_huffman_code_is_the_best_prefix_code(counts):
    lengths = huffman_lengths(counts)
    assert sum(2.0**-length for length in lengths) == 1
    assert total_length(counts, lengths) == least_total(counts)


def test_huffman_lies_between_the_entropy_and_one_bit_more():
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 3, 17, 64, 300):
        counts = (1 + 1000 * torch.rand(size, generator=generator) ** 8).long().tolist()
        mean = total_length(counts, huffman_lengths(counts)) / sum(counts)
        assert entropy(counts) - 1e-9 <= mean < entropy(counts) + 1


def test_a_single_symbol_needs_no_bits_and_a_symbol_that_never_occurs_is_an_error():
    assert huffman_lengths([7]) == [0]
    assert huffman_lengths([]) == []
    with pytest.raises(ValueError, match="at least once"):
        huffman_lengths([3, 0])


def test_the_entropy_of_simple_distributions():
    assert entropy([1] * 8) == 3
    assert entropy([5]) == 0
    assert entropy([3, 0, 1]) == pytest.approx(2 - 0.75 * math.log2(3))


def test_maximum_compression_counted_by_hand():
    dense = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 2.0, 0.0]])
    # words of 1, 2 and 2 bits: 5 + 2 * 2 + 2 = 11; three values of 32 bits
    assert maximum_compression_rate(100, [dense]) == 3200 / (11 + 96)
    assert maximum_compression_rate(100, [dense, torch.ones(3)]) == 3200 / (11 + 96 + 32)
    # sparse: distances 5, 1, 1 (3 bits in all), values 1, 1, 2 (3 bits), two of 32 bits; the last
    # zero is not stored
    assert maximum_compression_rate(100, [dense], index_bits=3) == 3200 / (3 + 3 + 64)
    # distances of at most 4: a filler zero at the fourth place; values 0, 1, 1, 2 take 6 bits,
    # distances 4, 1, 1, 1 take 4
    assert maximum_compression_rate(100, [dense], index_bits=2) == 3200 / (6 + 4 + 96)
    assert maximum_compression_rate(100, [torch.zeros(9)], index_bits=3) == math.inf
    with pytest.raises(ValueError, match="index_bits from 1 to 32"):
        maximum_compression_rate(100, [dense], index_bits=0)


def test_the_rate_of_a_network_without_weights_is_infinite():
    assert pruning_rate(10, 0) == math.inf
    assert fast_prediction_rate(10, [0], [3]) == math.inf


def test_fast_prediction_needs_bits_for_every_layer():
    with pytest.raises(ValueError, match="fast_prediction_rate: expected bits for each of 2"):
        fast_prediction_rate(10, [4, 3], [8])
