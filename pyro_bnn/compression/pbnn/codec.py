"""Compressed networks as ``.pbnn`` files: writing, reading, and the sizes of their parts.

A file holds a whole network in as few bytes as possible: graph, positions of the weights, values
and biases go through one arithmetic coder with adaptive probabilities. The format is specified in
``FORMAT.md`` beside this module. Every number comes back bit for bit. A file does not hold the
names of layers or anything that only training needs: the momentum of a batch norm, its count of
batches, whether a parameter is trained.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import fx, nn

from pyro_bnn.compression.pruning.graph import graph_of
from pyro_bnn.runtime.tensor_files import write_atomically

from .graph_codes import LAYERS
from .network_codes import code_network
from .network_sources import BlankSource, NetworkSource
from .range_coder import FormatError, max_decisions
from .sizes import LayerSize, Sizes
from .streams import Reader, Writer, max_numbers

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


class HasModule(Protocol):
    """The part of :class:`~pyro_bnn.compression.Pruned` that is written to a file."""

    @property
    def module(self) -> nn.Module:
        """The smaller network."""


def encode(module: nn.Module) -> bytes:
    """Return a network as the bytes of a file.

    Every number comes back bit for bit; the names of layers do not.

    Args:
        module: A network of the operations that
            :func:`~pyro_bnn.compression.pruning.graph.graph_of` lists.

    Raises:
        UnsupportedLayerError: The format cannot hold a node of the network.
        ValueError: The file would be so short for its numbers that a reader refuses it. Shrink
            the network first.
    """
    writer = Writer()
    with torch.no_grad():
        code_network(writer, NetworkSource(_graph(module)))
    content = writer.finish()
    length = len(content)
    if writer.num_numbers > max_numbers(length) or writer.num_decisions > max_decisions(length):
        raise ValueError(
            f"encode: {writer.num_numbers:,} numbers would take only {length:,} bytes, and readers "
            f"refuse more than {max_numbers(length):,} numbers and {max_decisions(length):,} "
            f"decisions in such a file; shrink the network first (compression.shrink)"
        )
    body = _MAGIC + bytes([_VERSION]) + content
    return body + zlib.crc32(body).to_bytes(_CHECKSUM, "little")


def decode(data: bytes) -> fx.GraphModule:
    """Return the network of a file, in evaluation mode.

    Layers are called ``layer0``, ``layer1``, ... in the order of their first use. No code of the
    file is executed.

    Raises:
        FormatError: The bytes are damaged, or of another format or version.
    """
    try:
        return _read(data, measure=False).network
    except FormatError as error:
        raise FormatError(f"decode: {error}") from error


def describe(data: bytes) -> Sizes:
    """Return the size of a file, by layers and by the kind of content.

    Raises:
        FormatError: The bytes are damaged, or of another format or version.
    """
    try:
        content = _read(data, measure=True)
    except FormatError as error:
        raise FormatError(f"describe: {error}") from error
    meter = content.reader.meter
    assert meter is not None
    return meter.sizes(content.reader.layer_numbers, len(data))


def save(
    pruned: nn.Module | HasModule, path: str | os.PathLike[str], overwrite: bool = False
) -> Sizes:
    """Write a network to a file in one step, and return the sizes of its parts.

    Every number of a module comes back bit for bit. In a pruned network a zero means that there
    is no weight, so minus zeros, which a mask makes of negative numbers, are written as zeros.

    Args:
        pruned: The result of :func:`~pyro_bnn.compression.prune`, or a module.
        path: Path of the file, such as ``"lenet.pbnn"``. Its folder must exist.
        overwrite: Whether to replace an existing file.

    Raises:
        FileExistsError: The file exists and ``overwrite`` is ``False``.
        UnsupportedLayerError: The format cannot hold a node of the network.
        TypeError: ``pruned`` is neither a module nor a pruned network; a posterior, say.
    """
    path = Path(path)
    if not isinstance(pruned, nn.Module) and not hasattr(pruned, "module"):
        raise TypeError(
            f"save: expected a module or the result of prune, got a {type(pruned).__name__}; "
            "prune a posterior first"
        )
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"save: {path} exists; give another path, or overwrite=True to replace it"
        )
    if isinstance(pruned, nn.Module):
        graph = _graph(pruned)
    else:
        graph = _graph(pruned.module)
        _remove_minus_zeros(graph)
    data = encode(graph)
    sizes = _with_names(describe(data), graph)
    write_atomically(path, data)
    return sizes


@torch.no_grad()
def _remove_minus_zeros(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter[parameter == 0] = 0


def _with_names(sizes: Sizes, graph: fx.GraphModule) -> Sizes:
    """Return the sizes with the names that the layers have in the original network."""
    originals: dict[str, None] = {}  # in the order of first use
    for node in graph.graph.nodes:
        if node.op == "call_module":
            originals[str(node.target)] = None
    name_of = {f"layer{k}": name for k, name in enumerate(originals)}
    layers = []
    for layer in sizes.layers:
        layers.append(replace(layer, name=name_of.get(layer.name, layer.name)))
    return replace(sizes, layers=tuple(layers))


def load(path: str | os.PathLike[str]) -> fx.GraphModule:
    """Return the network of a file; see :func:`decode`.

    Raises:
        FileNotFoundError: The file does not exist.
        FormatError: The file is damaged, or of another format or version.
    """
    data = Path(path).read_bytes()
    try:
        return _read(data, measure=False).network
    except FormatError as error:
        raise FormatError(f"load: {path}: {error}") from error


def compression_rate(data: bytes | str | os.PathLike[str], weights: int) -> float:
    """Return 4 bytes per weight of the original network, divided by the bytes of a file.

    Args:
        data: The bytes of the file, or its path.
        weights: Number of weights of the original network, biases not counted: 266,200 for
            LeNet-300-100.

    Raises:
        ValueError: The number of weights is not positive.

    Example:
        >>> round(compression_rate(bytes(3500), 266_200))
        304
    """
    if weights <= 0:
        raise ValueError(
            "compression_rate: expected the number of weights of the original network, at least "
            f"1, got {weights}"
        )
    if not isinstance(data, bytes):
        data = Path(data).read_bytes()
    return 4 * weights / len(data)


def _graph(module: nn.Module) -> fx.GraphModule:
    """Return the graph of a network, which may be a single layer."""
    if isinstance(module, LAYERS):
        module = nn.Sequential(module)
    return graph_of(module)


class _Content(NamedTuple):
    """A network and the reader that read it."""

    network: fx.GraphModule
    reader: Reader


def _read(data: bytes, measure: bool) -> _Content:
    if len(data) < _HEADER + _CHECKSUM or not data.startswith(_MAGIC):
        raise FormatError(
            f"expected a compressed network, which begins with {_MAGIC.decode()!r}, found "
            f"{len(data):,} bytes of another format"
        )
    version = data[len(_MAGIC)]
    if version != _VERSION:
        raise FormatError(f"expected version {_VERSION} of the format, found {version}")
    if zlib.crc32(data[:-_CHECKSUM]) != int.from_bytes(data[-_CHECKSUM:], "little"):
        raise FormatError(
            "expected a complete file, found a wrong checksum: it was changed, damaged or cut off"
        )
    reader = Reader(data[_HEADER:-_CHECKSUM], measure)
    network = code_network(reader, BlankSource())
    reader.finish()
    return _Content(network, reader)
