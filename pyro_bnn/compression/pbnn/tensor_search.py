"""The cheapest form of a tensor: every form that may be the shortest is tried."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, isqrt

import torch
from torch import Tensor

from .forms import NO_IMAGE, ImageSize, Matrix, Positions, State, TensorForm, Values
from .number_grids import NumberGrid, bits_of, ordered
from .range_coder import CostRecorder
from .sparsity_codes import LARGEST_MASK, NonZero, code_indices, code_positions
from .value_codes import LARGEST_CODEBOOK, code_values

__all__ = ["Trial", "cheapest_indices", "cheapest_tensor", "raw_bytes"]

_LONG = 1 << 13  # more distinct numbers than this are not worth the time to code one by one
_SMALL = 1 << 12  # numbers that are always tried without positions
_MAX_IMAGES = 2  # image sizes that are tried
_LARGEST_SIDE = 64


@dataclass
class Trial:
    """One way to code something.

    Attributes:
        recorder: The decisions.
        state: The state of the file after them.
        raw: The bytes that follow the coded part.
    """

    recorder: CostRecorder
    state: State
    raw: bytes = b""

    @property
    def cost(self) -> float:
        """Length in bits; infinite if there are more decisions than readers accept."""
        bits = self.recorder.cost() + 8 * len(self.raw)
        if len(self.recorder.record) > 256 + 48 * bits:
            return inf
        return bits


@dataclass
class _PositionTrial:
    """A trial of a form of positions, and the positions."""

    form: TensorForm
    trial: Trial
    nonzero: NonZero


def raw_bytes(patterns: Tensor) -> bytes:
    """Return bit patterns as a little-endian machine holds them in memory."""
    array = patterns.contiguous().numpy()
    data: bytes = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return data


def _cheapest(trials: Iterable[Trial]) -> Trial:
    """Return the trial of the lowest cost, the first one among equals."""
    return min(trials, key=lambda trial: trial.cost)


def cheapest_tensor(state: State, matrix: Matrix, tensor: Tensor) -> Trial:
    """Return the cheapest way to code a tensor.

    Args:
        state: State of the file; not changed.
        matrix: Shape of the tensor as a matrix.
        tensor: The numbers.
    """
    patterns = bits_of(tensor).reshape(matrix.rows, len(matrix.columns))
    nonzero_count = int((patterns != 0).sum())
    everything = TensorForm(Positions.ALL)
    candidates = []
    is_dense = nonzero_count == matrix.size or 2 * nonzero_count > matrix.size
    if is_dense or matrix.size <= _SMALL:
        candidates.append(_try_positions(state, matrix, everything, patterns))
    if nonzero_count < matrix.size:
        sparse = []
        for form in _sparse_forms(state, matrix, patterns):
            sparse.append(_try_positions(state, matrix, form, patterns))
        cheapest = min(sparse, key=lambda candidate: candidate.trial.cost)
        candidates.append(cheapest)
        if cheapest.trial.cost == inf:
            candidates = [_try_positions(state, matrix, everything, patterns)]
    trials = []
    for candidate in candidates:
        trials.append(_with_cheapest_values(candidate, matrix, patterns))
    return _cheapest(trials)


def _sparse_forms(state: State, matrix: Matrix, patterns: Tensor) -> list[TensorForm]:
    """Return the forms of positions that may be the shortest, if there are zeros."""
    forms = [TensorForm(Positions.GAPS)]
    if matrix.size <= LARGEST_MASK and patterns.any():
        images = dict.fromkeys((NO_IMAGE, state.image, *_likely_images(patterns, matrix)))
        for image in images:
            forms.append(TensorForm(Positions.MASK, image))
    return forms


def _try_positions(
    state: State, matrix: Matrix, form: TensorForm, patterns: Tensor
) -> _PositionTrial:
    trial = Trial(CostRecorder(), state.copy())
    nonzero = code_positions(trial.recorder, trial.state, matrix, form, patterns)
    return _PositionTrial(form, trial, nonzero)


def _with_cheapest_values(candidate: _PositionTrial, matrix: Matrix, patterns: Tensor) -> Trial:
    """Return a trial of positions, completed by the cheapest way to code the numbers there."""
    form, nonzero, state = candidate.form, candidate.nonzero, candidate.trial.state
    values = patterns.flatten()
    if form.positions != Positions.ALL:
        values = values[torch.as_tensor(nonzero.indices, dtype=torch.int64)]
    value_forms = [replace(form, values=Values.RAW)]
    numbers = [0] * len(values)  # raw numbers are not looked at
    is_codable = len(values) <= _LONG or len(torch.unique(values)) <= LARGEST_CODEBOOK
    if is_codable and len(values):
        numbers = values.tolist()
        value_forms += _value_forms(form, state, numbers)
    trials = []
    for value_form in value_forms:
        trial = Trial(CostRecorder(), state.copy())
        code_values(trial.recorder, trial.state, matrix, value_form, nonzero, numbers)
        if value_form.values == Values.RAW:
            trial.raw = raw_bytes(values)
        trials.append(trial)
    best = _cheapest(trials)
    recorder = CostRecorder()
    recorder.record = candidate.trial.recorder.record + best.recorder.record
    return Trial(recorder, best.state, best.raw)


def _value_forms(form: TensorForm, state: State, patterns: list[int]) -> list[TensorForm]:
    """Return the forms of numbers, other than raw bits, that may be the shortest."""
    width = 8 * state.dtype.itemsize
    keys = [ordered(pattern, width) for pattern in patterns]
    distinct = set(patterns)
    fixed_choices = [False]
    if NumberGrid.of(sorted(distinct), state.dtype, True) is not None:
        fixed_choices.append(True)
    forms = []
    if len(patterns) <= _LONG:
        for fixed in fixed_choices:
            forms.append(replace(form, values=Values.INTEGERS, fixed=fixed))
    if len(distinct) <= LARGEST_CODEBOOK:
        for fixed in fixed_choices:
            forms.append(replace(form, values=Values.CODEBOOK, fixed=fixed))
        for back, codebook in enumerate(reversed(state.codebooks), start=1):
            if distinct <= set(codebook):
                forms.append(replace(form, values=Values.CODEBOOK, codebook=back))
    if keys == sorted(keys):
        forms += [replace(value_form, ascending=True) for value_form in forms]
    return forms


def cheapest_indices(state: State, indices: list[int]) -> Trial:
    r"""Return the cheapest way to code a list of indices; see :func:`.sparsity_codes.code_indices`.

    Args:
        state: State of the file; not changed.
        indices: Integers from 0 to :math:`2^{24} - 1`.
    """
    trials = []
    for form in _index_forms(indices):
        trial = Trial(CostRecorder(), state.copy())
        code_indices(trial.recorder, trial.state, form, indices)
        trials.append(trial)
    return _cheapest(trials)


def _index_forms(indices: list[int]) -> list[TensorForm]:
    """Return the forms of a list of indices that may be the shortest."""
    forms = [TensorForm(Positions.ALL)]
    if not all(earlier < later for earlier, later in pairwise(indices)):
        return forms
    forms.append(TensorForm(Positions.GAPS))
    if indices and indices[-1] < min(LARGEST_MASK // 2, 64 * len(indices)):
        bitmap = torch.zeros(1, indices[-1] + 1, dtype=torch.int32)
        bitmap[0, indices] = 1
        matrix = Matrix(1, range(bitmap.shape[1]), "indices")
        for image in (NO_IMAGE, *_likely_images(bitmap, matrix)):
            forms.append(TensorForm(Positions.MASK, image))
    return forms


def _likely_images(patterns: Tensor, matrix: Matrix) -> list[ImageSize]:
    """Return sizes of square images whose points the columns may be.

    Units that read a point also read the one below it more often than the points a little further
    along the row: at the width of the image, the autocorrelation of the columns has a peak.
    """
    if matrix.size < 64 or len(matrix.columns) < 8:
        return []
    full = torch.zeros(matrix.rows, max(matrix.columns) + 1, dtype=torch.float32)
    full[:, list(matrix.columns)] = (patterns != 0).float()
    max_side = min(_LARGEST_SIDE, isqrt(full.shape[1]) + 4)
    pairs: dict[int, float] = {}  # by distance
    for distance in range(1, min(max_side + 3, full.shape[1])):
        pairs[distance] = float((full[:, distance:] * full[:, :-distance]).sum())
    peaks: dict[int, float] = {}
    for side in range(2, max_side + 1):
        if side in pairs:
            around = pairs.get(side - 2, pairs[side]) + pairs.get(side + 2, pairs[side])
            peaks[side] = pairs[side] - around / 2
    highest = sorted(peaks, key=lambda side: -peaks[side])[:_MAX_IMAGES]
    return [ImageSize(side, side) for side in highest if peaks[side] > 0]
