"""The operations of a network as codes, with those arguments that no shape of a weight implies.

A file holds only the operations of the normal form of :mod:`pyro_bnn.compression.pruning.graph`;
a reader makes these and nothing else. The order of the tables below is part of the file format:
the place of an operation is its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import Argument

from pyro_bnn.compression.pruning.graph import UnsupportedLayerError

from .argument_codes import (
    ApproximateCode,
    ArgumentCode,
    FlagCode,
    FloatCode,
    ImageShapeCode,
    IntegerCode,
    OptionalIntegerCode,
    ShapeCode,
)
from .forms import State
from .range_coder import Coder, FormatError

__all__ = [
    "LAYERS",
    "LIKELY",
    "OPERATIONS",
    "OUTPUT",
    "Operation",
    "OperationOrLayer",
    "code_arguments",
    "code_operation",
    "operation_of",
    "unsupported",
]

SAME = object()  # in ``usual``: the value of the first argument


@dataclass(frozen=True)
class Operation:
    """A function of tensors and of arguments that are not tensors.

    Attributes:
        function: The function that is called.
        tensors: How many tensors it takes, its first arguments.
        positional: Codes of the other positional arguments.
        keywords: Codes of the keyword arguments.
        usual: Values that the last arguments usually have, all of which take a single decision.
            ``SAME`` is the value of the first argument.
    """

    function: Callable[..., Tensor]
    tensors: int = 1
    positional: tuple[ArgumentCode[Any], ...] = ()
    keywords: Mapping[str, ArgumentCode[Any]] = field(default_factory=dict)
    usual: tuple[Any, ...] = ()

    @property
    def codes(self) -> list[ArgumentCode[Any]]:
        """The codes of all arguments that are not tensors, in the order of the file."""
        return [*self.positional, *self.keywords.values()]


OperationOrLayer = str | type[nn.Module] | Operation  # the string is OUTPUT

_POOL: dict[str, ArgumentCode[Any]] = {
    "kernel_size": ShapeCode(),
    "stride": ShapeCode(),
    "padding": ShapeCode(),
}
_MAX_POOL = {**_POOL, "dilation": ShapeCode(), "ceil_mode": FlagCode()}
_AVG_POOL = {**_POOL, "ceil_mode": FlagCode(), "count_include_pad": FlagCode()}

OUTPUT = "output"
LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.Conv1d,
    nn.BatchNorm1d,
)
OPERATIONS: tuple[OperationOrLayer, ...] = (
    nn.Linear,
    Operation(torch.relu),
    OUTPUT,
    Operation(torch.index_select),  # its indices are coded as a list
    nn.Conv2d,
    Operation(F.max_pool2d, keywords=_MAX_POOL, usual=(SAME, (0, 0), (1, 1), False)),
    Operation(torch.flatten, positional=(IntegerCode(), IntegerCode()), usual=(1, -1)),
    Operation(torch.reshape, positional=(ShapeCode(),)),
    nn.BatchNorm2d,
    Operation(torch.add, tensors=2),
    Operation(
        F.avg_pool2d,
        keywords={**_AVG_POOL, "divisor_override": OptionalIntegerCode()},
        usual=(SAME, (0, 0), False, True, None),
    ),
    Operation(F.adaptive_avg_pool2d, positional=(ImageShapeCode(),)),
    Operation(
        torch.mean,
        positional=(ShapeCode(),),
        keywords={"keepdim": FlagCode()},
        usual=((2, 3), False),
    ),
    Operation(torch.tanh),
    Operation(torch.sigmoid),
    Operation(F.gelu, keywords={"approximate": ApproximateCode()}),
    Operation(F.silu),
    Operation(F.leaky_relu, positional=(FloatCode(),)),
    Operation(F.elu, keywords={"alpha": FloatCode()}),
    Operation(F.softplus, keywords={"beta": FloatCode(), "threshold": FloatCode()}),
    nn.BatchNorm1d,
    nn.Conv1d,
    Operation(F.max_pool1d, keywords=_MAX_POOL, usual=(SAME, (0,), (1,), False)),
    Operation(F.avg_pool1d, keywords=_AVG_POOL, usual=(SAME, (0,), False, True)),
    Operation(F.adaptive_avg_pool1d, positional=(ImageShapeCode(),)),
)

# The likely operations after each operation, by their places; the others follow in order.
_LINEAR, _RELU, _OUTPUT, _SELECT, _CONV, _POOL2, _FLATTEN, _RESHAPE, _NORM, _ADD = range(10)
_START = -1
LIKELY: dict[int, tuple[int, ...]] = {
    _START: (_FLATTEN, _CONV, _RESHAPE, _LINEAR, _SELECT),
    _LINEAR: (_RELU, _OUTPUT),
    _RELU: (_LINEAR, _POOL2, _CONV, _FLATTEN),
    _SELECT: (_LINEAR,),
    _CONV: (_RELU, _NORM),
    _POOL2: (_CONV, _FLATTEN),
    _FLATTEN: (_SELECT, _LINEAR),
    _RESHAPE: (_CONV, _SELECT),
    _NORM: (_RELU, _ADD),
    _ADD: (_RELU,),
}


def code_operation(coder: Coder, state: State, place: int, previous: int) -> int:
    """Code the next operation by its rank among those that are likely after the one before.

    Args:
        coder: Encoder or decoder.
        state: State of the file.
        place: Place in :data:`OPERATIONS` to write; ignored when reading.
        previous: Place of the operation before, -1 at the start.

    Raises:
        FormatError: There is no such operation.
    """
    state.section = "graph"
    ranked: list[int] = list(dict.fromkeys((*LIKELY.get(previous, ()), *range(len(OPERATIONS)))))
    rank = state.numbers.code(coder, ranked.index(place), ("operation", previous))
    if rank >= len(OPERATIONS):
        raise FormatError(f"expected one of {len(OPERATIONS)} operations, found number {rank}")
    return ranked[rank]


def operation_of(node: fx.Node, module: nn.Module) -> int:
    """Return the place of a node's operation in :data:`OPERATIONS`.

    Raises:
        UnsupportedLayerError: The format does not have the operation.
    """
    target: fx.node.Target | type[nn.Module] = node.target
    if node.op == "call_module":
        target = type(module.get_submodule(str(node.target)))
    for place, operation in enumerate(OPERATIONS):
        if node.op == "output" and operation == OUTPUT:
            return place
        if node.op == "call_module" and operation is target:
            return place
        if isinstance(operation, Operation) and operation.function is target:
            return place
    name = getattr(target, "__name__", target)
    raise unsupported(node, f"the format has no operation {name}")


def unsupported(node: fx.Node, why: str) -> UnsupportedLayerError:
    """Return the error for a node that cannot be written."""
    return UnsupportedLayerError(
        f"node {node.name!r}: {why}; a .pbnn file holds dense layers, convolutions, batch norms, "
        "pools, activations, flatten, reshape, additions and index_select: write the network with "
        "these, or save the other layers separately"
    )


def code_arguments(
    coder: Coder, state: State, operation: Operation, values: Sequence[Argument]
) -> list[Argument]:
    """Code the arguments of a call that are not tensors.

    Args:
        coder: Encoder or decoder.
        state: State of the file.
        operation: The operation that is called.
        values: The arguments to write, in the order of ``operation.codes``; blanks when reading.
    """
    codes = operation.codes
    first_usual = len(codes) - len(operation.usual)
    arguments: list[Argument] = []
    for k, code in enumerate(codes):
        if operation.usual and k == first_usual:
            usual = list(operation.usual)
            if usual[0] is SAME:
                usual[0] = arguments[0]
            if not state.numbers.code(coder, int(list(values[k:]) != usual), "unusual"):
                return arguments + usual
        arguments.append(code.code(coder, state, values[k]))
    return arguments
