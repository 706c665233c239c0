r"""The compression rates of the published tables, as formulas, and what each of them counts.

None of them is the size of a file: they leave out biases, and mostly also indices, tables and headers. All take
:math:`|W|`, the number of *weights* of the original network (no biases) at 32 bits each: 266,200 for LeNet-300-100,
430,500 for LeNet-5, 14,977,728 for the VGG-like network. Published tables round them down.

========================  ==============================================================================================
pruning                   :math:`|W| / |W_{\text{kept}}|`; see :func:`pruning_rate`, :func:`starred_pruning_rate`,
                          :func:`csr_rate` for the three ways of counting under this one name
fast prediction           fewer bits per weight as well, each layer with its own: :func:`fast_prediction_rate`
maximum compression       a codebook and a Huffman code per layer: :func:`maximum_compression_rate`
========================  ==============================================================================================

Source: Louizos, Ullrich & Welling (2017), section 5 and table 2; Han, Mao & Dally (2016), sections 2-4.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Sequence

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
    """Return the number of weights of each layer of an architecture as the tables write it.

    ``"278-98-13"`` (LeNet-300-100): the inputs of each dense layer. ``"5-10-76-16"`` (LeNet-5, two convolutions): the
    filters of each convolution, then the inputs of each dense layer.

    Args:
        architecture: the numbers, joined by hyphens.
        convolutions: how many of them are filters.
        kernel: the side of the square kernels.
        channels: of the input images.
        outputs: of the last layer.

    Raises:
        ValueError: what is no such string; more convolutions than numbers.

    >>> layer_sizes("278-98-13")
    [27244, 1274, 130]
    >>> layer_sizes("5-10-76-16", convolutions=2)
    [125, 1250, 1216, 160]
    """
    parts = architecture.split("-")
    if not all(
        part.isdecimal() and int(part) > 0 for part in parts
    ) or not 0 <= convolutions <= len(parts):
        raise ValueError(
            f"layer_sizes: expected widths above zero joined by hyphens, such as '278-98-13', {convolutions} of them "
            f"of convolutions, got {architecture!r}"
        )
    widths = [int(part) for part in parts]
    filters, inputs = [channels, *widths[:convolutions]], [*widths[convolutions:], outputs]
    kernels = [kernel**2 * a * b for a, b in itertools.pairwise(filters)]
    return kernels + [a * b for a, b in itertools.pairwise(inputs)]


def pruning_rate(weights: int, kept: int) -> float:
    r"""Return :math:`|W| / |W_{\text{kept}}|`: 32 bits before, 32 bits after, nothing for saying which are kept.

    For group methods, whose pruned network is dense, ``kept`` is the size of that smaller network: ``sum(layer_sizes(
    "278-98-13"))``. This is the column "Pruning" in its rows. With the number of nonzero weights it is the rate of the
    papers on sparse networks, which counts no index at all.

    Args:
        weights: :math:`|W|`.
        kept: how many of them are left.
    """
    return _ratio(weights, kept)


def starred_pruning_rate(nominal: float) -> float:
    """Return half of the rate that counts nonzero weights alone: each value of 32 bits brings an index of 32 bits.

    The column "Pruning" in the rows marked with a star, unstructured methods whose numbers are those of other papers.

    Args:
        nominal: weights over nonzero weights.
    """
    return nominal / 2


def csr_rate(weights: int, nonzeros: Sequence[int], rows: Sequence[int]) -> float:
    r"""Return the rate of compressed sparse rows: values, column indices and row pointers of 32 bits each.

    .. math:: \frac{32 |W|}{\sum_l 32\,(2 n_l + r_l + 1)}

    The column "Pruning" in the rows of Sparse VD.

    Args:
        weights: :math:`|W|`.
        nonzeros: :math:`n_l`, for each layer.
        rows: :math:`r_l`, the rows of its matrix.
    """
    return _ratio(weights, sum(2 * n + r + 1 for n, r in zip(nonzeros, rows, strict=True)))


def fast_prediction_rate(weights: int, sizes: Sequence[int], bits: Sequence[int]) -> float:
    r"""Return :math:`32 |W| / \sum_l |W_l|\, b_l`: every weight of the pruned network at the bits of its layer.

    The column "Fast prediction". It counts no index, so it is the size of a dense network alone: for sparse ones,
    ``bits`` must hold the bits of the indices too.

    Args:
        weights: :math:`|W|`.
        sizes: :math:`|W_l|`, how many weights each pruned layer has; see :func:`layer_sizes`.
        bits: :math:`b_l`, per weight; see :mod:`~pyro_bnn.compression.quantization.precision`.
    """
    return _ratio(32 * weights, sum(size * b for size, b in zip(sizes, bits, strict=True)))


def maximum_compression_rate(
    weights: int, layers: Sequence[Tensor], index_bits: int | None = None
) -> float:
    r"""Return the rate with a codebook of 32-bit values and a Huffman code of its own for each layer.

    .. math:: \frac{32 |W|}{\sum_l \big( 32 K_l + \sum_i |\mathrm{code}_l(w_i)| \big)}

    The column "Maximum compression". It counts the codebooks of :math:`K_l` values but neither the Huffman trees nor
    shapes nor biases. Without ``index_bits`` a layer is dense, and zero a symbol like others (group methods). With it,
    only nonzero weights are stored, each with the distance from the one before; a distance above
    :math:`2^b` is bridged by filler zeros; values and distances have a Huffman code each (Han et al.).

    Args:
        weights: :math:`|W|`.
        layers: the pruned weights of each layer, with few distinct values.
        index_bits: b, for sparse layers; Han et al. take 5 for dense layers and 8 for convolutions.

    Raises:
        ValueError: index bits out of 1 ... 32.
    """
    if index_bits is not None and not 1 <= index_bits <= 32:
        raise ValueError(
            f"maximum_compression_rate: expected index_bits from 1 to 32, got {index_bits}"
        )
    total = 0
    for layer in layers:
        symbols: list[float] = layer.flatten().tolist()
        if index_bits is not None:
            symbols, distances = _relative(symbols, 2**index_bits)
            total += _huffman_bits(distances)
        total += 32 * len(set(symbols)) + _huffman_bits(symbols)
    return _ratio(32 * weights, total)


def huffman_lengths(counts: Sequence[int]) -> list[int]:
    r"""Return the length in bits of each symbol's word in a Huffman code.

    The average length lies in :math:`[H, H + 1)`, H being the entropy; a single symbol needs no bits.

    Args:
        counts: how often each symbol occurs, at least once.

    Raises:
        ValueError: a count below one.

    >>> huffman_lengths([5, 1, 1, 2])
    [1, 3, 3, 2]
    """
    if any(count < 1 for count in counts):
        raise ValueError(
            f"huffman_lengths: expected symbols that occur at least once, got the counts {list(counts)}"
        )
    lengths = [0] * len(counts)
    heap = [(count, index, [index]) for index, count in enumerate(counts)]
    heapq.heapify(heap)
    for order in itertools.count(
        len(counts)
    ):  # ties are broken by age, so the code is a function of the counts
        if len(heap) < 2:
            return lengths
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        members = first[2] + second[2]
        for member in members:
            lengths[member] += 1
        heapq.heappush(heap, (first[0] + second[0], order, members))
    raise AssertionError("unreachable")


def entropy(counts: Sequence[int]) -> float:
    r"""Return the entropy :math:`-\sum_k p_k \log_2 p_k` of the empirical distribution, in bits per symbol.

    >>> entropy([2, 1, 1])
    1.5
    """
    total = sum(counts)
    return sum(count / total * math.log2(total / count) for count in counts if count)


def _huffman_bits(symbols: Sequence[float]) -> int:
    counts = list(Counter(symbols).values())
    return sum(
        count * length for count, length in zip(counts, huffman_lengths(counts), strict=True)
    )


def _relative(values: Sequence[float], reach: int) -> tuple[list[float], list[float]]:
    """Return the nonzero values, with the filler zeros, and the distance of each from the one before."""
    symbols: list[float] = []
    distances: list[float] = []
    last = -1
    for position, value in enumerate(values):
        if value or position - last == reach:
            symbols.append(value)
            distances.append(position - last)
            last = position
    while symbols and not symbols[-1]:  # zeros after the last weight need no bridge
        symbols.pop(), distances.pop()
    return symbols, distances


def _ratio(before: float, after: float) -> float:
    return before / after if after else math.inf
