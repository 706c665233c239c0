"""The tensors of a file: a writer that searches for their shortest form, and a reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .forms import Matrix, State, TensorForm
from .number_grids import DTYPES
from .range_coder import Coder, FormatError, RangeDecoder, RangeEncoder
from .sizes import SizeMeter
from .sparsity_codes import code_indices, code_positions
from .tensor_search import Trial, cheapest_indices, cheapest_tensor
from .value_codes import code_values

__all__ = ["Reader", "Writer", "max_numbers"]

_FREE_NUMBERS, _NUMBERS_PER_BYTE = 1 << 24, 1 << 12
_FREE_NODES, _NODES_PER_BYTE = 256, 8


def max_numbers(length: int) -> int:
    """Return how many numbers a reader accepts from ``length`` bytes."""
    return _FREE_NUMBERS + _NUMBERS_PER_BYTE * length


class Writer:
    """Write tensors, each in its cheapest form.

    Attributes:
        raw: The bytes that follow the coded part.
        num_numbers: The number of numbers written, zeros included.
        num_decisions: The number of binary decisions that they took.
    """

    def __init__(self) -> None:
        self._encoder = RangeEncoder()
        self.coder: Coder = self._encoder
        self.state = State()
        self.raw = bytearray()
        self.num_numbers = self.num_decisions = 0

    def start(self, name: str, nodes: int) -> None:
        """Begin a node; a writer has nothing to do."""

    def tensor(self, matrix: Matrix, shape: Sequence[int], tensor: Tensor) -> Tensor:
        """Write a tensor."""
        self.num_numbers += matrix.size
        self._write(cheapest_tensor(self.state, matrix, tensor.detach()))
        return tensor.detach()

    def indices(self, indices: list[int] | None) -> list[int]:
        """Write a list of indices."""
        assert indices is not None
        self._write(cheapest_indices(self.state, indices))
        return indices

    def _write(self, trial: Trial) -> None:
        trial.recorder.replay(self.coder)
        self.num_decisions += len(trial.recorder.record)
        # in place: the coders of layers and graph hold this state
        vars(self.state).update(vars(trial.state))
        self.raw += trial.raw

    def finish(self) -> bytes:
        """Return the coded part, followed by the raw numbers."""
        return self._encoder.finish(padded=bool(self.raw)) + self.raw


@dataclass(frozen=True)
class _PendingTensor:
    """A tensor whose numbers follow the coded part.

    Attributes:
        patterns: The bit patterns to fill in.
        indices: Flat indices of the numbers.
    """

    patterns: Tensor
    indices: Sequence[int]

    @property
    def size(self) -> int:
        """Bytes of the numbers."""
        return self.patterns.element_size() * len(self.indices)


class Reader:
    """Read tensors; those with raw numbers are filled in at the end.

    Args:
        data: The coded part of a file, followed by the raw numbers.
        measure: Whether to measure the sizes of the parts of the file.

    Attributes:
        layer_numbers: The number of numbers of each layer, by its name.
        meter: The sizes of the parts of the file; ``None`` unless ``measure``.
    """

    def __init__(self, data: bytes, measure: bool = False) -> None:
        self._data = data
        self._decoder = RangeDecoder(data)
        self.coder: Coder = self._decoder
        self.state = State()
        self.meter: SizeMeter | None = None
        if measure:
            self.meter = SizeMeter(self._decoder, self.state)
            self.coder = self.meter
        self.layer_numbers: dict[str, int] = {}
        self._all_numbers = 0
        self._layer = ""
        self._pending: list[_PendingTensor] = []
        self._raw_bytes = 0

    def start(self, name: str, nodes: int) -> None:
        """Begin a node.

        Raises:
            FormatError: There are more nodes than a file of this length can hold.
        """
        self._layer = name
        if name:
            self.layer_numbers[name] = 0
        max_nodes = _FREE_NODES + _NODES_PER_BYTE * len(self._data)
        if nodes > max_nodes:
            raise FormatError(
                f"expected at most {max_nodes:,} nodes in {len(self._data):,} bytes, found more "
                "nodes: the file is damaged"
            )

    def tensor(self, matrix: Matrix, shape: Sequence[int], tensor: Tensor) -> Tensor:
        """Read a tensor.

        Raises:
            FormatError: The tensor has more numbers than a file of this length can hold.
        """
        self._all_numbers += matrix.size
        self._require_fewer(self._all_numbers, max_numbers(len(self._data)), "numbers")
        self.layer_numbers[self._layer] += matrix.size
        self._count_for(matrix.kind)
        form = TensorForm()
        nonzero = code_positions(self.coder, self.state, matrix, form, None)
        values = code_values(self.coder, self.state, matrix, form, nonzero, None)
        dtype = self.state.dtype
        patterns = torch.zeros(matrix.size, dtype=DTYPES[dtype].integer)
        if values is None:
            pending = _PendingTensor(patterns, nonzero.indices)
            self._raw_bytes += pending.size
            self._require_fewer(self._raw_bytes, len(self._data), "bytes of raw numbers")
            self._pending.append(pending)
            if self.meter is not None:
                self.meter.add(8 * pending.size)
        else:
            _put(patterns, nonzero.indices, _as_tensor(values, patterns.dtype))
        self.state.section = "graph"
        return patterns.view(dtype).reshape(*shape)

    def _require_fewer(self, count: int, limit: int, unit: str) -> None:
        if count > limit:
            raise FormatError(
                f"expected at most {limit:,} {unit} in a file of {len(self._data):,} bytes, "
                f"found {count:,} {unit} and more: the file is damaged"
            )

    def indices(self, indices: list[int] | None) -> list[int]:
        """Read a list of indices."""
        self._count_for("weight")
        result = code_indices(self.coder, self.state, TensorForm(), None)
        self.layer_numbers[self._layer] = len(result)
        self.state.section = "graph"
        return result

    def _count_for(self, kind: str) -> None:
        if self.meter is not None:
            self.meter.layer, self.meter.kind = self._layer, kind

    def finish(self) -> None:
        """Read the raw numbers and require that the file ends after them.

        Raises:
            FormatError: The file ends before or after.
        """
        end = self._decoder.finish(padded=bool(self._pending))
        if end + self._raw_bytes != len(self._data):
            raise FormatError(
                f"expected {end + self._raw_bytes:,} bytes between header and checksum, "
                f"found {len(self._data):,}"
            )
        for pending in self._pending:
            raw = bytearray(self._data[end : end + pending.size])
            values = torch.frombuffer(raw, dtype=pending.patterns.dtype)
            _put(pending.patterns, pending.indices, values)
            end += pending.size


def _as_tensor(patterns: list[int], dtype: torch.dtype) -> Tensor:
    """Return bit patterns as a tensor; a codebook of another layer may have wider ones."""
    try:
        return torch.tensor(patterns, dtype=dtype)
    except RuntimeError as error:
        raise FormatError(
            f"expected bit patterns of type {dtype}, found a codebook with wider ones"
        ) from error


def _put(patterns: Tensor, indices: Sequence[int], values: Tensor) -> None:
    """Set numbers at flat indices; a single number is for all of them."""
    if isinstance(indices, range):
        patterns[:] = values
    elif indices:
        patterns[torch.tensor(indices)] = values
