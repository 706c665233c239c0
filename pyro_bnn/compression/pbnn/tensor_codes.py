"""One tensor, in the cheapest of several forms, bit for bit.

First which of its numbers are not zero (all of them; a mask; gaps between them), then those: as they are in memory, as
integers on a grid, or as indices into a codebook, the list of the distinct ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .context_mixing import Mixer, Numbers
from .number_grids import NumberGrid, ordered
from .range_coder import Coder, FormatError
from .sparsity_codes import PLAIN, Grid, code_gaps, code_mask, kernel, places

__all__ = [
    "ALL",
    "CODEBOOK",
    "GAPS",
    "INTEGERS",
    "LARGEST_BOOK",
    "LARGEST_MASK",
    "MASK",
    "RAW",
    "Matrix",
    "State",
    "TensorForm",
    "code_indices",
    "code_support",
    "code_values",
]

ALL, GAPS, MASK = range(3)  # which numbers are there
CODEBOOK, INTEGERS, RAW = range(3)  # which they are
_ASCENDING = 1 << 14  # the probability, in units of 2^-16, that a list of numbers is sorted
LARGEST_MASK, LARGEST_BOOK, _LARGEST_INDEX = 1 << 19, 1 << 10, 1 << 24


@dataclass
class State:
    """What one tensor of a file leaves for the next.

    Attributes:
        dtype: of the tensor.
        numbers: how sizes have been so far.
        codebooks: of all tensors so far.
        grid: the last images that columns were points of.
        part: what is being coded, for the accounts.
    """

    dtype: torch.dtype = torch.float32
    numbers: Numbers = field(default_factory=Numbers)
    codebooks: list[tuple[int, ...]] = field(default_factory=list)
    grid: Grid = PLAIN
    part: str = "graph"


@dataclass(frozen=True)
class TensorForm:
    """How a tensor is written: what the encoder chooses."""

    support: int = ALL
    grid: Grid = PLAIN
    values: int = RAW
    ascending: bool = False
    fixed: bool = False
    book: int = 0  # 0 for a new codebook; k for the k-th last


@dataclass(frozen=True)
class Matrix:
    """The shape of a tensor as units by what they read, and the numbers of its columns in images; see ``supports``."""

    rows: int
    columns: Sequence[int]
    kind: str

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return self.rows * len(self.columns)


# --- which numbers are there ------------------------------------------------------------------------------------------


def code_support(
    coder: Coder, state: State, matrix: Matrix, form: TensorForm, patterns: Tensor | None
) -> tuple[Sequence[int], Grid]:
    """Code where a matrix is not zero.

    Args:
        coder: reads or writes.
        state: of the file.
        matrix: its shape.
        form: what is written.
        patterns: (rows, columns) the bits of the numbers, when writing.

    Returns:
        The flat indices in ascending order, and the images that the columns are points of.

    Raises:
        FormatError: what is read is no support.
    """
    state.part = "support"
    support = state.numbers.code(coder, form.support, ("support", matrix.kind))
    if support == ALL:
        return range(matrix.size), PLAIN
    if support == MASK and matrix.size <= LARGEST_MASK:
        grid = _code_grid(coder, state, form.grid)
        given = None if patterns is None else patterns != 0
        mask = code_mask(coder, given, matrix.columns, matrix.rows, grid)
        return mask.flatten().nonzero().flatten().tolist(), grid
    indices = None if patterns is None else patterns.flatten().nonzero().flatten().tolist()
    count = state.numbers.code(coder, len(indices or ()), "count")
    if support != GAPS or count > matrix.size:
        raise FormatError(
            f"expected a part of {matrix.size} numbers, found {count} in form {support}"
        )
    return code_gaps(coder, state.numbers, indices, count, matrix.size), PLAIN


def _code_grid(coder: Coder, state: State, grid: Grid) -> Grid:
    """Code images: none, those of before, or others."""
    known = [PLAIN, state.grid]
    choice = state.numbers.code(coder, known.index(grid) if grid in known else 2, "grid")
    if choice > 2:
        raise FormatError(f"expected the size of an image, found form {choice}")
    if choice < 2:
        return known[choice]
    height = 1 + state.numbers.code(coder, grid.height - 1, "height")
    width = height + state.numbers.signed(coder, grid.width - grid.height, "width")
    if not 0 < width <= _LARGEST_INDEX or height > _LARGEST_INDEX:
        raise FormatError(f"expected the size of an image, found {height} x {width}")
    state.grid = Grid(height, width)
    return state.grid


def code_indices(
    coder: Coder, state: State, form: TensorForm, indices: list[int] | None
) -> list[int]:
    r"""Code a list of indices: as a bitmap, by the gaps between them, or, in any order, by differences.

    Args:
        coder: reads or writes.
        state: of the file.
        form: what is written: MASK, GAPS or ALL.
        indices: from 0 to :math:`2^{24} - 1`, when writing.

    Raises:
        FormatError: what is read is no such list.
    """
    state.part = "support"
    numbers = state.numbers
    kind = numbers.code(coder, form.support, "indices")
    if kind == MASK:
        grid = _code_grid(coder, state, form.grid)
        rows = numbers.code(coder, indices[-1] // max(1, grid.width) if indices else 0, "rows") + 1
        length = rows * max(1, grid.width)
        if length > LARGEST_MASK:
            raise FormatError(f"expected a bitmap of at most {LARGEST_MASK} bits, found {length}")
        bitmap = None
        if indices is not None:
            bitmap = torch.zeros(1, length, dtype=torch.bool)
            bitmap[0, indices] = True
        return code_mask(coder, bitmap, range(length), 1, grid)[0].nonzero().flatten().tolist()
    count = numbers.code(coder, len(indices or ()), "count")
    if count > _LARGEST_INDEX:
        raise FormatError(f"expected at most {_LARGEST_INDEX} indices, found {count}")
    if kind == GAPS:
        return code_gaps(coder, numbers, indices, count, _LARGEST_INDEX)
    found, last = [], 0
    for k in range(count):
        last += numbers.signed(coder, indices[k] - last if indices is not None else 0, "difference")
        if not 0 <= last < _LARGEST_INDEX:
            raise FormatError(f"expected an index below {_LARGEST_INDEX}, found {last}")
        found.append(last)
    return found


# --- which numbers they are -------------------------------------------------------------------------------------------


def code_values(
    coder: Coder,
    state: State,
    matrix: Matrix,
    form: TensorForm,
    where: Sequence[int],
    grid: Grid,
    given: list[int] | None,
) -> list[int] | None:
    """Code numbers at known positions of a matrix.

    Args:
        coder: reads or writes.
        state: of the file.
        matrix: its shape.
        form: what is written.
        where: flat indices, ascending.
        grid: the images that the columns are points of.
        given: the bits of the numbers, when writing.

    Returns:
        Their bits, or one if all are the same; ``None`` if they stand behind the coded part of the file, as they are
        in memory.

    Raises:
        FormatError: what is read are no numbers.
    """
    if not where:
        return []
    state.part = "values"
    kind = state.numbers.code(coder, form.values, ("values", matrix.kind))
    if kind == RAW:
        return None
    if kind == INTEGERS:
        lattice = _code_lattice(coder, state, form.fixed, given)
        integers = lattice.integers(given) if given is not None else None
        return lattice.patterns(_code_integers(coder, state, form.ascending, integers, len(where)))
    if kind != CODEBOOK:
        raise FormatError(f"expected numbers, found them in form {kind}")
    state.part = "codebook"
    book = _code_book(coder, state, form, given)
    state.part = "values"
    if len(book) == 1:
        return [book[0]]
    index = {pattern: k for k, pattern in enumerate(book)}
    indices = [index[pattern] for pattern in given] if given is not None else None
    if not coder.bit(int(form.ascending), _ASCENDING):
        return [book[k] for k in _code_levels(coder, indices, book, where, matrix.columns, grid)]
    found, last = [], 0
    for k in range(len(where)):
        last += state.numbers.code(coder, indices[k] - last if indices is not None else 0, "step")
        if last >= len(book):
            raise FormatError(
                f"expected one of {len(book)} numbers of a codebook, found number {last}"
            )
        found.append(book[last])
    return found


def _code_lattice(
    coder: Coder, state: State, fixed: bool, given: Sequence[int] | None
) -> NumberGrid:
    lattice = NumberGrid.of(given, state.dtype, fixed) if given is not None else None
    fixed = state.numbers.code(coder, int(fixed), "fixed") > 0
    return NumberGrid(
        state.dtype,
        fixed,
        state.numbers.code(coder, lattice.scale if lattice else 0, ("scale", fixed)),
    )


def _code_integers(
    coder: Coder, state: State, ascending: bool, integers: list[int] | None, count: int
) -> list[int]:
    """Code integers by how far they are above the least, or each above the one before."""
    ascending = coder.bit(int(ascending), _ASCENDING) > 0
    last = state.numbers.signed(coder, min(integers) if integers else 0, "least")
    found = []
    for k in range(count):
        above = integers[k] - last if integers is not None else 0
        found.append(last + state.numbers.code(coder, above, ("above", ascending)))
        last = found[-1] if ascending else last
    return found


def _code_book(
    coder: Coder, state: State, form: TensorForm, given: Sequence[int] | None
) -> tuple[int, ...]:
    """Code the distinct numbers in ascending order: an earlier codebook, or their distances on a grid."""
    numbers = state.numbers
    back = numbers.code(coder, form.book, "book") if state.codebooks else 0
    if back > len(state.codebooks):
        raise FormatError(f"expected one of {len(state.codebooks)} codebooks, found number {back}")
    if back:
        return state.codebooks[-back]
    own = (
        None
        if given is None
        else sorted(set(given), key=lambda bits: ordered(bits, 8 * state.dtype.itemsize))
    )
    length = 1 + numbers.code(coder, len(own) - 1 if own else 0, "levels")
    if length > LARGEST_BOOK:
        raise FormatError(f"expected a codebook of at most {LARGEST_BOOK} numbers, found {length}")
    lattice = _code_lattice(coder, state, form.fixed, own)
    integers = lattice.integers(own) if own else None
    last = numbers.signed(coder, integers[0] if integers else 0, "lowest")
    levels = [last]
    for k in range(1, length):
        last += 1 + numbers.code(
            coder, integers[k] - last - 1 if integers else 0, ("level", lattice.fixed)
        )
        levels.append(last)
    book = tuple(lattice.patterns(levels))
    state.codebooks.append(book)
    return book


def _code_levels(
    coder: Coder,
    indices: list[int] | None,
    book: tuple[int, ...],
    where: Sequence[int],
    columns: Sequence[int],
    grid: Grid,
) -> Iterator[int]:
    """Code indices of a codebook by halving it, its signs first, under the signs of the neighbours in the image."""
    at, stride, size = places(columns, grid)
    ahead = [(offset, weight) for offset, weight in kernel(stride) if offset > 0] if stride else []
    negative = sum(pattern < 0 for pattern in book)
    mixer = Mixer(weight=12_000, rate=200, trust=2)
    row, previous = -1, -1
    near: list[int] = []
    touching: list[int] = []
    for k, position in enumerate(where):
        i, j = divmod(position, len(columns))
        if i != row:
            row, near, touching = i, [0] * size, [0] * size
        p, low, high = at[j], 0, len(book)
        split = negative if 0 < negative < high else high // 2
        while high - low > 1:
            node = (low, high)
            contexts: tuple[tuple[object, ...], ...] = (node, (node, 1, previous), (node, 2, i))
            if stride:
                contexts += ((node, 3, touching[p]), (node, 4, near[p] >> 1))
            above = int(indices[k] >= split) if indices is not None else 0
            low, high = (split, high) if mixer.code(coder, above, contexts, node) else (low, split)
            split = (low + high) // 2
        yield low
        previous = low
        sign = -1 if low < negative else 1
        for offset, weight in ahead:
            near[p + offset] += sign * weight
            if weight >= 6:  # a point beside it, or corner to corner
                touching[p + offset] += sign
