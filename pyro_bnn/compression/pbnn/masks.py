r"""Masks: which weights of a matrix are not zero, coded entry by entry under learned contexts.

A mask has a row per unit and a column per input. Columns may be points of images: the inputs of a
first layer are pixels, the columns of a kernel are its points. A unit that reads a point tends to
read its neighbors, and units tend to read the same regions; the contexts express both.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

from .context_mixing import Mixer
from .forms import NO_IMAGE, ImageSize
from .range_coder import Coder, FormatError

__all__ = ["Layout", "Neighbor", "code_mask", "lay_out", "neighbors"]

_MARGIN = 4  # points around every image, so that neighbors need no checks


class Neighbor(NamedTuple):
    """A point near another one.

    Attributes:
        offset: Difference of the flat indices.
        weight: Larger for closer points.
    """

    offset: int
    weight: int


class Layout(NamedTuple):
    """The columns of a matrix as points of images with margins, all images in one flat array.

    Attributes:
        points: Flat index of each column.
        stride: Points in a row of the images; 0 if there are no images.
        size: Points in all images.
    """

    points: Sequence[int]
    stride: int
    size: int


def neighbors(stride: int) -> list[Neighbor]:
    r"""Return the 80 points around a point, in images with ``stride`` points in a row.

    At the squared distance d the weight is :math:`\lfloor (\lfloor\sqrt{\lfloor 256 / d
    \rfloor}\rfloor + 1) / 2 \rfloor`: 8 beside the point, 1 at the corners.
    """
    points = []
    for y in range(-_MARGIN, _MARGIN + 1):
        for x in range(-_MARGIN, _MARGIN + 1):
            distance = y * y + x * x
            if distance:
                points.append(Neighbor(y * stride + x, (isqrt(256 // distance) + 1) // 2))
    return points


def lay_out(columns: Sequence[int], image: ImageSize) -> Layout:
    """Return where the columns lie in images of the given size.

    Raises:
        FormatError: The images have far more points than there are columns.
    """
    if image == NO_IMAGE:
        return Layout(range(len(columns)), 0, 0)
    stride = image.width + 2 * _MARGIN
    plane = (image.height + 2 * _MARGIN) * stride
    images = max(columns, default=0) // image.area + 1
    size = plane * images
    if size > 4096 + 64 * len(columns):
        raise FormatError(
            f"expected images with about {len(columns)} points, found {images} of "
            f"{image.height} x {image.width}"
        )
    points = []
    for column in columns:
        channel, point = divmod(column, image.area)
        y, x = divmod(point, image.width)
        points.append(channel * plane + (y + _MARGIN) * stride + x + _MARGIN)
    return Layout(points, stride, size)


def _coarse(value: int, digits: int = 1) -> int:
    """Return the length of a binary number and the ``digits`` digits after its first, packed.

    The result does not decrease with the value. Values of at most ``digits`` digits stay exact.
    """
    length = value.bit_length()
    if length <= digits:
        return value
    following = value >> (length - 1 - digits) & (1 << digits) - 1
    return length << digits | following


class _Pictures:
    """The ones coded so far, as points of images.

    Attributes:
        seen: Per point, whether the present row has it.
        near: Per point, the weights of the neighbors before it in the present row.
        density: Per point, the ones near it in all rows, smoothed with the weights of neighbors.
    """

    def __init__(self, layout: Layout) -> None:
        self.stride, self.size = layout.stride, layout.size
        self.around = neighbors(self.stride)
        self.ahead = [neighbor for neighbor in self.around if neighbor.offset > 0]
        self.density = [0] * self.size
        self.start_row()

    def start_row(self) -> None:
        """Forget the points of the row before."""
        self.seen = bytearray(self.size)
        self.near = [0] * self.size

    def contexts(self, point: int, row: int, count: int) -> tuple[Hashable, ...]:
        """Return the contexts of a point.

        Args:
            point: Flat index of the point.
            row: Index of the present row.
            count: Number of ones in the present row.
        """
        seen, above = self.seen, point - self.stride
        left, up = seen[point - 1], seen[above]
        up_left, up_right = seen[above - 1], seen[above + 1]
        touching = left + up + up_left + up_right
        pattern = left + 2 * up + 4 * up_left + 8 * up_right
        two_above = above - self.stride
        second_ring = sum(seen[two_above - 2 : two_above + 3])
        second_ring += seen[above - 2] + seen[above + 2] + seen[point - 2]
        near = self.near[point]
        return (
            (5, pattern),
            (6, touching, min(second_ring, 3)),
            (7, _coarse(near, 2)),
            (8, _coarse(8 * self.density[point] // (row + 1), 2)),
            (9, _coarse(count), _coarse(near)),
        )

    def add(self, point: int) -> None:
        """Note that the present row has a one at a point."""
        self.seen[point] = 1
        self.density[point] += 24
        for offset, weight in self.around:
            self.density[point + offset] += weight
        for offset, weight in self.ahead:
            self.near[point + offset] += weight


def code_mask(coder: Coder, mask: Tensor, columns: Sequence[int], image: ImageSize) -> Tensor:
    """Code a mask row by row.

    Args:
        coder: Encoder or decoder.
        mask: Boolean tensor (rows, columns) to write. Only its shape matters when reading.
        columns: The number of each column, by which columns are placed in images.
        image: Size of the images that columns are points of, or :data:`.forms.NO_IMAGE`.

    Returns:
        The mask.
    """
    layout = lay_out(columns, image)
    if mask.numel() == 0:
        return mask
    pictures = None
    if layout.stride:
        pictures = _Pictures(layout)
    rows: list[list[bool]] = mask.tolist()
    width = len(columns)
    mixer = Mixer()
    column_counts = [0] * width  # ones of each column in the rows before
    for i, row in enumerate(rows):
        if pictures is not None:
            pictures.start_row()
        count = 0
        progress = min(8 * i // len(rows), 7)
        for j, point in enumerate(layout.points):
            column_count = _coarse(column_counts[j])
            contexts: tuple[Hashable, ...] = (
                0,
                (1, column_count, progress),
                (2, _coarse(count), 8 * j // width),
                (3, i),
                (4, _coarse(count), column_count, progress >> 1),
            )
            if pictures is not None:
                contexts += pictures.contexts(point, i, count)
            row[j] = mixer.code(coder, int(row[j]), contexts) > 0
            if row[j]:
                count += 1
                column_counts[j] += 1
                if pictures is not None:
                    pictures.add(point)
    return torch.tensor(rows, dtype=torch.bool)
