"""How the arguments of an operation are coded: flags, integers, shapes and floating-point numbers.

Each class describes one type of argument: how it is coded, which values it can hold, and the value
that stands for an unknown argument when a file is read.
"""

from __future__ import annotations

from struct import pack, unpack
from typing import Protocol, TypeVar

from torch.fx.node import Argument

from .forms import State
from .range_coder import Coder, FormatError

__all__ = [
    "ApproximateCode",
    "ArgumentCode",
    "FlagCode",
    "FloatCode",
    "ImageShapeCode",
    "IntegerCode",
    "OptionalIntegerCode",
    "ShapeCode",
]

_LARGEST = 1 << 31
_LARGEST_FLOAT = 2**53
_MAX_AXES, _MAX_IMAGE_AXES = 16, 3
_COMMON_FLOATS = (1.0, 0.01, 20.0, 1e-5, 1e-3, 0.1, 0.2, 0.0)
T = TypeVar("T")


class ArgumentCode(Protocol[T]):
    """How one argument of an operation is coded.

    Attributes:
        blank: A valid value, passed to :meth:`code` when reading.
    """

    blank: T

    def code(self, coder: Coder, state: State, value: T) -> T:
        """Code the argument; the value is ignored when reading."""
        ...

    def fits(self, value: Argument) -> bool:
        """Return whether a value can be coded."""
        ...


class FlagCode:
    """``True`` or ``False``."""

    blank = False

    def code(self, coder: Coder, state: State, value: bool) -> bool:
        """Code the argument."""
        return state.numbers.code(coder, int(value), "flag") > 0

    def fits(self, value: Argument) -> bool:
        """Return whether a value can be coded."""
        return isinstance(value, bool)


class ApproximateCode:
    """The approximation of ``F.gelu``, ``"none"`` or ``"tanh"``, as a flag."""

    blank = "none"

    def code(self, coder: Coder, state: State, value: str) -> str:
        """Code the argument."""
        if FlagCode().code(coder, state, value == "tanh"):
            return "tanh"
        return "none"

    def fits(self, value: Argument) -> bool:
        """Return whether a value can be coded."""
        return value in ("none", "tanh")


class IntegerCode:
    r"""An integer of at most :math:`2^{31}` in magnitude."""

    blank = 0

    def code(self, coder: Coder, state: State, value: int) -> int:
        """Code the argument."""
        integer = state.numbers.signed(coder, value, "integer")
        if abs(integer) > _LARGEST:
            raise FormatError(f"expected an integer of at most {_LARGEST:,}, found {integer:,}")
        return integer

    def fits(self, value: Argument) -> bool:
        """Return whether a value can be coded."""
        return isinstance(value, int) and abs(value) <= _LARGEST


class OptionalIntegerCode:
    """``None`` or an integer: a flag, then the integer if there is one."""

    blank: int | None = None

    def code(self, coder: Coder, state: State, value: int | None) -> int | None:
        """Code the argument."""
        if not FlagCode().code(coder, state, value is not None):
            return None
        if value is None:
            value = IntegerCode.blank
        return IntegerCode().code(coder, state, value)

    def fits(self, value: Argument) -> bool:
        """Return whether a value can be coded."""
        return value is None or IntegerCode().fits(value)


class ShapeCode:
    """A tuple of integers: its length, then steps from each to the next.

    Steps, because the sides of most shapes are equal.
    """

    blank: tuple[int, ...] = ()

    def code(self, coder: Coder, state: State, value: tuple[int, ...]) -> tuple[int, ...]:
        """Code the argument."""
        length = state.numbers.code(coder, len(value), "length")
        if length > _MAX_AXES:
            raise FormatError(f"expected a shape of at most {_MAX_AXES} axes, found {length}")
        shape: list[int] = []
        last = 0
        for axis in range(length):
            step = 0
            if value:
                step = value[axis] - last
            last += IntegerCode().code(coder, state, step)
            shape.append(last)
        return tuple(shape)

    def fits(self, value: Argument) -> bool:
        """Return whether a value can be coded."""
        if not isinstance(value, tuple | list) or len(value) > _MAX_AXES:
            return False
        return all(IntegerCode().fits(size) for size in value)


class ImageShapeCode:
    """The output size of adaptive pooling: a tuple whose entries are integers or ``None``."""

    blank: tuple[int | None, ...] = ()

    def code(
        self, coder: Coder, state: State, value: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Code the argument."""
        length = state.numbers.code(coder, len(value), "length")
        if length > _MAX_IMAGE_AXES:
            raise FormatError(
                f"expected the size of an image, at most {_MAX_IMAGE_AXES} axes, found {length}"
            )
        if not value:
            value = (None,) * length
        return tuple(OptionalIntegerCode().code(coder, state, size) for size in value)

    def fits(self, value: Argument) -> bool:
        """Return whether a value can be coded."""
        if not isinstance(value, tuple | list) or len(value) > _MAX_IMAGE_AXES:
            return False
        return all(OptionalIntegerCode().fits(size) for size in value)


class FloatCode:
    """A floating-point number: its place among a few common ones, or its 64 bits."""

    blank = 0.0

    def code(self, coder: Coder, state: State, value: float) -> float:
        """Code the argument."""
        if value == 0:
            value = 0.0  # also for -0.0
        bits = pack(">d", value)
        place = 0
        while place < len(_COMMON_FLOATS) and pack(">d", _COMMON_FLOATS[place]) != bits:
            place += 1
        place = state.numbers.code(coder, place, "float")
        if place < len(_COMMON_FLOATS):
            return _COMMON_FLOATS[place]
        integer = coder.bits(int.from_bytes(bits, "big"), 64)
        number: float = unpack(">d", integer.to_bytes(8, "big"))[0]
        return number

    def fits(self, value: Argument) -> bool:
        """Return whether a value can be coded."""
        if not isinstance(value, float | int):
            return False
        is_nan = value != value
        return is_nan or abs(value) <= _LARGEST_FLOAT
