"""The normal form of single operations: one function, however an operation was written.

PyTorch offers layers, methods and functions for the same operation. The tables at the end list
these spellings. Each has an entry, which takes the arguments of the spelling and returns the call
that the normal form of :func:`~pyro_bnn.compression.graph_of` has for it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import Argument

__all__ = ["Step", "normal_call", "normal_layer"]


@dataclass(frozen=True)
class Step:
    """A call of the normal form.

    Attributes:
        function: The function to call with a tensor, ``args`` and ``kwargs``; ``None`` if the
            operation returns its input.
        args: The positional arguments after the tensor.
        kwargs: The keyword arguments.
        in_place: Whether the original operation overwrote its input.
    """

    function: Callable[..., Tensor] | None
    args: tuple[Argument, ...] = ()
    kwargs: dict[str, Argument] = field(default_factory=dict)
    in_place: bool = False


def normal_layer(layer: nn.Module) -> Step | None:
    """Return the normal form of a layer without parameters, ``None`` if it has none."""
    if layer._forward_hooks or layer._forward_pre_hooks:
        return None
    form = _LAYERS.get(type(layer))
    if form is None:
        return None
    arguments = []
    for attribute in form.attributes:
        arguments.append(getattr(layer, attribute))
    step = form.build(*arguments)
    if step is None:
        return None
    return replace(step, in_place=bool(getattr(layer, "inplace", False)))


def normal_call(node: fx.Node) -> Step | None:
    """Return the normal form of the call of a function or method, ``None`` if it has none."""
    if isinstance(node.target, str):
        name = node.target
        build = _METHODS.get(name.removesuffix("_"))
    else:
        name = getattr(node.target, "__name__", "")
        build = _FUNCTIONS.get(node.target)
    if build is None:
        return None
    kwargs = dict(node.kwargs)
    in_place = bool(kwargs.pop("inplace", False)) or name.endswith("_")
    try:
        step = build(*node.args[1:], **kwargs)
    except TypeError:
        # arguments that the normal form does not have
        return None
    if step is None:
        return None
    return replace(step, in_place=in_place)


# --- entries: from the arguments of a spelling to the step ---

_Build: TypeAlias = Callable[..., Step | None]
_Size: TypeAlias = int | Sequence[int]


def _identity() -> Step:
    return Step(None)


def _elementwise(function: Callable[..., Tensor]) -> _Build:
    """Return the entry of a function without further arguments."""
    return lambda: Step(function)


def _gelu(approximate: str = "none") -> Step:
    return Step(F.gelu, kwargs={"approximate": approximate})


def _leaky_relu(negative_slope: float = 0.01) -> Step:
    return Step(F.leaky_relu, (negative_slope,))


def _elu(alpha: float = 1.0) -> Step:
    return Step(F.elu, kwargs={"alpha": alpha})


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Step:
    return Step(F.softplus, kwargs={"beta": beta, "threshold": threshold})


def _dropout(p: float = 0.5, training: bool = True) -> Step | None:
    if training and p:
        return None  # it drops in evaluation mode as well
    return Step(None)


def _per_axis(size: _Size, axes: int) -> tuple[int, ...]:
    """Return one size for each axis."""
    if isinstance(size, int):
        return (size,) * axes
    sizes = tuple(size)
    if len(sizes) == 1:
        return sizes * axes
    return sizes


def _max_pool(function: Callable[..., Tensor], axes: int) -> _Build:
    def build(
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        dilation: _Size = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Step | None:
        if return_indices:
            return None
        kwargs: dict[str, Argument] = {
            "kernel_size": _per_axis(kernel_size, axes),
            "stride": _per_axis(stride or kernel_size, axes),
            "padding": _per_axis(padding, axes),
            "dilation": _per_axis(dilation, axes),
            "ceil_mode": ceil_mode,
        }
        return Step(function, kwargs=kwargs)

    return build


def _avg_pool(function: Callable[..., Tensor], axes: int) -> _Build:
    def build(
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Step:
        kwargs: dict[str, Argument] = {
            "kernel_size": _per_axis(kernel_size, axes),
            "stride": _per_axis(stride or kernel_size, axes),
            "padding": _per_axis(padding, axes),
            "ceil_mode": ceil_mode,
            "count_include_pad": count_include_pad,
        }
        if axes == 2:
            kwargs["divisor_override"] = divisor_override
        return Step(function, kwargs=kwargs)

    return build


def _adaptive_avg_pool(function: Callable[..., Tensor], axes: int) -> _Build:
    def build(output_size: _Size) -> Step:
        if isinstance(output_size, int):
            return Step(function, ((output_size,) * axes,))
        return Step(function, (tuple(output_size),))

    return build


def _flatten(start_dim: int = 0, end_dim: int = -1) -> Step:
    return Step(torch.flatten, (start_dim, end_dim))


def _reshape(*shape: Argument) -> Step | None:
    """Return the reshape that keeps the batch, whose size is -1 or read off the input."""
    sizes = shape
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        sizes = tuple(shape[0])
    batch, rest = sizes[0], sizes[1:]
    if _is_batch_size(batch) and rest == (-1,):
        return _flatten(1)
    if batch != -1 and not _is_batch_size(batch):
        return None
    if not rest:
        return None
    for size in rest:
        if not isinstance(size, int) or size <= 0:
            return None
    return Step(torch.reshape, ((-1, *rest),))


def _is_batch_size(entry: Argument) -> bool:
    """Return whether a node is ``x.size(0)``, ``x.shape[0]`` or ``x.size()[0]``."""
    if not isinstance(entry, fx.Node):
        return False
    if entry.target == "size":
        return bool(entry.args[1:] == (0,))
    if entry.target is not operator.getitem or entry.args[1] != 0:
        return False
    shape = entry.args[0]
    if not isinstance(shape, fx.Node):
        return False
    if shape.target == "size":
        return len(shape.args) == 1
    return bool(shape.target is getattr and shape.args[1] == "shape")


def _mean(dim: _Size, keepdim: bool = False) -> Step:
    axes = (dim,) if isinstance(dim, int) else tuple(dim)
    return Step(torch.mean, (axes,), {"keepdim": keepdim})


def _add(other: Argument, alpha: float = 1) -> Step | None:
    if not isinstance(other, fx.Node) or alpha != 1:
        return None
    return Step(torch.add, (other,))


# --- tables: from a spelling to its entry ---

_relu = _elementwise(torch.relu)
_tanh = _elementwise(torch.tanh)
_sigmoid = _elementwise(torch.sigmoid)
_silu = _elementwise(F.silu)
_max_pool1d = _max_pool(F.max_pool1d, 1)
_max_pool2d = _max_pool(F.max_pool2d, 2)
_avg_pool1d = _avg_pool(F.avg_pool1d, 1)
_avg_pool2d = _avg_pool(F.avg_pool2d, 2)
_adaptive_pool1d = _adaptive_avg_pool(F.adaptive_avg_pool1d, 1)
_adaptive_pool2d = _adaptive_avg_pool(F.adaptive_avg_pool2d, 2)

_POOL = ("kernel_size", "stride", "padding")
_DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


@dataclass(frozen=True)
class _LayerForm:
    """The attributes of a layer that matter, and the entry that takes their values."""

    build: _Build
    attributes: tuple[str, ...] = ()


_LAYERS: dict[type[nn.Module], _LayerForm] = {
    nn.ReLU: _LayerForm(_relu),
    nn.Tanh: _LayerForm(_tanh),
    nn.Sigmoid: _LayerForm(_sigmoid),
    nn.SiLU: _LayerForm(_silu),
    nn.GELU: _LayerForm(_gelu, ("approximate",)),
    nn.LeakyReLU: _LayerForm(_leaky_relu, ("negative_slope",)),
    nn.ELU: _LayerForm(_elu, ("alpha",)),
    nn.Softplus: _LayerForm(_softplus, ("beta", "threshold")),
    nn.MaxPool1d: _LayerForm(_max_pool1d, (*_POOL, "dilation", "ceil_mode", "return_indices")),
    nn.MaxPool2d: _LayerForm(_max_pool2d, (*_POOL, "dilation", "ceil_mode", "return_indices")),
    nn.AvgPool1d: _LayerForm(_avg_pool1d, (*_POOL, "ceil_mode", "count_include_pad")),
    nn.AvgPool2d: _LayerForm(
        _avg_pool2d, (*_POOL, "ceil_mode", "count_include_pad", "divisor_override")
    ),
    nn.AdaptiveAvgPool1d: _LayerForm(_adaptive_pool1d, ("output_size",)),
    nn.AdaptiveAvgPool2d: _LayerForm(_adaptive_pool2d, ("output_size",)),
    nn.Flatten: _LayerForm(_flatten, ("start_dim", "end_dim")),
    nn.Identity: _LayerForm(_identity),
    **dict.fromkeys(_DROPOUTS, _LayerForm(_identity)),
}

# a method that ends with "_" overwrites its input and has the entry of the method without
_METHODS: dict[str, _Build] = {
    "relu": _relu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "flatten": _flatten,
    "view": _reshape,
    "reshape": _reshape,
    "mean": _mean,
    "add": _add,
    "contiguous": _identity,
}

_FUNCTIONS: dict[Callable[..., object], _Build] = {
    **dict.fromkeys((torch.relu, torch.relu_, F.relu, F.relu_), _relu),
    **dict.fromkeys((torch.tanh, torch.tanh_), _tanh),
    **dict.fromkeys((torch.sigmoid, torch.sigmoid_), _sigmoid),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), _leaky_relu),
    **dict.fromkeys((F.elu, F.elu_), _elu),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _add),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout), _dropout),
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), _max_pool1d),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool2d),
    F.silu: _silu,
    F.gelu: _gelu,
    F.softplus: _softplus,
    F.avg_pool1d: _avg_pool1d,
    F.avg_pool2d: _avg_pool2d,
    F.adaptive_avg_pool1d: _adaptive_pool1d,
    F.adaptive_avg_pool2d: _adaptive_pool2d,
    torch.flatten: _flatten,
    torch.reshape: _reshape,
    torch.mean: _mean,
}
