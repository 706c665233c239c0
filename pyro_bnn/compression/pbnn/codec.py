r"""The file of a compressed network: all of it, in as few bytes as it takes.

Version 1 of the format, in full. Tables that it refers to are data in the modules named.

**File.** ``"PB"``, a byte 1 (the version), the coded part, raw numbers, and the CRC-32 (as in zlib) of all that as four
bytes, the lowest first. The coded part is one message of the range coder (``range_coder``). Without raw numbers it is
the shortest one, to be read with zeros behind its end; before raw numbers it ends with the byte that a decoder has read
last, five bytes ahead at the start.

**Decisions.** A decision is coded with a probability of 16 bits. Where a *number* is named, it is Elias-gamma code with
learned probabilities, one set for every kind of number, for the whole file; *signed* numbers are first folded (0, -1,
1, -2, ... to 0, 1, 2, 3, ...). Masks and indices of codebooks use mixed contexts, new for each tensor
(``context_mixing``). All arithmetic is of integers.

**Network.** Nodes in the order of execution, the input being the first. Each: its operation in
``graph_codes.OPERATIONS``, by its rank in ``graph_codes.LIKELY`` under the operation before it; for each tensor that it
takes, how many nodes back it is (0: the last one); then

* a layer: if there was a layer before, how many layers back the same one was met, or 0 for a new one. A new one: the
  number of its type in ``lattices.DTYPES``; whether its width is another than the last number of units (if that is
  known), and if so, or if not known, its inputs. Then for a dense layer its outputs; for a convolution its outputs,
  kernel (one size, and the signed steps from it to the others), and 0, or 1 and its options (stride, kind of padding,
  padding, dilation, groups, mode); for both 0 or, if there is no bias, 1, weight and bias. For a batch norm whether it
  has no scale and shift, epsilon, mean, variance, and scale and shift if it has.
* a selection of inputs: its indices, as a bitmap, as gaps, or as signed differences.
* another operation: its fields in their order. Where ``graph_codes.OPERATIONS`` has usual values, 0 says that the rest
  is as usual. A tuple is its length, and signed steps from 0 to the first and from each to the next.
* the output: nothing; the network ends.

**Tensors.** A weight is a matrix: units by inputs (a kernel's columns: channel, row, column). Other tensors are one
row. First its support (``tensor_codes.code_support``): 0 everything; 1 how many numbers are not 0 in all bits, and the
gaps between them, by rows; 2 a mask (``supports.code_mask``), after the image that its columns are points of: 0 none, 1
that of before (a kernel is its own), 2 another: its height less 1, and the signed step from there to its width. The
columns of a dense layer that reads a selection have the numbers that were selected. Then, if there are any, the numbers
that the support names (``tensor_codes.code_values``):

* 0, by a codebook: if there are codebooks, how many back, or 0 for a new one: how many numbers less 1, a grid, the
  lowest as a signed integer, and the steps from each to the next, less 1. If it has several: whether the indices ascend
  (probability 1/4), and they do by steps, or by halving the codebook, first into negative numbers and others.
* 1, as integers: a grid, whether they ascend, the least as a signed integer, and for each how far it is above the least
  or above the one before.
* 2, raw: the bits, lowest byte first, stand behind the coded part, tensor after tensor.

A *grid* (``lattices.NumberGrid``) is 0 and how many zeros all bit patterns end in: the patterns without these, as
integers that grow with the number; or 1 and a number s: integers times :math:`2^{-s}`.

**Limits.** A reader refuses more than 16,384 decisions and 512 per byte, :math:`2^{24}` numbers and 4,096 per byte, 256
nodes and 8 per byte, raw numbers beyond the end, and whatever stands behind the end.

Names of layers are not in a file, nor is anything that training alone needs: a batch norm's count of batches and
momentum, whether a parameter was to be trained. Zeros keep their signs: masks should leave zeros, not minus zeros,
which are numbers like others and cost as much.
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

from pyro_bnn.compression.pruning.graph import graph_of
from pyro_bnn.runtime.tensor_files import write_atomically

from .graph_codes import LAYERS
from .network_codes import code_network
from .number_grids import DTYPES
from .range_coder import Coder, FormatError, RangeDecoder, RangeEncoder, most_decisions
from .sizes import LayerSize, SizeMeter, Sizes
from .tensor_codes import Matrix, State, TensorForm, code_indices, code_support, code_values
from .tensor_search import Trial, cheapest_indices, cheapest_tensor

__all__ = [
    "FormatError",
    "LayerSize",
    "Sizes",
    "compression_rate",
    "decode",
    "describe",
    "encode",
    "load",
    "save",
]

_MAGIC = b"PB"
_VERSION = 1
_HEADER, _CHECKSUM = len(_MAGIC) + 1, 4
_FREE_NUMBERS, _NUMBERS_PER_BYTE = 1 << 24, 1 << 12
_FREE_NODES, _NODES_PER_BYTE = 256, 8


def encode(module: nn.Module) -> bytes:
    """Return a network as a file.

    Every number comes back bit for bit; names of layers do not.

    Args:
        module: of operations that :func:`~pyro_bnn.compression.pruning.graph.graph_of` knows.

    Raises:
        UnsupportedLayerError: a node of the network is not among them.
        ValueError: the network has numbers for fewer bytes than a reader believes in: shrink it first.
    """
    writer = _Writer()
    with torch.no_grad():
        code_network(writer, _graph(module))
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
    meter = SizeMeter()
    _, numbers = _read(data, meter)
    return meter.sizes(numbers, len(data))


def save(pruned: Any, path: str | os.PathLike[str], overwrite: bool = False) -> Sizes:
    """Write a network to a file in one step, and return what its bytes are for.

    Every number of a module comes back bit for bit. In a pruned network a zero means that there is no weight: there
    minus zeros, which a mask makes of negative numbers, are written as zeros.

    Args:
        pruned: what :func:`~pyro_bnn.compression.prune` returns, or a module.
        path: of the file, such as ``"lenet.pbnn"``; its folder must exist.
        overwrite: whether a file that is there may be replaced.

    Raises:
        FileExistsError: there is a file, and it may not.
        UnsupportedLayerError: a node of the network is not supported.
        TypeError: neither a module nor a pruned network; a posterior, say.
    """
    path = Path(path)
    if not isinstance(pruned, nn.Module) and not hasattr(pruned, "module"):
        raise TypeError(
            f"save: expected a module or what prune returns, got a {type(pruned).__name__}"
        )
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give another path, or overwrite=True to replace it")
    graph = _graph(pruned if isinstance(pruned, nn.Module) else pruned.module)
    if not isinstance(pruned, nn.Module):
        with torch.no_grad():
            for parameter in graph.parameters():
                parameter[parameter == 0] = 0
    data = encode(graph)
    sizes = describe(data)
    write_atomically(path, data)
    names = list(
        dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    )
    known = {f"layer{k}": name for k, name in enumerate(names)}
    return replace(
        sizes,
        layers=tuple(replace(row, name=known.get(row.name, row.name)) for row in sizes.layers),
    )


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
        raise ValueError(
            f"compression_rate: expected the number of weights of the original network, got {weights}"
        )
    return 4 * weights / len(data if isinstance(data, bytes) else Path(data).read_bytes())


# --- streams ----------------------------------------------------------------------------------------------------------


def _graph(module: nn.Module) -> fx.GraphModule:
    """Return the graph of a network, which may be a single layer."""
    return graph_of(nn.Sequential(module) if isinstance(module, LAYERS) else module)


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

    def __init__(self, coder: Coder, length: int, meter: SizeMeter | None) -> None:
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
            raise FormatError(
                f"expected a network of {self._length} bytes, found {nodes} nodes and more"
            )

    def _note(self, kind: str) -> None:
        if self._meter is not None:
            self._meter.layer, self._meter.kind, self._meter.state = self._name, kind, self.state

    def tensor(self, matrix: Matrix, shape: Sequence[int], tensor: Tensor | None) -> Tensor:
        """Read a tensor."""
        self._numbers += matrix.size
        if self._numbers > _most_numbers(self._length):
            raise FormatError(
                f"expected what {self._length} bytes can hold, found {self._numbers} numbers and more"
            )
        self.counts[self._name] += matrix.size
        self._note(matrix.kind)
        where, grid = code_support(self.coder, self.state, matrix, TensorForm(), None)
        values = code_values(self.coder, self.state, matrix, TensorForm(), where, grid, None)
        dtype = self.state.dtype
        patterns = torch.zeros(matrix.size, dtype=DTYPES[dtype][0])
        if values is None:
            self._raw += len(where) * dtype.itemsize
            if self._raw > self._length:
                raise FormatError(
                    f"expected what {self._length} bytes can hold, found {self._raw} bytes and more"
                )
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
            raise FormatError(
                f"expected {end + self._raw + _HEADER + _CHECKSUM} bytes, found a file of another length"
            )
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


def _read(data: bytes, meter: SizeMeter | None) -> tuple[fx.GraphModule, dict[str, int]]:
    if len(data) < _HEADER + _CHECKSUM or data[: len(_MAGIC)] != _MAGIC:
        raise FormatError(f"expected a compressed network, found {len(data)} bytes that are none")
    if data[len(_MAGIC)] != _VERSION:
        raise FormatError(f"expected version {_VERSION} of the format, found {data[len(_MAGIC)]}")
    if zlib.crc32(data[:-_CHECKSUM]) != int.from_bytes(data[-_CHECKSUM:], "little"):
        raise FormatError(
            "expected a complete file, found a wrong checksum: it was changed, damaged or cut off"
        )
    body = data[_HEADER:-_CHECKSUM]
    decoder = RangeDecoder(body)
    if meter is not None:
        meter.coder = decoder
    reader = _Reader(decoder if meter is None else meter, len(body), meter)
    module = code_network(reader, None)
    reader.finish(body, decoder)
    return module, reader.counts
