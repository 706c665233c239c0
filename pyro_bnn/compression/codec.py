r"""The file of a compressed network: all of it, in as few bytes as it takes.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..checkpoint import write_atomically
from .graph import graph_of
from .lattices import DTYPES
from .network_codes import code_network
from .range_coder import Coder, FormatError, RangeDecoder, RangeEncoder, most_decisions
from .sizes import LayerSize, Meter, Sizes
from .supports import Grid
from .tensor_choice import Trial, cheapest_indices, cheapest_tensor
from .tensor_codes import Matrix, State, TensorForm, code_indices, code_support, code_values

__all__ = ["FormatError", "LayerSize", "Sizes", "compression_rate", "decode", "describe", "encode", "load", "save"]

_MAGIC = b"PB"
_VERSION = 1
_HEADER, _CHECKSUM = len(_MAGIC) + 1, 4
_FREE_NUMBERS, _NUMBERS_PER_BYTE = 1 << 24, 1 << 12
_FREE_NODES, _NODES_PER_BYTE = 256, 8


def encode(module: nn.Module) -> bytes:
    """Return a network as a file.

    Every number comes back bit for bit; names of layers do not.

    Args:
        module: of operations that :func:`~pyro_bnn.compression.graph.graph_of` knows.

    Raises:
        UnsupportedLayerError: a node of the network is not among them.
        ValueError: the network has numbers for fewer bytes than a reader believes in: shrink it first.
    """
    writer = _Writer()
    with torch.no_grad():
        code_network(writer, graph_of(module))
    coded = writer.coder.finish(padded=bool(writer.raw))
    body = _MAGIC + bytes([_VERSION]) + coded + b"".join(writer.raw)
    length = len(body) - _HEADER
    if writer.numbers > _most_numbers(length) or writer.decisions > most_decisions(length):
        raise ValueError(
            f"encode: {writer.numbers} numbers would take {length} bytes, which no reader believes; shrink it first"
        )
    return body + zlib.crc32(body).to_bytes(_CHECKSUM, "little")


def decode(data: bytes) -> fx.GraphModule:
    """Return the network of a file, in evaluation mode, with layers ``layer0``, ``layer1``, ... in the order of use.

    Nothing of the file is run.

    Raises:
        FormatError: the bytes are no such file, a damaged one, or one of another version.
    """
    return _read(data, None)[0]


def describe(data: bytes) -> Sizes:
    """Return what the bytes of a file are for.

    Raises:
        FormatError: the bytes are no such file.
    """
    meter = Meter()
    _, numbers = _read(data, meter)
    return meter.sizes(numbers, len(data))


def save(pruned: Any, path: str | os.PathLike[str], overwrite: bool = False) -> Sizes:
    """Write a network to a file in one step, and return what its bytes are for.

    Args:
        pruned: what :func:`~pyro_bnn.compression.prune` returns, or a module.
        path: of the file, such as ``"lenet.pbnn"``; its folder must exist.
        overwrite: whether a file that is there may be replaced.

    Raises:
        FileExistsError: there is a file, and it may not.
        UnsupportedLayerError: a node of the network is not supported.
    """
    module = pruned if isinstance(pruned, nn.Module) else pruned.module
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give another path, or overwrite=True to replace it")
    graph = graph_of(module)
    data = encode(graph)
    sizes = describe(data)
    write_atomically(path, data)
    names = list(dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "call_module"))
    known = {f"layer{k}": name for k, name in enumerate(names)}
    return replace(sizes, layers=tuple(replace(row, name=known.get(row.name, row.name)) for row in sizes.layers))


def load(path: str | os.PathLike[str]) -> fx.GraphModule:
    """Return the network of a file; see :func:`decode`.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: it is no compressed network, damaged, or of another version.
    """
    data = Path(path).read_bytes()
    try:
        return decode(data)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def compression_rate(data: bytes | str | os.PathLike[str], weights: int) -> float:
    """Return 4 bytes for every weight of the original network over the bytes of a file.

    Args:
        data: the file or its path.
        weights: of the original network, biases not counted: 266,200 for LeNet-300-100.

    Raises:
        ValueError: the number of weights is not positive.

    >>> round(compression_rate(bytes(3500), 266_200))
    304
    """
    if weights <= 0:
        raise ValueError(f"compression_rate: expected the number of weights of the original network, got {weights}")
    return 4 * weights / len(data if isinstance(data, bytes) else Path(data).read_bytes())


# --- streams ----------------------------------------------------------------------------------------------------------


def _most_numbers(length: int) -> int:
    return _FREE_NUMBERS + _NUMBERS_PER_BYTE * length


class _Writer:
    """Chooses the form of every tensor and writes it."""

    def __init__(self) -> None:
        self.coder: Any = RangeEncoder()
        self.state = State()
        self.raw: list[bytes] = []
        self.numbers = self.decisions = 0

    def start(self, name: str, nodes: int) -> None:
        """Note what is coded next: nothing, when writing."""

    def tensor(self, matrix: Matrix, shape: Sequence[int], tensor: Tensor | None) -> Tensor:
        """Write a tensor."""
        assert tensor is not None
        self.numbers += matrix.size
        self._write(cheapest_tensor(self.state, matrix, tensor.detach()))
        return tensor.detach()

    def indices(self, indices: list[int] | None) -> list[int]:
        """Write indices."""
        assert indices is not None
        self._write(cheapest_indices(self.state, indices))
        return indices

    def _write(self, trial: Trial) -> None:
        trial.price.replay(self.coder)
        self.decisions += len(trial.price.record)
        vars(self.state).update(vars(trial.state))
        self.raw += [trial.raw] if trial.raw else []


class _Reader:
    """Makes the tensors; those that stand behind the coded part are filled in at the end."""

    def __init__(self, coder: Coder, length: int, meter: Meter | None) -> None:
        self.coder, self.state = coder, State()
        self.counts: dict[str, int] = {}
        self._meter, self._length, self._name = meter, length, ""
        self._pending: list[tuple[Tensor, Sequence[int], int]] = []
        self._numbers = self._raw = 0

    def start(self, name: str, nodes: int) -> None:
        """Note the layer; refuse more nodes than a file of this length has."""
        self._name = name
        if name:
            self.counts[name] = 0
        self._note("graph")
        if nodes > _FREE_NODES + _NODES_PER_BYTE * self._length:
            raise FormatError(f"expected a network of {self._length} bytes, found {nodes} nodes and more")

    def _note(self, kind: str) -> None:
        if self._meter is not None:
            self._meter.layer, self._meter.kind, self._meter.state = self._name, kind, self.state

    def tensor(self, matrix: Matrix, shape: Sequence[int], tensor: Tensor | None) -> Tensor:
        """Read a tensor."""
        self._numbers += matrix.size
        if self._numbers > _most_numbers(self._length):
            raise FormatError(f"expected what {self._length} bytes can hold, found {self._numbers} numbers and more")
        self.counts[self._name] += matrix.size
        self._note(matrix.kind)
        where, grid = code_support(self.coder, self.state, matrix, TensorForm(), None)
        values = code_values(self.coder, self.state, matrix, TensorForm(), where, grid, None)
        dtype = self.state.dtype
        patterns = torch.zeros(matrix.size, dtype=DTYPES[dtype][0])
        if values is None:
            self._raw += len(where) * dtype.itemsize
            if self._raw > self._length:
                raise FormatError(f"expected what {self._length} bytes can hold, found {self._raw} bytes and more")
            self._pending.append((patterns, where, dtype.itemsize * len(where)))
            if self._meter is not None:
                self._meter.add(8 * dtype.itemsize * len(where))
        else:
            _put(patterns, where, torch.tensor(values, dtype=patterns.dtype))
        self._done()
        return patterns.view(dtype).reshape(*shape)

    def indices(self, indices: list[int] | None) -> list[int]:
        """Read indices."""
        self._note("weight")
        found = code_indices(self.coder, self.state, TensorForm(), None)
        self.counts[self._name] = len(found)
        self._done()
        return found

    def _done(self) -> None:
        self.state.part = "graph"
        self._note("graph")

    def finish(self, data: bytes, decoder: RangeDecoder) -> None:
        """Read what is not coded, and require the end of the file behind it.

        Raises:
            FormatError: the file ends before or after.
        """
        end = decoder.finish(padded=bool(self._pending))
        if end + self._raw != len(data):
            raise FormatError(f"expected {end + self._raw + _HEADER + _CHECKSUM} bytes, found a file of another length")
        for patterns, where, size in self._pending:
            array = torch.frombuffer(bytearray(data[end : end + size]), dtype=patterns.dtype)
            _put(patterns, where, array)
            end += size


def _put(patterns: Tensor, where: Sequence[int], values: Tensor) -> None:
    """Set numbers at flat indices; one number is for all of them."""
    if isinstance(where, range):
        patterns[:] = values
    elif len(where):
        patterns[torch.tensor(where)] = values


def _read(data: bytes, meter: Meter | None) -> tuple[fx.GraphModule, dict[str, int]]:
    if len(data) < _HEADER + _CHECKSUM or data[: len(_MAGIC)] != _MAGIC:
        raise FormatError(f"expected a compressed network, found {len(data)} bytes that are none")
    if data[len(_MAGIC)] != _VERSION:
        raise FormatError(f"expected version {_VERSION} of the format, found {data[len(_MAGIC)]}")
    if zlib.crc32(data[:-_CHECKSUM]) != int.from_bytes(data[-_CHECKSUM:], "little"):
        raise FormatError("expected a complete file, found a wrong checksum: it was changed, damaged or cut off")
    body = data[_HEADER:-_CHECKSUM]
    decoder = RangeDecoder(body)
    if meter is not None:
        meter.coder = decoder
    reader = _Reader(decoder if meter is None else meter, len(body), meter)
    module = code_network(reader, None)
    reader.finish(body, decoder)
    return module, reader.counts
