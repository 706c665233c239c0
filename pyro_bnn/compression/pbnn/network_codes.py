"""A network, node by node: op codes, sizes and tensors in one stream, described once for reading and for writing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from .graph_codes import (
    LAYERS,
    OPERATIONS,
    OUTPUT,
    Operation,
    code_fields,
    code_number,
    code_operation,
    operation_of,
    refused,
)
from .number_grids import DTYPES
from .range_coder import Coder, FormatError
from .sparsity_codes import Grid
from .tensor_codes import Matrix, State

__all__ = ["Stream", "code_network"]

_MODES = ("zeros", "reflect", "replicate", "circular")
_PADDINGS = (None, "same", "valid")
_LARGEST = 1 << 24


class Stream(Protocol):
    """What reads or writes tensors; a reader ignores what it is given."""

    coder: Coder
    state: State

    def tensor(self, matrix: Matrix, shape: Sequence[int], tensor: Tensor | None) -> Tensor:
        """Code a tensor of known shape."""
        ...

    def indices(self, indices: list[int] | None) -> list[int]:
        """Code a list of indices."""
        ...

    def start(self, name: str, most_nodes: int) -> None:
        """Note what is coded next."""
        ...


def code_network(stream: Stream, given: fx.GraphModule | None) -> fx.GraphModule:
    """Code a network in normal form.

    Args:
        stream: reads or writes.
        given: what is written.

    Returns:
        A network of ``layer0``, ``layer1``, ... and ``index0``, ..., numbered as they are first used.

    Raises:
        FormatError: what is read is no network.
        UnsupportedLayerError: what is given has a node that the format does not have.
    """
    return _Network(stream, given).coded()


class _Network:
    """One pass over the nodes: what is there so far."""

    def __init__(self, stream: Stream, given: fx.GraphModule | None) -> None:
        self.stream, self.coder, self.state, self.given = stream, stream.coder, stream.state, given
        self.root, self.graph = nn.Module(), fx.Graph()
        self.nodes = [self.graph.placeholder("x")]
        self.widths: list[int | None] = [None]  # of the second axis, where it is known
        self.columns: list[list[int] | None] = [
            None
        ]  # which inputs the second axis has, where it is a selection
        self.layers: list[tuple[str, nn.Module]] = []
        self.indices = 0

    def coded(self) -> fx.GraphModule:
        """Code everything up to the output."""
        operation, nodes = -1, self._given_nodes()
        position = {nodes[0]: 0} if nodes else {}  # of each value of the given network
        for k in range(1, len(nodes) or _LARGEST):
            node = nodes[k] if nodes else None
            self.stream.start("", len(self.nodes))
            place = (
                operation_of(node, self.given) if node is not None and self.given is not None else 0
            )
            operation = code_operation(self.coder, self.state, place, operation)
            kind = OPERATIONS[operation]
            count = kind.tensors if isinstance(kind, Operation) else 1
            back = [0] * count
            if node is not None:
                position[node] = k
                if not all(isinstance(source, fx.Node) for source in node.args[:count]):
                    raise refused(
                        node, f"its arguments {node.args} are not those of the normal form"
                    )
                back = [k - 1 - position[source] for source in node.args[:count]]  # type: ignore[index]
            sources = [self._source(distance) for distance in back]
            if kind == OUTPUT:
                self.graph.output(self.nodes[sources[0]])
                return fx.GraphModule(self.root, self.graph, "Network").eval()
            self._code_node(kind, node, sources)
        raise FormatError("expected a network, found one without an end")

    def _given_nodes(self) -> list[fx.Node]:
        return (
            []
            if self.given is None
            else [node for node in self.given.graph.nodes if node.op != "get_attr"]
        )

    def _source(self, distance: int) -> int:
        source = len(self.nodes) - 1 - self.state.numbers.code(self.coder, distance, "back")
        if source < 0:
            raise FormatError("expected a node that is there, found one before the input")
        return source

    def _code_node(self, kind: Any, node: fx.Node | None, sources: list[int]) -> None:
        inputs = [self.nodes[source] for source in sources]
        width, columns = self.widths[sources[0]], self.columns[sources[0]]
        if kind in LAYERS:
            name, layer = self._code_layer(kind, node, width, columns)
            new = self.graph.call_module(name, (inputs[0],))
            outputs = getattr(layer, "out_channels", getattr(layer, "out_features", None))
            width, columns = (width, columns) if outputs is None else (outputs, None)
        elif kind.function is torch.index_select:
            name, columns = self._code_indices(node)
            new = self.graph.call_function(kind.function, (inputs[0], 1, self.graph.get_attr(name)))
            width = len(columns)
        else:
            args, kwargs = code_fields(self.coder, self.state, kind, node)
            new = self.graph.call_function(kind.function, (*inputs, *args), kwargs)
            if kind.function is torch.reshape:
                width = args[0][1] if len(args[0]) > 1 else None
            if kind.function in (torch.reshape, torch.flatten):
                columns = None
            if kind.function is torch.flatten:
                width = None
        self.nodes.append(new)
        self.widths.append(width)
        self.columns.append(columns)

    def _code_indices(self, node: fx.Node | None) -> tuple[str, list[int]]:
        name, given = f"index{self.indices}", None
        if node is not None and self.given is not None:
            buffer = node.args[2] if len(node.args) == 3 else None
            if node.args[1:2] != (1,) or not isinstance(buffer, fx.Node) or buffer.op != "get_attr":
                raise refused(node, "a selection takes the axis 1 and a buffer of indices")
            given = self.given.get_buffer(str(buffer.target)).tolist()
            if not all(0 <= index < _LARGEST for index in given):
                raise refused(node, f"its indices are not from 0 to {_LARGEST - 1}")
        self.stream.start(name, len(self.nodes))
        found = self.stream.indices(given)
        self.root.register_buffer(name, torch.tensor(found, dtype=torch.int64))
        self.indices += 1
        return name, found

    # --- layers -------------------------------------------------------------------------------------------------------

    def _code_layer(
        self, kind: Any, node: fx.Node | None, width: int | None, columns: list[int] | None
    ) -> tuple[str, nn.Module]:
        """Code a layer, or that it is one of before."""
        given = (
            self.given.get_submodule(str(node.target))
            if node is not None and self.given is not None
            else None
        )
        if self.layers:
            again = 0
            for k, (_, layer) in enumerate(reversed(self.layers)):
                again = k + 1 if layer is given else again
            again = self._number(again, "again")
            if again > len(self.layers):
                raise FormatError(
                    f"expected one of {len(self.layers)} layers, found number {again}"
                )
            if again:
                name = f"layer{len(self.layers) - again}"
                return name, self.root.get_submodule(name)
        name = f"layer{len(self.layers)}"
        self.stream.start(name, len(self.nodes))
        if given is not None and node is not None:
            self._require_plain(node, given)
        types = list(DTYPES)
        number = (
            types.index(next(iter(given.state_dict().values())).dtype) if given is not None else 0
        )
        found = self._number(number, "type")
        if found >= len(types):
            raise FormatError(
                f"expected one of {len(types)} types of numbers, found number {found}"
            )
        self.state.dtype = types[found]
        make = {nn.Linear: self._code_linear}.get(
            kind, self._code_norm if "Norm" in kind.__name__ else self._code_conv
        )
        layer = make(kind, given, width, columns)
        self.layers.append((name, given if given is not None else layer))
        self.root.add_module(name, layer)
        return name, layer

    def _require_plain(self, node: fx.Node, layer: nn.Module) -> None:
        values = [
            *layer.parameters(),
            *(b for name, b in layer.named_buffers() if name != "num_batches_tracked"),
        ]
        if len({value.dtype for value in values}) != 1 or values[0].dtype not in DTYPES:
            raise refused(
                node, f"its numbers are not of one type out of {', '.join(map(str, DTYPES))}"
            )
        if getattr(layer, "running_mean", values) is None:
            raise refused(node, "a batch norm without running statistics depends on the batch")

    def _number(self, value: int, context: str, most: int = _LARGEST) -> int:
        found = self.state.numbers.code(self.coder, value, context)
        if found > most:
            raise FormatError(f"expected a size up to {most}, found {found} for {context}")
        return found

    def _width(self, value: int, likely: int | None) -> int:
        """Code how many inputs a layer has: nearly always as many as the last one has outputs."""
        if likely is not None and self._number(int(value != likely), "other width") == 0:
            return likely
        return self._number(value, "width")

    def _code_linear(
        self, kind: Any, given: Any, width: int | None, columns: list[int] | None
    ) -> nn.Module:
        inputs = self._width(given.in_features if given is not None else 0, width)
        outputs = self._number(given.out_features if given is not None else 0, "width")
        layer = _bare(nn.Linear, inputs, outputs, bias=False)
        reads = columns if columns is not None and len(columns) == inputs else range(inputs)
        self._code_weight(layer, given, Matrix(outputs, reads, "weight"), (outputs, inputs))
        return layer

    def _code_weight(self, layer: Any, given: Any, matrix: Matrix, shape: Sequence[int]) -> None:
        has_bias = self._number(int(given is not None and given.bias is None), "no bias") == 0
        layer.weight = nn.Parameter(
            self.stream.tensor(matrix, shape, None if given is None else given.weight)
        )
        layer.bias = nn.Parameter(self._vector(shape[0], given, "bias")) if has_bias else None

    def _vector(self, size: int, given: Any, name: str) -> Tensor:
        tensor = None if given is None else getattr(given, name)
        return self.stream.tensor(Matrix(1, range(size), f"{name} of units"), (size,), tensor)

    def _code_conv(
        self, kind: Any, given: Any, width: int | None, columns: list[int] | None
    ) -> nn.Module:
        dims = 2 if kind is nn.Conv2d else 1
        inputs = self._width(given.in_channels if given is not None else 0, width)
        outputs = self._number(given.out_channels if given is not None else 0, "width")
        kernel = self._sizes(given.kernel_size if given is not None else None, dims, "kernel")
        options: dict[str, Any] = {
            "stride": (1,) * dims,
            "padding": (0,) * dims,
            "dilation": (1,) * dims,
        }
        options |= {"groups": 1, "padding_mode": "zeros"}
        is_plain = given is not None and all(
            getattr(given, name) == value for name, value in options.items()
        )
        if self._number(int(not is_plain), "options"):
            options = self._options(given, dims)
        layer = _bare(kind, inputs, outputs, kernel, bias=False, **options)
        shape = tuple(layer.weight.shape)
        area = 1
        for size in kernel:
            area *= size
        self.state.grid = Grid(area // kernel[-1], kernel[-1]) if area > 1 else self.state.grid
        self._code_weight(layer, given, Matrix(outputs, range(shape[1] * area), "weight"), shape)
        return layer

    def _options(self, given: Any, dims: int) -> dict[str, Any]:
        text = given.padding if given is not None and isinstance(given.padding, str) else None
        stride = self._sizes(given.stride if given is not None else None, dims, "stride")
        named = _PADDINGS[self._number(_PADDINGS.index(text), "padding kind", len(_PADDINGS) - 1)]
        padding = named or self._sizes(
            given.padding if given is not None else None, dims, "padding"
        )
        dilation = self._sizes(given.dilation if given is not None else None, dims, "dilation")
        groups = self._number(given.groups if given is not None else 1, "groups")
        mode = self._number(
            _MODES.index(given.padding_mode) if given is not None else 0, "mode", len(_MODES) - 1
        )
        return {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "padding_mode": _MODES[mode],
        }

    def _sizes(self, value: Sequence[int] | None, dims: int, context: str) -> tuple[int, ...]:
        first = self._number(value[0] if value else 0, context)
        rest = (
            first
            + self.state.numbers.signed(
                self.coder, value[k] - first if value else 0, f"{context} step"
            )
            for k in range(1, dims)
        )
        found = (first, *rest)
        if not all(0 <= size <= _LARGEST for size in found):
            raise FormatError(f"expected sizes up to {_LARGEST}, found {found} for {context}")
        return found

    def _code_norm(
        self, kind: Any, given: Any, width: int | None, columns: list[int] | None
    ) -> nn.Module:
        features = self._width(given.num_features if given is not None else 0, width)
        affine = self._number(int(given is not None and not given.affine), "not affine") == 0
        eps = code_number(self.coder, self.state, given.eps if given is not None else None)
        layer = _bare(kind, features, eps=eps, affine=False)
        layer.affine = affine
        layer.running_mean = self._vector(features, given, "running_mean")
        layer.running_var = self._vector(features, given, "running_var")
        layer.num_batches_tracked = torch.tensor(0)
        if affine:
            layer.weight = nn.Parameter(self._vector(features, given, "weight"))
            layer.bias = nn.Parameter(self._vector(features, given, "bias"))
        return layer


def _bare(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """Return a layer whose numbers take no memory yet.

    Raises:
        FormatError: there is no such layer.
    """
    try:
        with warnings.catch_warnings():  # of layers without inputs or outputs
            warnings.simplefilter("ignore")
            return kind(*args, device="meta", **kwargs)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise FormatError(
            f"expected a layer, found a {kind.__name__} that cannot be: {error}"
        ) from error
