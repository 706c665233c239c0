"""One normal form for feed-forward networks: the same few operations, however a network was written down.

``F.relu(x)``, ``x.relu_()`` and ``nn.ReLU()`` are one thing; so are ``x.view(len, -1)``, ``x.flatten(1)`` and
``nn.Flatten()``. What reads graphs (shrinking, the file format, export) needs to know only the normal form.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

__all__ = ["UnsupportedLayerError", "graph_of"]


class UnsupportedLayerError(ValueError):
    """A network, or a node of its graph, that is not of the form that is needed."""


def graph_of(net: nn.Module) -> fx.GraphModule:
    """Return a copy of a network, in evaluation mode, as a graph in normal form.

    Submodules, and so parameters, keep their names. The first axis of every tensor is the batch. The nodes:

    * one placeholder and one output, a tensor;
    * ``call_module`` of ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, ``nn.BatchNorm1d``, ``nn.BatchNorm2d``;
    * ``call_function`` of ``torch.relu(x)``, ``torch.tanh(x)``, ``torch.sigmoid(x)``, ``F.silu(x)``,
      ``F.gelu(x, approximate=)``, ``F.leaky_relu(x, slope)``, ``F.elu(x, alpha=)``, ``F.softplus(x, beta=,
      threshold=)``;
    * ``F.max_pool2d(x, kernel_size=, stride=, padding=, dilation=, ceil_mode=)``, ``F.avg_pool2d(x, kernel_size=,
      stride=, padding=, ceil_mode=, count_include_pad=, divisor_override=)``, the same in one dimension (without
      ``divisor_override``), all with tuples; ``F.adaptive_avg_pool1d(x, size)`` and ``F.adaptive_avg_pool2d(x,
      size)``;
    * ``torch.flatten(x, start, end)``, ``torch.reshape(x, (-1, ...))``, ``torch.mean(x, dims, keepdim=)``;
    * ``torch.add(a, b)``; ``torch.index_select(x, 1, buffer)``, the buffer read by a ``get_attr`` node.

    Dropout and identities vanish. Whatever else the network does stays in the graph as it was and still runs.

    Args:
        net: any module with one input whose control flow does not depend on data.

    Raises:
        UnsupportedLayerError: the network cannot be traced, has several inputs, or returns no tensor.
    """
    module = copy.deepcopy(net).eval()
    try:
        tracer = fx.Tracer()
        graph = tracer.trace(module)
    except Exception as error:
        raise UnsupportedLayerError(
            f"{type(net).__name__}: expected a network that torch.fx can trace, got {type(error).__name__}: {error}; "
            "write it without control flow that depends on data (x.shape[0] instead of len(x), nn.Sequential ...)"
        ) from error
    numbers: set[fx.Node] = set()  # nodes that are sizes, not tensors
    for node in list(graph.nodes):
        if _is_number(node, numbers):
            numbers.add(node)
        else:
            _rewrite(graph, node, tracer.root, numbers)
    # sizes that nobody asks for any more; nothing else, since an operation in place may have no reader of its own
    graph.eliminate_dead_code(lambda node: node not in numbers)
    _require_one_input_and_output(net, graph)
    return fx.GraphModule(tracer.root, graph, type(net).__name__).eval()


def _require_one_input_and_output(net: nn.Module, graph: fx.Graph) -> None:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for extra in [
        node for node in inputs[1:] if not node.users and node.args
    ]:  # an option left at its default
        graph.erase_node(extra)
        inputs.remove(extra)
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    name = type(net).__name__
    if len(inputs) != 1:
        raise UnsupportedLayerError(
            f"{name}: expected a network with one input, got {len(inputs)}; wrap it in one"
        )
    if not isinstance(result, fx.Node):
        raise UnsupportedLayerError(
            f"{name}: expected a network that returns one tensor, got {result!r}; wrap it"
        )


# --- rewriting --------------------------------------------------------------------------------------------------------

# (function, further positional arguments, keyword arguments); None: leave the node as it is; IDENTITY: it vanishes
_Step = tuple[Callable[..., Any], tuple, dict[str, Any]]
_IDENTITY: _Step = (lambda x: x, (), {})


def _rewrite(graph: fx.Graph, node: fx.Node, root: nn.Module, numbers: set[fx.Node]) -> None:
    """Replace a node by its normal form, where there is one."""
    x = node.args[0] if node.args else None
    if (
        not isinstance(x, fx.Node)
        or x in numbers
        or node.op not in ("call_module", "call_function", "call_method")
    ):
        return
    step, inplace = (
        _of_module(root.get_submodule(str(node.target)))
        if node.op == "call_module"
        else _of_call(node)
    )
    if step is None:
        return
    if inplace:  # whoever reads x from here on reads the result
        later = _after(node)
        x.replace_all_uses_with(node, delete_user_cb=lambda user: user in later)
    if step is _IDENTITY:
        node.replace_all_uses_with(x)
    else:
        function, args, kwargs = step
        with graph.inserting_before(node):
            new = graph.call_function(function, (x, *args), kwargs)
        node.replace_all_uses_with(new)
    graph.erase_node(node)


def _after(node: fx.Node) -> set[fx.Node]:
    nodes = list(node.graph.nodes)
    return set(nodes[nodes.index(node) + 1 :])


def _of_module(layer: nn.Module) -> tuple[_Step | None, bool]:
    """Return the step that a layer without parameters is, and whether it overwrites its input."""
    if layer._forward_hooks or layer._forward_pre_hooks or type(layer) not in _MODULES:
        return None, False
    names, function = _MODULES[type(layer)]
    return function(*(getattr(layer, name) for name in names)), bool(
        getattr(layer, "inplace", False)
    )


def _of_call(node: fx.Node) -> tuple[_Step | None, bool]:
    """Return the step that the call of a function or a method is, and whether it overwrites its input."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    known = _METHODS if node.op == "call_method" else _FUNCTIONS
    key: Any = name.removesuffix("_") if isinstance(node.target, str) else node.target
    if key not in known:
        return None, False
    kwargs = dict(node.kwargs)
    inplace = bool(kwargs.pop("inplace", False)) or name.endswith("_")
    try:
        return known[key](*node.args[1:], **kwargs), inplace
    except TypeError:  # arguments that the normal form does not have
        return None, False


def _is_number(node: fx.Node, numbers: set[fx.Node]) -> bool:
    if node.op == "call_method" and node.target in ("size", "dim", "numel"):
        return True
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    return node.op == "call_function" and any(
        source in numbers for source in node.all_input_nodes[:1]
    )


def _is_batch_size(entry: Any) -> bool:
    """Return whether a node is x.size(0), x.shape[0] or x.size()[0]; the first axis is the batch everywhere."""
    if not isinstance(entry, fx.Node):
        return False
    if entry.target == "size":
        return bool(entry.args[1:] == (0,))
    if (
        entry.target is operator.getitem
        and entry.args[1] == 0
        and isinstance(entry.args[0], fx.Node)
    ):
        of = entry.args[0]
        return bool(
            (of.target == "size" and len(of.args) == 1)
            or (of.target is getattr and of.args[1] == "shape")
        )
    return False


# --- the operations ---------------------------------------------------------------------------------------------------


def _plain(function: Callable[..., Any]) -> Callable[[], _Step]:
    return lambda: (function, (), {})


def _gelu(approximate: str = "none") -> _Step:
    return F.gelu, (), {"approximate": approximate}


def _leaky_relu(negative_slope: float = 0.01) -> _Step:
    return F.leaky_relu, (negative_slope,), {}


def _elu(alpha: float = 1.0) -> _Step:
    return F.elu, (), {"alpha": alpha}


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> _Step:
    return F.softplus, (), {"beta": beta, "threshold": threshold}


def _dropout(p: float = 0.5, training: bool = True) -> _Step | None:
    return None if training and p else _IDENTITY


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    return (
        (value,) * dims
        if isinstance(value, int)
        else tuple(value) * (dims if len(value) == 1 else 1)
    )


def _max_pool(function: Callable[..., Any], dims: int) -> Callable[..., _Step | None]:
    def step(
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> _Step | None:
        sizes = {
            "kernel_size": _tuple(kernel_size, dims),
            "stride": _tuple(stride or kernel_size, dims),
            "padding": _tuple(padding, dims),
            "dilation": _tuple(dilation, dims),
        }
        return None if return_indices else (function, (), {**sizes, "ceil_mode": ceil_mode})

    return step


def _avg_pool(function: Callable[..., Any], dims: int) -> Callable[..., _Step | None]:
    def step(
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> _Step | None:
        kwargs = {
            "kernel_size": _tuple(kernel_size, dims),
            "stride": _tuple(stride or kernel_size, dims),
            "padding": _tuple(padding, dims),
            "ceil_mode": ceil_mode,
            "count_include_pad": count_include_pad,
        }
        return function, (), kwargs | ({"divisor_override": divisor_override} if dims == 2 else {})

    return step


def _adaptive_avg_pool(function: Callable[..., Any], dims: int) -> Callable[..., _Step]:
    def step(output_size: Any) -> _Step:
        return (
            function,
            ((output_size,) * dims if isinstance(output_size, int) else tuple(output_size),),
            {},
        )

    return step


def _flatten(start_dim: int = 0, end_dim: int = -1) -> _Step:
    return torch.flatten, (start_dim, end_dim), {}


def _reshape(*shape: Any) -> _Step | None:
    first, *rest = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    if _is_batch_size(first) and rest == [-1]:
        return _flatten(1)
    if (
        (first == -1 or _is_batch_size(first))
        and rest
        and all(isinstance(size, int) and size > 0 for size in rest)
    ):
        return torch.reshape, ((-1, *rest),), {}
    return None


def _mean(dim: Any, keepdim: bool = False) -> _Step:
    return torch.mean, ((dim,) if isinstance(dim, int) else tuple(dim),), {"keepdim": keepdim}


def _add(other: Any, alpha: float = 1) -> _Step | None:
    return (torch.add, (other,), {}) if isinstance(other, fx.Node) and alpha == 1 else None


_relu, _tanh, _sigmoid, _silu = (
    _plain(torch.relu),
    _plain(torch.tanh),
    _plain(torch.sigmoid),
    _plain(F.silu),
)
_max_pool1d, _max_pool2d = _max_pool(F.max_pool1d, 1), _max_pool(F.max_pool2d, 2)
_avg_pool1d, _avg_pool2d = _avg_pool(F.avg_pool1d, 1), _avg_pool(F.avg_pool2d, 2)
_adaptive1d, _adaptive2d = (
    _adaptive_avg_pool(F.adaptive_avg_pool1d, 1),
    _adaptive_avg_pool(F.adaptive_avg_pool2d, 2),
)
_POOL = ("kernel_size", "stride", "padding")

# layer type: (the attributes that matter, what they make)
_MODULES: dict[type[nn.Module], tuple[tuple[str, ...], Callable[..., _Step | None]]] = {
    nn.ReLU: ((), _relu),
    nn.Tanh: ((), _tanh),
    nn.Sigmoid: ((), _sigmoid),
    nn.SiLU: ((), _silu),
    nn.GELU: (("approximate",), _gelu),
    nn.LeakyReLU: (("negative_slope",), _leaky_relu),
    nn.ELU: (("alpha",), _elu),
    nn.Softplus: (("beta", "threshold"), _softplus),
    nn.MaxPool1d: ((*_POOL, "dilation", "ceil_mode", "return_indices"), _max_pool1d),
    nn.MaxPool2d: ((*_POOL, "dilation", "ceil_mode", "return_indices"), _max_pool2d),
    nn.AvgPool1d: ((*_POOL, "ceil_mode", "count_include_pad"), _avg_pool1d),
    nn.AvgPool2d: ((*_POOL, "ceil_mode", "count_include_pad", "divisor_override"), _avg_pool2d),
    nn.AdaptiveAvgPool1d: (("output_size",), _adaptive1d),
    nn.AdaptiveAvgPool2d: (("output_size",), _adaptive2d),
    nn.Flatten: (("start_dim", "end_dim"), _flatten),
    nn.Identity: ((), lambda: _IDENTITY),
} | {
    dropout: ((), lambda: _IDENTITY)
    for dropout in (
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.AlphaDropout,
        nn.FeatureAlphaDropout,
    )
}

_METHODS: dict[str, Callable[..., _Step | None]] = {
    "relu": _relu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "flatten": _flatten,
    "view": _reshape,
    "reshape": _reshape,
    "mean": _mean,
    "add": _add,
    "contiguous": lambda: _IDENTITY,
}

_FUNCTIONS: dict[Callable[..., Any], Callable[..., _Step | None]] = {
    **dict.fromkeys((torch.relu, torch.relu_, F.relu, F.relu_), _relu),
    **dict.fromkeys((torch.tanh, torch.tanh_), _tanh),
    **dict.fromkeys((torch.sigmoid, torch.sigmoid_), _sigmoid),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), _leaky_relu),
    **dict.fromkeys((F.elu, F.elu_), _elu),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _add),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout), _dropout),
    F.silu: _silu,
    F.gelu: _gelu,
    F.softplus: _softplus,
    F.max_pool1d: _max_pool1d,
    F.max_pool2d: _max_pool2d,
    torch.max_pool1d: _max_pool1d,
    torch.max_pool2d: _max_pool2d,
    F.avg_pool1d: _avg_pool1d,
    F.avg_pool2d: _avg_pool2d,
    F.adaptive_avg_pool1d: _adaptive1d,
    F.adaptive_avg_pool2d: _adaptive2d,
    torch.flatten: _flatten,
    torch.reshape: _reshape,
    torch.mean: _mean,
}
