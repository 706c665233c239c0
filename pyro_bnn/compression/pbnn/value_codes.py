"""The nonzero numbers of a tensor: integers on a number grid, a codebook, or raw bits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .context_mixing import Mixer
from .forms import ImageSize, Matrix, State, TensorForm, Values
from .masks import lay_out, neighbors
from .number_grids import NumberGrid, ordered
from .range_coder import Coder, FormatError
from .sparsity_codes import NonZero

__all__ = ["LARGEST_CODEBOOK", "code_values"]

LARGEST_CODEBOOK = 1 << 10
_ASCENDING = 1 << 14  # probability that a list is sorted, in units of 2^-16
_TOUCHING = 6  # weight of the neighbors that share a side or a corner with a point


def code_values(
    coder: Coder,
    state: State,
    matrix: Matrix,
    form: TensorForm,
    nonzero: NonZero,
    patterns: list[int] | None,
) -> list[int] | None:
    """Code the numbers at known positions of a matrix.

    Args:
        coder: Encoder or decoder.
        state: State of the file.
        matrix: Shape of the tensor.
        form: The form to write; ignored when reading.
        nonzero: The positions.
        patterns: Bit patterns to write, one per position; ``None`` when reading.

    Returns:
        The bit patterns, one per position, or a single one if all are equal. ``None`` if the
        numbers follow the coded part of the file, as they are in memory.

    Raises:
        FormatError: The file does not hold numbers.
    """
    if not nonzero.indices:
        return []
    state.section = "values"
    code = state.numbers.code(coder, form.values, ("values", matrix.kind))
    if code == Values.RAW:
        return None
    if code == Values.INTEGERS:
        return _code_integers(coder, state, form, patterns, len(nonzero.indices))
    if code == Values.CODEBOOK:
        return _code_with_codebook(coder, state, matrix, form, nonzero, patterns)
    raise FormatError(f"expected numbers in one of {len(Values)} forms, found form {code}")


# --- integers ---------------------------------------------------------------------------------


def _code_integers(
    coder: Coder, state: State, form: TensorForm, patterns: list[int] | None, count: int
) -> list[int]:
    """Code integers on a grid by their distances from the least one, or from the one before."""
    grid = _code_grid(coder, state, form.fixed, patterns)
    ascending = coder.bit(int(form.ascending), _ASCENDING) > 0
    least = 0
    distances: list[int] | None = None
    if patterns is not None:
        integers = grid.integers(patterns)
        least = min(integers)
        if ascending:
            distances = [later - earlier for earlier, later in pairwise([least, *integers])]
        else:
            distances = [integer - least for integer in integers]
    last = state.numbers.signed(coder, least, "least")
    result = []
    for distance in state.numbers.sequence(coder, distances, count, ("above", ascending)):
        result.append(last + distance)
        if ascending:
            last = result[-1]
    return grid.patterns(result)


def _code_grid(
    coder: Coder, state: State, fixed: bool, patterns: Sequence[int] | None
) -> NumberGrid:
    """Code the coarsest number grid on which all patterns lie."""
    scale = 0
    if patterns is not None:
        grid = NumberGrid.of(patterns, state.dtype, fixed)
        assert grid is not None  # the search offers fixed point only where it exists
        scale = grid.scale
    fixed = state.numbers.code(coder, int(fixed), "fixed") > 0
    scale = state.numbers.code(coder, scale, ("scale", fixed))
    return NumberGrid(state.dtype, fixed, scale)


# --- codebooks --------------------------------------------------------------------------------


def _code_with_codebook(
    coder: Coder,
    state: State,
    matrix: Matrix,
    form: TensorForm,
    nonzero: NonZero,
    patterns: list[int] | None,
) -> list[int]:
    """Code a codebook and the index of every number in it."""
    state.section = "codebook"
    codebook = _code_codebook(coder, state, form, patterns)
    state.section = "values"
    if len(codebook) == 1:
        return [codebook[0]]
    indices = None
    if patterns is not None:
        index_of = {pattern: k for k, pattern in enumerate(codebook)}
        indices = [index_of[pattern] for pattern in patterns]
    ascending = coder.bit(int(form.ascending), _ASCENDING) > 0
    if ascending:
        indices = _code_ascending_indices(coder, state, codebook, indices, len(nonzero.indices))
    else:
        indices = _code_codebook_indices(coder, codebook, matrix.columns, nonzero, indices)
    return [codebook[index] for index in indices]


def _code_codebook(
    coder: Coder, state: State, form: TensorForm, patterns: Sequence[int] | None
) -> tuple[int, ...]:
    """Code the distinct numbers in ascending order: an earlier codebook, or steps on a grid."""
    numbers, earlier = state.numbers, state.codebooks
    back = 0
    if earlier:
        back = numbers.code(coder, form.codebook, "codebook")
    if back > len(earlier):
        raise FormatError(f"expected one of {len(earlier)} codebooks, found number {back}")
    if back:
        return earlier[-back]

    levels: list[int] | None = None
    length = 1
    if patterns is not None:
        width = 8 * state.dtype.itemsize
        levels = sorted(set(patterns), key=lambda pattern: ordered(pattern, width))
        length = len(levels)
    length = 1 + numbers.code(coder, length - 1, "levels")
    if length > LARGEST_CODEBOOK:
        raise FormatError(
            f"expected a codebook of at most {LARGEST_CODEBOOK:,} numbers, found {length:,}"
        )
    grid = _code_grid(coder, state, form.fixed, levels)
    lowest, steps = 0, None
    if levels is not None:
        integers = grid.integers(levels)
        lowest = integers[0]
        steps = [later - earlier - 1 for earlier, later in pairwise(integers)]
    result = [numbers.signed(coder, lowest, "lowest")]
    for step in numbers.sequence(coder, steps, length - 1, ("level", grid.fixed)):
        result.append(result[-1] + 1 + step)
    codebook = tuple(grid.patterns(result))
    earlier.append(codebook)
    return codebook


def _code_ascending_indices(
    coder: Coder, state: State, codebook: Sequence[int], indices: list[int] | None, count: int
) -> list[int]:
    """Code indices that do not decrease by their steps."""
    steps = None
    if indices is not None:
        steps = [later - earlier for earlier, later in pairwise([0, *indices])]
    result = []
    last = 0
    for step in state.numbers.sequence(coder, steps, count, "step"):
        last += step
        if last >= len(codebook):
            raise FormatError(
                f"expected one of {len(codebook)} numbers of a codebook, found number {last}"
            )
        result.append(last)
    return result


_Node = tuple[int, int]  # the indices from the first, up to but without the second, remain


class _SignedNeighbors:
    """Sums of the signs of numbers before a point, in the images that the columns are points of.

    Attributes:
        near: Per point, the signs of its neighbors in the present row, weighted by distance.
        touching: Per point, the signs of those beside it or corner to corner.
    """

    def __init__(self, columns: Sequence[int], image: ImageSize) -> None:
        layout = lay_out(columns, image)
        self.points, self._size, self._has_images = layout.points, layout.size, layout.stride > 0
        self._ahead = []
        if self._has_images:
            self._ahead = [near for near in neighbors(layout.stride) if near.offset > 0]
        self.start_row()

    def start_row(self) -> None:
        """Forget the numbers of the row before."""
        self.near = [0] * self._size
        self.touching = [0] * self._size

    def contexts(self, column: int, node: _Node) -> tuple[tuple[_Node, int, int], ...]:
        """Return the contexts of a column for a decision; none without images."""
        if not self._has_images:
            return ()
        point = self.points[column]
        return (node, 3, self.touching[point]), (node, 4, self.near[point] >> 1)

    def add(self, column: int, sign: int) -> None:
        """Note the sign of the number in a column."""
        for offset, weight in self._ahead:
            point = self.points[column] + offset
            self.near[point] += sign * weight
            if weight >= _TOUCHING:
                self.touching[point] += sign


def _code_codebook_indices(
    coder: Coder,
    codebook: tuple[int, ...],
    columns: Sequence[int],
    nonzero: NonZero,
    indices: list[int] | None,
) -> list[int]:
    """Code the index of every number by halving the codebook.

    The first decision separates negative numbers from the others, if there are both. The contexts
    are the number before, the row, and the signs of the neighbors in the image.
    """
    image = _SignedNeighbors(columns, nonzero.image)
    negative = 0
    for pattern in codebook:
        negative += pattern < 0
    first_split = len(codebook) // 2
    if 0 < negative < len(codebook):
        first_split = negative
    mixer = Mixer(weight=12_000, rate=200, trust=2)
    result: list[int] = []
    row, previous = -1, -1
    for k, position in enumerate(nonzero.indices):
        i, column = divmod(position, len(columns))
        if i != row:
            row = i
            image.start_row()
        low, high, split = 0, len(codebook), first_split
        while high - low > 1:
            node = (low, high)
            contexts = (node, (node, 1, previous), (node, 2, i), *image.contexts(column, node))
            upper = 0
            if indices is not None:
                upper = int(indices[k] >= split)
            if mixer.code(coder, upper, contexts, node):
                low = split
            else:
                high = split
            split = (low + high) // 2
        result.append(low)
        previous = low
        sign = 1
        if low < negative:
            sign = -1
        image.add(column, sign)
    return result
