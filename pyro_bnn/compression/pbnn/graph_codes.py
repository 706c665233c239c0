"""The graph of a network as op codes: what follows what, and the sizes that the shapes of weights do not give.

Only the operations of the normal form exist in a file; a reader makes these and nothing else. Operations and fields are
in the order of the format: their places in the tables below are their codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import pack, unpack
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from pyro_bnn.compression.pruning.graph import UnsupportedLayerError

from .range_coder import Coder, FormatError
from .tensor_codes import State

__all__ = [
    "LAYERS",
    "OPERATIONS",
    "OUTPUT",
    "Operation",
    "code_fields",
    "code_number",
    "code_operation",
    "operation_of",
]

_LARGEST = 1 << 31


# --- fields -----------------------------------------------------------------------------------------------------------
# each codes one argument: (coder, state, value) -> value


def _flag(coder: Coder, state: State, value: Any) -> bool:
    return state.numbers.code(coder, int(bool(value)), "flag") > 0


def _integer(coder: Coder, state: State, value: Any) -> int:
    found = state.numbers.signed(coder, int(value or 0), "integer")
    if abs(found) > _LARGEST:
        raise FormatError(f"expected a size, found {found}")
    return found


def _integers(coder: Coder, state: State, value: Any) -> tuple[int, ...]:
    given = value or ()
    length = state.numbers.code(coder, len(given), "length")
    if length > 16:
        raise FormatError(f"expected a shape, found one of {length} axes")
    found: list[int] = []
    for k in range(length):  # steps: the sides of most things are equal
        last = found[-1] if found else 0
        found.append(last + _integer(coder, state, given[k] - last if given else 0))
    return tuple(found)


def _maybe(coder: Coder, state: State, value: Any) -> int | None:
    """None or an integer."""
    return _integer(coder, state, value) if _flag(coder, state, value is not None) else None


def _sizes(coder: Coder, state: State, value: Any) -> tuple[int | None, ...]:
    length = state.numbers.code(coder, len(value or ()), "length")
    if length > 3:
        raise FormatError(f"expected the size of an image, found one of {length} axes")
    return tuple(_maybe(coder, state, value[k] if value else None) for k in range(length))


def code_number(coder: Coder, state: State, value: Any) -> float:
    """A double, one of a few that are common or by its bits."""
    bits = pack(">d", value or 0.0)
    known = next(
        (k for k, common in enumerate(_COMMON) if pack(">d", common) == bits), len(_COMMON)
    )
    found = state.numbers.code(coder, known, "number")
    if found < len(_COMMON):
        return _COMMON[found]
    return unpack(">d", coder.bits(int.from_bytes(bits, "big"), 64).to_bytes(8, "big"))[0]


def _approximate(coder: Coder, state: State, value: Any) -> str:
    return "tanh" if _flag(coder, state, value == "tanh") else "none"


_COMMON = (1.0, 0.01, 20.0, 1e-5, 1e-3, 0.1, 0.2, 0.0)
_Field = Callable[[Coder, State, Any], Any]


# --- operations -------------------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """A call of a function: how many tensors it takes, then arguments by position, then by name.

    ``usual`` are values that need one decision; a first ``None`` is an argument that is coded before it, and ``SAME``
    is what that one is.
    """

    function: Callable[..., Any]
    tensors: int = 1
    positional: tuple[_Field, ...] = ()
    keywords: tuple[tuple[str, _Field], ...] = ()
    usual: tuple[Any, ...] = ()


SAME = object()
_POOL = tuple((name, _integers) for name in ("kernel_size", "stride", "padding"))
_MAX_POOL = (*_POOL, ("dilation", _integers), ("ceil_mode", _flag))
_AVG_POOL = (*_POOL, ("ceil_mode", _flag), ("count_include_pad", _flag))

OUTPUT = "output"
LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.Conv1d,
    nn.BatchNorm1d,
)
OPERATIONS: tuple[str | type[nn.Module] | Operation, ...] = (
    nn.Linear,
    Operation(torch.relu),
    OUTPUT,
    Operation(torch.index_select),  # its indices follow
    nn.Conv2d,
    Operation(F.max_pool2d, keywords=_MAX_POOL, usual=(None, SAME, (0, 0), (1, 1), False)),
    Operation(torch.flatten, positional=(_integer, _integer), usual=(1, -1)),
    Operation(torch.reshape, positional=(_integers,)),
    nn.BatchNorm2d,
    Operation(torch.add, tensors=2),
    Operation(
        F.avg_pool2d,
        keywords=(*_AVG_POOL, ("divisor_override", _maybe)),
        usual=(None, SAME, (0, 0), False, True, None),
    ),
    Operation(F.adaptive_avg_pool2d, positional=(_sizes,)),
    Operation(
        torch.mean, positional=(_integers,), keywords=(("keepdim", _flag),), usual=((2, 3), False)
    ),
    Operation(torch.tanh),
    Operation(torch.sigmoid),
    Operation(F.gelu, keywords=(("approximate", _approximate),)),
    Operation(F.silu),
    Operation(F.leaky_relu, positional=(code_number,)),
    Operation(F.elu, keywords=(("alpha", code_number),)),
    Operation(F.softplus, keywords=(("beta", code_number), ("threshold", code_number))),
    nn.BatchNorm1d,
    nn.Conv1d,
    Operation(F.max_pool1d, keywords=_MAX_POOL, usual=(None, SAME, (0,), (1,), False)),
    Operation(F.avg_pool1d, keywords=_AVG_POOL, usual=(None, SAME, (0,), False, True)),
    Operation(F.adaptive_avg_pool1d, positional=(_sizes,)),
)

# what is likely after an operation, by their places above; the others follow in the order of their places
_LINEAR, _RELU, _OUTPUT, _SELECT, _CONV, _POOL2, _FLATTEN, _RESHAPE, _NORM, _ADD = range(10)
LIKELY: dict[int, tuple[int, ...]] = {
    -1: (_FLATTEN, _CONV, _RESHAPE, _LINEAR, _SELECT),
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
    """Code which operation is next, by its rank among what is likely after the one before.

    Args:
        coder: reads or writes.
        state: of the file.
        place: what is written.
        previous: the operation before it, -1 at the start.
    """
    state.part = "graph"
    likely = LIKELY.get(previous, ())
    ranked = [*likely, *(k for k in range(len(OPERATIONS)) if k not in likely)]
    found = state.numbers.code(coder, ranked.index(place), ("operation", previous))
    if found >= len(OPERATIONS):
        raise FormatError(f"expected one of {len(OPERATIONS)} operations, found number {found}")
    return ranked[found]


def operation_of(node: fx.Node, module: nn.Module) -> int:
    """Return the place of a node's operation in the table.

    Raises:
        UnsupportedLayerError: there is none.
    """
    for place, operation in enumerate(OPERATIONS):
        if node.op == "output" and operation == OUTPUT:
            return place
        if node.op == "call_module" and type(module.get_submodule(str(node.target))) is operation:
            return place
        if (
            node.op == "call_function"
            and isinstance(operation, Operation)
            and node.target is operation.function
        ):
            return place
    what = type(module.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    raise refused(
        node, f"{getattr(what, '__name__', what)} is none of the operations of the format"
    )


def refused(node: fx.Node, why: str) -> UnsupportedLayerError:
    """Return the error for a node that cannot be written."""
    return UnsupportedLayerError(
        f"node {node.name!r}: {why}; a file holds dense layers, convolutions, batch norms, pools, activations, "
        "flatten, reshape, additions and index_select: write the network with these, or save the others apart"
    )


def code_fields(
    coder: Coder, state: State, operation: Operation, node: fx.Node | None
) -> tuple[list[Any], dict]:
    """Code the arguments of a call that are no tensors.

    Args:
        coder: reads or writes.
        state: of the file.
        operation: what is called.
        node: what is written.

    Raises:
        UnsupportedLayerError: the node has other arguments than the normal form has.
    """
    if node is not None:
        _require_arguments(operation, node)
    names = [name for name, _ in operation.keywords]
    codes = [*operation.positional, *(code for _, code in operation.keywords)]
    given = (
        [None] * len(codes)
        if node is None
        else [*node.args[operation.tensors :], *map(node.kwargs.get, names)]
    )
    given = [tuple(value) if isinstance(value, list) else value for value in given]
    found: list[Any] = []
    for k, code in enumerate(codes):
        if operation.usual and k == int(operation.usual[0] is None):
            rest = [found[0] if value is SAME else value for value in operation.usual[k:]]
            if not state.numbers.code(coder, int(given[k:] != rest), "unusual"):
                found += rest
                break
        found.append(code(coder, state, given[k]))
    args = len(operation.positional)
    return found[:args], dict(zip(names, found[args:], strict=True))


def _require_arguments(operation: Operation, node: fx.Node) -> None:
    names = [name for name, _ in operation.keywords]
    if len(node.args) != operation.tensors + len(operation.positional) or sorted(
        node.kwargs
    ) != sorted(names):
        raise refused(
            node, f"its arguments {node.args}, {dict(node.kwargs)} are not those of the normal form"
        )
    codes: Sequence[_Field] = [*operation.positional, *(code for _, code in operation.keywords)]
    values = [*node.args[operation.tensors :], *(node.kwargs[name] for name in names)]
    for code, value in zip(codes, values, strict=True):
        if not _fits(code, value):
            raise refused(node, f"an argument {value!r} is not of the normal form")


def _fits(code: _Field, value: Any) -> bool:
    if code is _flag:
        return isinstance(value, bool)
    if code is _approximate:
        return value in ("none", "tanh")
    if code is code_number:
        return (isinstance(value, float | int) and abs(value) <= 2**53) or value != value
    if code is _maybe:
        return value is None or _fits(_integer, value)
    if code is _integer:
        return isinstance(value, int) and abs(value) <= _LARGEST
    entry, most = (_maybe, 3) if code is _sizes else (_integer, 16)
    return (
        isinstance(value, tuple | list)
        and len(value) <= most
        and all(_fits(entry, size) for size in value)
    )
