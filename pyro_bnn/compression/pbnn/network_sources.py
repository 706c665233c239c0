"""The values to code, node by node: those of a network when writing, blanks when reading.

Both classes play the role of :class:`Source`. A decoder ignores the values passed to it, so
:class:`BlankSource` returns valid values without meaning. The code that describes the format
therefore does not distinguish the two directions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import fx, nn
from torch.fx.node import Argument

from .graph_codes import OPERATIONS, Operation, operation_of, unsupported
from .number_grids import DTYPES

__all__ = ["LARGEST_SIZE", "BlankSource", "NetworkSource", "Source"]

LARGEST_SIZE = 1 << 24
LayerType = TypeVar("LayerType", bound=nn.Module)


_BLANK_LAYERS: dict[type[nn.Module], Callable[[], nn.Module]] = {
    nn.Linear: partial(nn.Linear, 1, 1, device="meta"),
    nn.Conv1d: partial(nn.Conv1d, 1, 1, 1, device="meta"),
    nn.Conv2d: partial(nn.Conv2d, 1, 1, 1, device="meta"),
    nn.BatchNorm1d: partial(nn.BatchNorm1d, 1, device="meta"),
    nn.BatchNorm2d: partial(nn.BatchNorm2d, 1, device="meta"),
}


class Source(Protocol):
    """The network to write, one node at a time; blanks when reading."""

    def operation(self) -> int:
        """Move to the next node and return the place of its operation."""
        ...

    def distances(self, count: int) -> list[int]:
        """Return how many nodes back each of the ``count`` input tensors of the node lies."""
        ...

    def arguments(self, operation: Operation) -> list[Argument]:
        """Return the arguments of the node that are not tensors, in the order of the file."""
        ...

    def indices(self) -> list[int] | None:
        """Return the indices of a selection; ``None`` when reading."""
        ...

    def layers_back(self) -> int:
        """Return 0 for a new layer, k for the k-th last one."""
        ...

    def layer(self, kind: type[LayerType]) -> LayerType:
        """Return the layer of the node."""
        ...


class BlankSource:
    """Blanks in place of a network, for reading."""

    def operation(self) -> int:
        """Return a blank."""
        return 0

    def distances(self, count: int) -> list[int]:
        """Return blanks."""
        return [0] * count

    def arguments(self, operation: Operation) -> list[Argument]:
        """Return blanks."""
        return [code.blank for code in operation.codes]

    def indices(self) -> None:
        """Return ``None``."""
        return None

    def layers_back(self) -> int:
        """Return a blank."""
        return 0

    def layer(self, kind: type[LayerType]) -> LayerType:
        """Return a layer without memory."""
        layer = _BLANK_LAYERS[kind]()
        assert isinstance(layer, kind)
        return layer


class NetworkSource:
    """A network in normal form, for writing.

    Args:
        network: See :func:`pyro_bnn.compression.pruning.graph.graph_of`.

    Raises:
        UnsupportedLayerError: By any method, if the format cannot hold the node.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        self._network = network
        self._nodes = [node for node in network.graph.nodes if node.op != "get_attr"]
        self._position = {node: k for k, node in enumerate(self._nodes)}
        self._current = 0  # the input
        self._layers: list[nn.Module] = []

    @property
    def _node(self) -> fx.Node:
        node: fx.Node = self._nodes[self._current]
        return node

    def operation(self) -> int:
        """Move to the next node and return the place of its operation."""
        self._current += 1
        place = operation_of(self._node, self._network)
        count = 1
        operation = OPERATIONS[place]
        if isinstance(operation, Operation):
            count = operation.tensors
        for source in self._node.args[:count]:
            if not isinstance(source, fx.Node) or source not in self._position:
                raise self._unexpected_arguments()
        return place

    def _unexpected_arguments(self) -> Exception:
        node = self._node
        return unsupported(
            node,
            f"its arguments {node.args}, {dict(node.kwargs)} are not those of the normal form",
        )

    def distances(self, count: int) -> list[int]:
        """Return how many nodes back each of the ``count`` input tensors of the node lies."""
        result = []
        for source in self._node.args[:count]:
            assert isinstance(source, fx.Node)  # checked by operation()
            result.append(self._current - 1 - self._position[source])
        return result

    def arguments(self, operation: Operation) -> list[Argument]:
        """Return the arguments of the node that are not tensors, in the order of the file."""
        node = self._node
        count = operation.tensors + len(operation.positional)
        if len(node.args) != count or set(node.kwargs) != set(operation.keywords):
            raise self._unexpected_arguments()
        values = list(node.args[operation.tensors :])
        for name in operation.keywords:
            values.append(node.kwargs[name])
        for k, code in enumerate(operation.codes):
            value = values[k]
            if not code.fits(value):
                raise unsupported(node, f"an argument {value!r} is not one of the normal form")
            if isinstance(value, list):
                values[k] = tuple(value)
        return values

    def indices(self) -> list[int]:
        """Return the indices of a selection."""
        node = self._node
        if len(node.args) != 3 or node.args[1] != 1:
            raise unsupported(node, "a selection takes the axis 1 and a buffer of indices")
        buffer = node.args[2]
        if not isinstance(buffer, fx.Node) or buffer.op != "get_attr":
            raise unsupported(node, "a selection takes the axis 1 and a buffer of indices")
        indices: list[int] = self._network.get_buffer(str(buffer.target)).tolist()
        for index in indices:
            if not 0 <= index < LARGEST_SIZE:
                raise unsupported(
                    node, f"expected indices from 0 to {LARGEST_SIZE - 1:,}, got {index:,}"
                )
        return indices

    def layers_back(self) -> int:
        """Return 0 for a new layer, k for the k-th last one."""
        layer = self._network.get_submodule(str(self._node.target))
        for k, earlier in enumerate(self._layers):
            if earlier is layer:
                return len(self._layers) - k
        return 0

    def layer(self, kind: type[LayerType]) -> LayerType:
        """Return the layer of the node, which must have numbers of one type."""
        node = self._node
        layer = self._network.get_submodule(str(node.target))
        assert isinstance(layer, kind)  # checked by operation()
        if getattr(layer, "running_mean", layer) is None:
            raise unsupported(node, "a batch norm without running statistics depends on the batch")
        dtypes: set[torch.dtype] = set()
        for name, value in layer.state_dict().items():
            if name != "num_batches_tracked":
                dtypes.add(value.dtype)
        if len(dtypes) != 1 or not dtypes <= set(DTYPES):
            names = ", ".join(map(str, DTYPES))
            raise unsupported(node, f"its numbers are not of one type out of {names}")
        self._layers.append(layer)
        return layer
