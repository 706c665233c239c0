r"""The compression rates of published tables, as formulas, with what each of them counts.

None of them is the size of a file: they leave out biases, and most of them also indices, tables
and headers. All take :math:`|W|`, the number of *weights* of the original network (no biases) at
32 bits each: 266,200 for LeNet-300-100, 430,500 for LeNet-5, 14,977,728 for the VGG-like network.
Published tables round the rates down.

pruning
    :math:`|W| / |W_{\text{kept}}|`. The tables count in three ways under this name:
    :func:`pruning_rate`, :func:`starred_pruning_rate` and :func:`csr_rate`.
fast prediction
    Fewer bits per weight as well, a number of bits for each layer: :func:`fast_prediction_rate`.
maximum compression
    A codebook and a Huffman code for each layer: :func:`maximum_compression_rate`.

Source: Louizos, Ullrich & Welling (2017), section 5 and table 2; Han, Mao & Dally (2016),
sections 2 to 4.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from operator import mul
from typing import NamedTuple

from torch import Tensor

__all__ = [
    "csr_rate",
    "entropy",
    "fast_prediction_rate",
    "huffman_lengths",
    "layer_sizes",
    "maximum_compression_rate",
    "pruning_rate",
    "starred_pruning_rate",
]


def layer_sizes(
    architecture: str, convolutions: int = 0, kernel: int = 5, channels: int = 1, outputs: int = 10
) -> list[int]:
    """Return the number of weights of each layer of an architecture in the notation of the tables.

    ``"278-98-13"`` (LeNet-300-100) lists the inputs of each dense layer. ``"5-10-76-16"``
    (LeNet-5, two convolutions) lists the filters of each convolution, then the inputs of each
    dense layer.

    Args:
        architecture: The numbers, joined by hyphens.
        convolutions: How many of them are filters.
        kernel: Side of the square kernels.
        channels: Channels of the input images.
        outputs: Outputs of the last layer.

    Raises:
        ValueError: The string is not an architecture, or has fewer numbers than convolutions.

    Example:
        >>> layer_sizes("278-98-13")
        [27244, 1274, 130]
        >>> layer_sizes("5-10-76-16", convolutions=2)
        [125, 1250, 1216, 160]
    """
    widths = []
    for part in architecture.split("-"):
        width = 0  # not a width
        if part.isdecimal():
            width = int(part)
        widths.append(width)
    if min(widths) == 0 or not 0 <= convolutions <= len(widths):
        raise ValueError(
            "layer_sizes: expected widths of at least 1 joined by hyphens, such as '278-98-13', "
            f"the first {convolutions} of them filters of convolutions, got {architecture!r}"
        )
    filters = [channels, *widths[:convolutions]]
    inputs = [*widths[convolutions:], outputs]
    kernels = [kernel**2 * before * after for before, after in pairwise(filters)]
    return kernels + [before * after for before, after in pairwise(inputs)]


def pruning_rate(weights: int, kept: int) -> float:
    r"""Return :math:`|W| / |W_{\text{kept}}|`: 32 bits per weight before and after, no indices.

    For group methods, whose pruned network is dense, ``kept`` is the size of that smaller network,
    ``sum(layer_sizes("278-98-13"))``; this is the column "Pruning" in their rows. With the number
    of nonzero weights it is the rate of the papers on sparse networks, which counts no index.

    Args:
        weights: :math:`|W|`.
        kept: :math:`|W_{\text{kept}}|`.
    """
    return _ratio(weights, kept)


def starred_pruning_rate(nominal: float) -> float:
    """Return half of the rate that counts nonzero weights alone.

    Every value of 32 bits brings an index of 32 bits. This is the column "Pruning" in the rows
    marked with a star: unstructured methods, with numbers from other papers.

    Args:
        nominal: Number of weights divided by the number of nonzero weights.
    """
    return nominal / 2


def csr_rate(weights: int, nonzeros: Sequence[int], rows: Sequence[int]) -> float:
    r"""Return the rate of compressed sparse rows.

    Values, column indices and row pointers have 32 bits each:

    .. math:: \frac{32 |W|}{\sum_l 32\,(2 n_l + r_l + 1)}

    This is the column "Pruning" in the rows of Sparse VD.

    Args:
        weights: :math:`|W|`.
        nonzeros: :math:`n_l`, the number of nonzero weights of each layer.
        rows: :math:`r_l`, the number of rows of each layer's matrix.
    """
    words = 0
    for nonzero, row_count in zip(nonzeros, rows, strict=True):
        words += 2 * nonzero + row_count + 1
    return _ratio(weights, words)


def fast_prediction_rate(weights: int, sizes: Sequence[int], bits: Sequence[int]) -> float:
    r"""Return :math:`32 |W| / \sum_l |W_l|\, b_l`: every weight at the bits of its layer.

    This is the column "Fast prediction". It counts no index, so it is the size of a dense network.
    For a sparse one, ``bits`` must include the bits of the indices.

    Args:
        weights: :math:`|W|`.
        sizes: :math:`|W_l|`, the number of weights of each pruned layer; see :func:`layer_sizes`.
        bits: :math:`b_l`, bits per weight of each layer; see
            :mod:`~pyro_bnn.compression.quantization.precision`.

    Raises:
        ValueError: ``sizes`` and ``bits`` have different lengths.
    """
    if len(sizes) != len(bits):
        raise ValueError(
            f"fast_prediction_rate: expected bits for each of {len(sizes)} layers, got {len(bits)}"
        )
    return _ratio(32 * weights, sum(map(mul, sizes, bits)))


def maximum_compression_rate(
    weights: int, layers: Sequence[Tensor], index_bits: int | None = None
) -> float:
    r"""Return the rate with a codebook of 32-bit values and a Huffman code for each layer.

    .. math:: \frac{32 |W|}{\sum_l \big( 32 K_l + \sum_i |\mathrm{code}_l(w_i)| \big)}

    This is the column "Maximum compression". It counts the codebooks of :math:`K_l` values, but
    neither the Huffman trees nor shapes nor biases. Without ``index_bits`` a layer is dense, and
    zero is one of its values (group methods). With ``index_bits`` only nonzero weights are
    stored, each with the distance from the one before. A distance above :math:`2^b` is bridged by
    filler zeros; values and distances have a Huffman code each (Han et al.).

    Args:
        weights: :math:`|W|`.
        layers: The pruned weights of each layer, with few distinct values.
        index_bits: b, for sparse layers; 5 for dense layers and 8 for convolutions in Han et al.

    Raises:
        ValueError: ``index_bits`` is not from 1 to 32.
    """
    if index_bits is not None and not 1 <= index_bits <= 32:
        raise ValueError(
            f"maximum_compression_rate: expected index_bits from 1 to 32, got {index_bits}"
        )
    total = 0
    for layer in layers:
        symbols: list[float] = layer.flatten().tolist()
        if index_bits is not None:
            sparse = _sparse_symbols(symbols, 2**index_bits)
            symbols = sparse.values
            total += _huffman_bits(sparse.distances)
        total += 32 * len(set(symbols)) + _huffman_bits(symbols)
    return _ratio(32 * weights, total)


class _Subtree(NamedTuple):
    """A part of a Huffman tree; subtrees are ordered by occurrences, then by age.

    Attributes:
        occurrences: How often its symbols occur.
        age: Order of creation. It breaks ties, so that the code is a function of the counts.
        symbols: Indices of its symbols.
    """

    occurrences: int
    age: int
    symbols: list[int]


def huffman_lengths(counts: Sequence[int]) -> list[int]:
    r"""Return the length in bits of each symbol's word in a Huffman code.

    The average length lies in :math:`[H, H + 1)`, with H the entropy. A single symbol needs no
    bits.

    Args:
        counts: How often each symbol occurs, at least once.

    Raises:
        ValueError: A count is below one.

    Example:
        >>> huffman_lengths([5, 1, 1, 2])
        [1, 3, 3, 2]
    """
    if min(counts, default=1) < 1:
        raise ValueError(
            "huffman_lengths: expected symbols that occur at least once, got the counts "
            f"{list(counts)}"
        )
    lengths = [0] * len(counts)
    heap = [_Subtree(count, symbol, [symbol]) for symbol, count in enumerate(counts)]
    heapq.heapify(heap)
    age = len(counts)
    while len(heap) > 1:
        first = heapq.heappop(heap)
        second = heapq.heappop(heap)
        symbols = first.symbols + second.symbols
        for symbol in symbols:
            lengths[symbol] += 1
        occurrences = first.occurrences + second.occurrences
        heapq.heappush(heap, _Subtree(occurrences, age, symbols))
        age += 1
    return lengths


def entropy(counts: Sequence[int]) -> float:
    r"""Return the entropy of the empirical distribution in bits per symbol.

    .. math:: H = -\sum_k p_k \log_2 p_k

    Args:
        counts: How often each symbol occurs.

    Example:
        >>> entropy([2, 1, 1])
        1.5
    """
    total = sum(counts)
    return sum(count / total * math.log2(total / count) for count in counts if count)


def _huffman_bits(symbols: Sequence[float]) -> int:
    """Return the length in bits of a sequence in its own Huffman code."""
    counts = list(Counter(symbols).values())
    return sum(map(mul, counts, huffman_lengths(counts)))


class _SparseSymbols(NamedTuple):
    """A sparse layer as it is stored.

    Attributes:
        values: The nonzero values, and filler zeros.
        distances: The distance of each from the one before.
    """

    values: list[float]
    distances: list[float]


def _sparse_symbols(weights: Sequence[float], reach: int) -> _SparseSymbols:
    """Return nonzero weights and their distances, none of which exceeds ``reach``."""
    values: list[float] = []
    distances: list[float] = []
    last = -1
    for position, weight in enumerate(weights):
        if weight or position - last == reach:
            values.append(weight)
            distances.append(position - last)
            last = position
    while values and not values[-1]:  # zeros after the last weight need no bridge
        values.pop()
        distances.pop()
    return _SparseSymbols(values, distances)


def _ratio(before: float, after: float) -> float:
    if after == 0:
        return math.inf
    return before / after
