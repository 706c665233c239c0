r"""Which weights are there: a mask, coded position by position with what is known so far.

A mask is a matrix of units (rows) by what they read (columns). Columns may be points of an image or of a kernel: then
a unit that reads a point tends to read its neighbours, and units tend to read the same regions.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

from .context_mixing import Mixer, Numbers
from .range_coder import Coder, FormatError

__all__ = ["PLAIN", "Grid", "code_gaps", "code_mask", "kernel", "places"]

PAD = 4


class Grid(NamedTuple):
    """The images that columns are points of: column ``c * height * width + y * width + x``; no images if 0."""

    height: int
    width: int


PLAIN = Grid(0, 0)


def kernel(stride: int) -> list[tuple[int, int]]:
    r"""Return (offset, weight) of the 80 points around a point, in rows of ``stride`` points.

    At the squared distance d the weight is :math:`\lfloor (\lfloor\sqrt{\lfloor 256 / d \rfloor}\rfloor + 1) / 2
    \rfloor`: 8 beside it, 1 at the corners.
    """
    around = [
        (y, x) for y in range(-PAD, PAD + 1) for x in range(-PAD, PAD + 1) if (y, x) != (0, 0)
    ]
    return [(y * stride + x, (isqrt(256 // (y * y + x * x)) + 1) // 2) for y, x in around]


def places(columns: Sequence[int], grid: Grid) -> tuple[Sequence[int], int, int]:
    """Return where the columns lie in images with a margin, the points of a row, and the points in all.

    Raises:
        FormatError: the images have far more points than there are columns.
    """
    height, width = grid
    if grid == PLAIN:
        return range(len(columns)), 0, 0
    stride, area = width + 2 * PAD, (height + 2 * PAD) * (width + 2 * PAD)
    size = area * (max(columns, default=0) // (height * width) + 1)
    if size > 4096 + 64 * len(columns):
        raise FormatError(
            f"expected images with about {len(columns)} points, found {height} x {width}"
        )
    found = []
    for column in columns:
        plane, point = divmod(column, height * width)
        y, x = divmod(point, width)
        found.append(plane * area + (y + PAD) * stride + x + PAD)
    return found, stride, size


def coarse(value: int, digits: int = 1) -> int:
    """Return a number without all but its first binary digits (and as many as follow), in the order of the numbers."""
    length = value.bit_length()
    if length <= digits:
        return value
    return length << digits | value >> (length - 1 - digits) & (1 << digits) - 1


def code_mask(
    coder: Coder, mask: Tensor | None, columns: Sequence[int], rows: int, grid: Grid
) -> Tensor:
    """Code a mask row by row.

    Args:
        coder: reads or writes.
        mask: (rows, columns), what is written.
        columns: their numbers in the grid.
        rows: how many.
        grid: see :class:`Grid`.

    Returns:
        The mask.
    """
    at, stride, size = places(columns, grid)
    mixer = Mixer()
    around = kernel(stride) if stride else []
    ahead = [(offset, weight) for offset, weight in around if offset > 0]
    used = [0] * len(at)  # how many rows so far have the column
    density = [0] * size  # the same in the images, smoothed
    result = []
    for i in range(rows):
        seen, near, count = bytearray(size), [0] * size, 0
        time = min(8 * i // rows, 7)
        given = mask[i].tolist() if mask is not None else [0] * len(at)
        for j, p in enumerate(at):
            c = coarse(used[j])
            contexts: tuple[Hashable, ...] = (
                0,
                (1, c, time),
                (2, coarse(count), 8 * j // len(at)),
                (3, i),
                (4, coarse(count), c, time >> 1),
            )
            if stride:
                touching = (
                    seen[p - 1] + seen[p - stride] + seen[p - stride - 1] + seen[p - stride + 1]
                )
                pattern = (
                    seen[p - 1]
                    + 2 * seen[p - stride]
                    + 4 * seen[p - stride - 1]
                    + 8 * seen[p - stride + 1]
                )
                second = (
                    seen[p - 2]
                    + seen[p - 2 * stride]
                    + seen[p - 2 * stride - 1]
                    + seen[p - 2 * stride + 1]
                )
                second += seen[p - stride - 2] + seen[p - stride + 2] + seen[p - 2 * stride - 2]
                second += seen[p - 2 * stride + 2]
                contexts += (
                    (5, pattern),
                    (6, touching, min(second, 3)),
                    (7, coarse(near[p], 2)),
                    (8, coarse(8 * density[p] // (i + 1), 2)),
                    (9, coarse(count), coarse(near[p])),
                )
            if mixer.code(coder, int(given[j]), contexts):
                count += 1
                used[j] += 1
                given[j] = 1
                if stride:
                    seen[p] = 1
                    density[p] += 24
                    for offset, weight in around:
                        density[p + offset] += weight
                    for offset, weight in ahead:
                        near[p + offset] += weight
        result.append(given)
    return torch.tensor(result, dtype=torch.bool).reshape(rows, len(at))


def code_gaps(
    coder: Coder, numbers: Numbers, indices: Sequence[int] | None, count: int, size: int
) -> list[int]:
    """Code ``count`` ascending indices below ``size`` by the gaps between them.

    Raises:
        FormatError: an index that is read is not below ``size``.
    """
    found: list[int] = []
    last = -1
    for k in range(count):
        last += 1 + numbers.code(coder, indices[k] - last - 1 if indices is not None else 0, "gap")
        if last >= size:
            raise FormatError(f"expected indices below {size}, found {last}")
        found.append(last)
    return found
