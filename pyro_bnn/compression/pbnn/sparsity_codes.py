"""The positions of the nonzero numbers of a tensor: all, a mask, or the gaps between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .context_mixing import Numbers
from .forms import NO_IMAGE, ImageSize, Matrix, Positions, State, TensorForm
from .masks import code_mask
from .range_coder import Coder, FormatError

__all__ = ["LARGEST_MASK", "NonZero", "code_indices", "code_positions"]

LARGEST_MASK = 1 << 19  # entries
_LARGEST_INDEX = 1 << 24


class NonZero(NamedTuple):
    """Where a matrix is not zero.

    Attributes:
        indices: Flat indices in ascending order.
        image: The images that columns are points of.
    """

    indices: Sequence[int]
    image: ImageSize


def code_positions(
    coder: Coder, state: State, matrix: Matrix, form: TensorForm, patterns: Tensor | None
) -> NonZero:
    """Code where a matrix is not zero.

    Args:
        coder: Encoder or decoder.
        state: State of the file.
        matrix: Shape of the tensor.
        form: The form to write; ignored when reading.
        patterns: Bit patterns (rows, columns) of the numbers to write; ``None`` when reading.

    Raises:
        FormatError: The file does not hold positions in a matrix of this shape.
    """
    state.section = "positions"
    code = state.numbers.code(coder, form.positions, ("positions", matrix.kind))
    if code == Positions.ALL:
        return NonZero(range(matrix.size), NO_IMAGE)
    if code == Positions.MASK and matrix.size <= LARGEST_MASK:
        image = _code_image(coder, state, form.image)
        mask = torch.zeros(matrix.rows, len(matrix.columns), dtype=torch.bool)
        if patterns is not None:
            mask = patterns != 0
        mask = code_mask(coder, mask, matrix.columns, image)
        return NonZero(_indices_of(mask), image)
    indices: list[int] | None = None
    count = 0
    if patterns is not None:
        indices = _indices_of(patterns)
        count = len(indices)
    count = state.numbers.code(coder, count, "count")
    if code != Positions.GAPS or count > matrix.size:
        raise FormatError(
            f"expected positions in {matrix.size:,} numbers, found {count:,} in form {code}"
        )
    return NonZero(_code_gaps(coder, state.numbers, indices, count, matrix.size), NO_IMAGE)


def _indices_of(tensor: Tensor) -> list[int]:
    """Return the flat indices of the entries that are not zero."""
    indices: list[int] = tensor.flatten().nonzero().flatten().tolist()
    return indices


def _code_image(coder: Coder, state: State, image: ImageSize) -> ImageSize:
    """Code the size of images: none, the last one, or a new one."""
    familiar = [NO_IMAGE, state.image]
    code = len(familiar)
    if image in familiar:
        code = familiar.index(image)
    code = state.numbers.code(coder, code, "image")
    if code < len(familiar):
        return familiar[code]
    if code > len(familiar):
        raise FormatError(f"expected the size of an image, found form {code}")
    height = 1 + state.numbers.code(coder, image.height - 1, "height")
    # "width" is also the kind of number of the widths of layers
    width = height + state.numbers.signed(coder, image.width - image.height, "width")
    if not 0 < width <= _LARGEST_INDEX or height > _LARGEST_INDEX:
        raise FormatError(
            f"expected the size of an image, at most {_LARGEST_INDEX:,} on each side, "
            f"found {height} x {width}"
        )
    state.image = ImageSize(height, width)
    return state.image


def _code_gaps(
    coder: Coder, numbers: Numbers, indices: Sequence[int] | None, count: int, size: int
) -> list[int]:
    """Code ``count`` ascending indices below ``size`` by the gaps between them.

    Raises:
        FormatError: An index is not below ``size``.
    """
    gaps = None
    if indices is not None:
        gaps = [later - earlier - 1 for earlier, later in pairwise([-1, *indices])]
    result: list[int] = []
    last = -1
    for gap in numbers.sequence(coder, gaps, count, "gap"):
        last += 1 + gap
        if last >= size:
            raise FormatError(f"expected indices below {size:,}, found {last:,}")
        result.append(last)
    return result


def code_indices(
    coder: Coder, state: State, form: TensorForm, indices: list[int] | None
) -> list[int]:
    r"""Code a list of indices: as a bitmap, by the gaps between them, or in any order.

    Args:
        coder: Encoder or decoder.
        state: State of the file.
        form: The form to write; ignored when reading. ``Positions.ALL`` stands for signed
            differences, which allow any order.
        indices: Integers from 0 to :math:`2^{24} - 1` to write; ``None`` when reading.

    Raises:
        FormatError: The file does not hold such a list.
    """
    state.section = "positions"
    code = state.numbers.code(coder, form.positions, "indices")
    if code == Positions.MASK:
        return _code_bitmap(coder, state, form.image, indices)
    count = 0
    if indices is not None:
        count = len(indices)
    count = state.numbers.code(coder, count, "count")
    if count > _LARGEST_INDEX:
        raise FormatError(f"expected at most {_LARGEST_INDEX:,} indices, found {count:,}")
    if code == Positions.GAPS:
        return _code_gaps(coder, state.numbers, indices, count, _LARGEST_INDEX)
    return _code_differences(coder, state.numbers, indices, count)


def _code_bitmap(
    coder: Coder, state: State, image: ImageSize, indices: list[int] | None
) -> list[int]:
    """Code ascending indices as a mask of one row, in whole rows of the image."""
    image = _code_image(coder, state, image)
    width = max(1, image.width)
    rows_before = 0
    if indices:
        rows_before = indices[-1] // width
    length = width * (1 + state.numbers.code(coder, rows_before, "rows"))
    if length > LARGEST_MASK:
        raise FormatError(f"expected a bitmap of at most {LARGEST_MASK:,} bits, found {length:,}")
    bitmap = torch.zeros(1, length, dtype=torch.bool)
    if indices is not None:
        bitmap[0, indices] = True
    return _indices_of(code_mask(coder, bitmap, range(length), image))


def _code_differences(
    coder: Coder, numbers: Numbers, indices: list[int] | None, count: int
) -> list[int]:
    """Code indices in any order by their signed differences."""
    result: list[int] = []
    last = 0
    for k in range(count):
        difference = 0
        if indices is not None:
            difference = indices[k] - last
        last += numbers.signed(coder, difference, "difference")
        if not 0 <= last < _LARGEST_INDEX:
            raise FormatError(f"expected an index below {_LARGEST_INDEX:,}, found {last:,}")
        result.append(last)
    return result
