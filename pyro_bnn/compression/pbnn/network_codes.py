"""A network, node by node: operations, sizes and tensors, described once for both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import fx, nn

from .graph_codes import (
    OPERATIONS,
    OUTPUT,
    Operation,
    OperationOrLayer,
    code_arguments,
    code_operation,
)
from .layer_codes import LayerCoder, TensorStream
from .network_sources import Source
from .range_coder import FormatError

__all__ = ["Stream", "code_network"]


class Stream(TensorStream, Protocol):
    """A writer or reader of a file; a reader ignores the values passed to it."""

    def start(self, name: str, nodes: int) -> None:
        """Begin a node.

        Args:
            name: Name of the layer or selection; empty for other operations.
            nodes: Number of nodes so far.
        """
        ...

    def indices(self, indices: list[int] | None) -> list[int]:
        """Code a list of indices; ``None`` when reading."""
        ...


@dataclass(frozen=True)
class _Value:
    """The result of a node.

    Attributes:
        node: The node in the graph that is built.
        width: Size of the second axis; ``None`` where it is not known.
        columns: Inputs that the second axis holds, if it is a selection of them.
    """

    node: fx.Node
    width: int | None = None
    columns: list[int] | None = None


def code_network(stream: Stream, source: Source) -> fx.GraphModule:
    """Code a network in normal form.

    Args:
        stream: Writer or reader.
        source: The network to write, or :class:`.network_sources.BlankSource` when reading.

    Returns:
        A network of ``layer0``, ``layer1``, ... and ``index0``, ..., numbered by first use, in
        evaluation mode.

    Raises:
        FormatError: The file does not hold a network.
        UnsupportedLayerError: The format cannot hold a node of the network.
    """
    return _NetworkCoder(stream, source).code()


class _NetworkCoder:
    """One pass over the nodes, which builds the network that is coded."""

    def __init__(self, stream: Stream, source: Source) -> None:
        self._stream, self._source = stream, source
        self._coder, self._state = stream.coder, stream.state
        self._root, self._graph = nn.Module(), fx.Graph()
        self._values = [_Value(self._graph.placeholder("x"))]
        self._layers: list[nn.Module] = []
        self._selections = 0

    def code(self) -> fx.GraphModule:
        """Code all nodes up to the output."""
        place = -1
        while True:
            self._stream.start("", len(self._values))
            place = code_operation(self._coder, self._state, self._source.operation(), place)
            operation = OPERATIONS[place]
            inputs = self._code_inputs(operation)
            if operation == OUTPUT:
                self._graph.output(inputs[0].node)
                return fx.GraphModule(self._root, self._graph, "Network").eval()
            self._values.append(self._code_node(operation, inputs))

    def _code_inputs(self, operation: OperationOrLayer) -> list[_Value]:
        """Code which earlier values an operation takes, by how many nodes they are back."""
        count = 1
        if isinstance(operation, Operation):
            count = operation.tensors
        inputs = []
        for distance in self._source.distances(count):
            back = self._state.numbers.code(self._coder, distance, "back")
            if back >= len(self._values):
                raise FormatError(
                    f"expected one of {len(self._values)} nodes, found one {back} before the last, "
                    "which precedes the input"
                )
            inputs.append(self._values[-1 - back])
        return inputs

    def _code_node(self, operation: OperationOrLayer, inputs: list[_Value]) -> _Value:
        """Code everything about a node but its operation and its inputs."""
        if isinstance(operation, type):
            return self._code_layer(operation, inputs[0])
        assert isinstance(operation, Operation)  # the output is not a node with a value
        if operation.function is torch.index_select:
            return self._code_selection(operation, inputs[0])
        values = self._source.arguments(operation)
        arguments = code_arguments(self._coder, self._state, operation, values)
        positional = len(operation.positional)
        nodes = [value.node for value in inputs]
        node = self._graph.call_function(
            operation.function,
            (*nodes, *arguments[:positional]),
            dict(zip(operation.keywords, arguments[positional:], strict=True)),
        )
        if operation.function is torch.flatten:
            return _Value(node)
        if operation.function is torch.reshape:
            shape = arguments[0]
            if isinstance(shape, tuple) and len(shape) > 1 and isinstance(shape[1], int):
                return _Value(node, shape[1])
            return _Value(node)
        return _Value(node, inputs[0].width, inputs[0].columns)

    def _code_selection(self, operation: Operation, value: _Value) -> _Value:
        """Code the indices of an ``index_select``."""
        name = f"index{self._selections}"
        self._selections += 1
        indices = self._source.indices()
        self._stream.start(name, len(self._values))
        indices = self._stream.indices(indices)
        self._root.register_buffer(name, torch.tensor(indices, dtype=torch.int64))
        buffer = self._graph.get_attr(name)
        node = self._graph.call_function(operation.function, (value.node, 1, buffer))
        return _Value(node, len(indices), indices)

    def _code_layer(self, kind: type[nn.Module], value: _Value) -> _Value:
        """Code a layer, or which earlier layer is used again."""
        if self._layers:
            back = self._state.numbers.code(self._coder, self._source.layers_back(), "again")
            if back > len(self._layers):
                raise FormatError(
                    f"expected one of {len(self._layers)} layers, found number {back}"
                )
            if back:
                return self._layer_value(len(self._layers) - back, value)
        name = f"layer{len(self._layers)}"
        self._stream.start(name, len(self._values))
        coder = LayerCoder(self._stream, self._source, value.width, value.columns)
        layer = coder.code(kind)
        self._layers.append(layer)
        self._root.add_module(name, layer)
        return self._layer_value(len(self._layers) - 1, value)

    def _layer_value(self, number: int, value: _Value) -> _Value:
        """Return the result of a layer; a batch norm keeps the second axis as it is."""
        layer = self._layers[number]
        node = self._graph.call_module(f"layer{number}", (value.node,))
        if isinstance(layer, nn.Linear):
            return _Value(node, layer.out_features)
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            return _Value(node, layer.out_channels)
        return _Value(node, value.width, value.columns)
