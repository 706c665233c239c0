"""Which form of a tensor is the cheapest: all that may pay are tried."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, isqrt

import torch
from torch import Tensor

from .number_grids import NumberGrid, bits_of, ordered
from .range_coder import Coder, CostRecorder
from .sparsity_codes import PLAIN, Grid
from .tensor_codes import (
    ALL,
    CODEBOOK,
    GAPS,
    INTEGERS,
    LARGEST_BOOK,
    LARGEST_MASK,
    MASK,
    RAW,
    Matrix,
    State,
    TensorForm,
    code_indices,
    code_support,
    code_values,
)

__all__ = ["Trial", "cheapest_indices", "cheapest_tensor", "raw_bytes"]

_LONG = 1 << 13  # numbers that are not worth seconds of arithmetic coding if they do not repeat


@dataclass
class Trial:
    """One way to code something: the decisions, what is known after them, and the bytes that stay outside."""

    price: CostRecorder
    state: State
    raw: bytes = b""

    @property
    def cost(self) -> float:
        """Bits; infinite where a reader would not believe so many decisions of so short a file."""
        bits = self.price.cost() + 8 * len(self.raw)
        return bits if len(self.price.record) <= 256 + 48 * bits else inf


def raw_bytes(patterns: Tensor) -> bytes:
    """Return bit patterns as they are in the memory of a little-endian machine."""
    array = patterns.contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def _tried(state: State, code: Callable[[Coder, State], object]) -> Trial:
    trial = Trial(CostRecorder(), deepcopy(state))
    code(trial.price, trial.state)
    return trial


def cheapest_tensor(state: State, matrix: Matrix, tensor: Tensor) -> Trial:
    """Return the cheapest way to code a tensor.

    Args:
        state: of the file; it is left as it is.
        matrix: the shape.
        tensor: with as many numbers.
    """
    patterns = bits_of(tensor).reshape(matrix.rows, len(matrix.columns))
    there = int((patterns != 0).sum())
    supports = []
    if there == matrix.size or 2 * there > matrix.size or matrix.size <= 4096:
        supports.append(_Support(state, matrix, TensorForm(ALL), patterns))
    if there < matrix.size:
        forms = [TensorForm(GAPS)]
        if there and matrix.size <= LARGEST_MASK:
            grids = dict.fromkeys((PLAIN, state.grid, *_images(patterns, matrix)))
            forms += [TensorForm(MASK, grid) for grid in grids]
        sparse = (_Support(state, matrix, form, patterns) for form in forms)
        supports.append(min(sparse, key=lambda support: support.trial.cost))
        if supports[-1].trial.cost == inf:
            supports = [_Support(state, matrix, TensorForm(ALL), patterns)]
    return min(
        (_with_values(support, matrix, patterns) for support in supports),
        key=lambda trial: trial.cost,
    )


class _Support:
    """A tried support, and where it says that numbers are."""

    def __init__(self, state: State, matrix: Matrix, form: TensorForm, patterns: Tensor) -> None:
        self.form, self.trial = form, Trial(CostRecorder(), deepcopy(state))
        self.where, self.grid = code_support(
            self.trial.price, self.trial.state, matrix, form, patterns
        )


def _with_values(support: _Support, matrix: Matrix, patterns: Tensor) -> Trial:
    """Return a support with the cheapest way to code the numbers there."""
    form, where, state = support.form, support.where, support.trial.state
    values = patterns.flatten()
    values = values if form.support == ALL else values[torch.as_tensor(where, dtype=torch.int64)]
    listed = len(values) <= _LONG or len(values.unique()) <= LARGEST_BOOK
    given = values.tolist() if listed else [0] * len(where)

    def tried(way: TensorForm) -> Trial:
        trial = _tried(
            state,
            lambda coder, own: code_values(coder, own, matrix, way, where, support.grid, given),
        )
        trial.raw = raw_bytes(values) if way.values == RAW else b""
        return trial

    ways = [
        replace(form, values=RAW),
        *(_value_forms(form, state, given) if listed and given else ()),
    ]
    best = min(map(tried, ways), key=lambda trial: trial.cost)
    price = CostRecorder()
    price.record = support.trial.price.record + best.price.record
    return Trial(price, best.state, best.raw)


def _value_forms(form: TensorForm, state: State, given: list[int]) -> list[TensorForm]:
    """Return the forms of numbers that may pay."""
    width = 8 * state.dtype.itemsize
    keys = [ordered(pattern, width) for pattern in given]
    ascending = all(a <= b for a, b in pairwise(keys))
    distinct = set(given)
    grids = [False] if NumberGrid.of(sorted(distinct), state.dtype, True) is None else [False, True]
    ways = []
    if len(given) <= _LONG:
        ways += [replace(form, values=INTEGERS, fixed=fixed) for fixed in grids]
    if len(distinct) <= LARGEST_BOOK:
        ways += [replace(form, values=CODEBOOK, fixed=fixed) for fixed in grids]
        known = [k + 1 for k, book in enumerate(reversed(state.codebooks)) if distinct <= set(book)]
        ways += [replace(form, values=CODEBOOK, book=book) for book in known]
    return ways + [replace(way, ascending=True) for way in ways if ascending]


def cheapest_indices(state: State, indices: list[int]) -> Trial:
    r"""Return the cheapest way to code a list of indices; see ``code_indices``.

    Args:
        state: of the file; it is left as it is.
        indices: from 0 to :math:`2^{24} - 1`.
    """
    forms = [TensorForm(ALL)]
    if all(a < b for a, b in pairwise(indices)):
        forms.append(TensorForm(GAPS))
        if indices and indices[-1] < min(LARGEST_MASK // 2, 64 * len(indices)):
            bitmap = torch.zeros(1, indices[-1] + 1, dtype=torch.int32)
            bitmap[0, indices] = 1
            grids = _images(bitmap, Matrix(1, range(bitmap.shape[1]), "indices"))
            forms += [TensorForm(MASK, grid) for grid in (PLAIN, *grids)]

    def tried(form: TensorForm) -> Trial:
        return _tried(state, lambda coder, own: code_indices(coder, own, form, indices))

    return min(map(tried, forms), key=lambda trial: trial.cost)


def _images(patterns: Tensor, matrix: Matrix, most: int = 2) -> list[Grid]:
    """Return sizes of square images that columns may be points of.

    Units that read a point read the one below it more often than they read points a little further along the row.
    """
    if matrix.rows * len(matrix.columns) < 64 or len(matrix.columns) < 8:
        return []
    full = torch.zeros(matrix.rows, max(matrix.columns) + 1, dtype=torch.float32)
    full[:, list(matrix.columns)] = (patterns != 0).float()
    sides = range(2, min(64, isqrt(full.shape[1]) + 4) + 1)
    pairs = {
        d: float((full[:, d:] * full[:, :-d]).sum())
        for d in range(1, sides[-1] + 3)
        if d < full.shape[1]
    }
    score = {
        d: pairs[d] - (pairs.get(d - 2, pairs[d]) + pairs.get(d + 2, pairs[d])) / 2
        for d in sides
        if d in pairs
    }
    return [Grid(d, d) for d in sorted(score, key=lambda d: -score[d])[:most] if score[d] > 0]
