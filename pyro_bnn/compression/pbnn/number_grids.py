r"""Number grids: floating-point numbers as integers, exactly.

A grid holds either the numbers whose bit patterns end in a given number of zeros, in ascending
order, or the multiples of a power of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp, isfinite, ldexp
from typing import NamedTuple

import torch
from torch import Tensor

from .range_coder import FormatError

__all__ = ["DTYPES", "NumberGrid", "bits_of", "numbers_of", "ordered"]


class BitLayout(NamedTuple):
    """How a floating-point type is stored.

    Attributes:
        integer: The integer type of the same width.
        significand: Number of bits of the significand that are stored.
    """

    integer: torch.dtype
    significand: int


# The order is that of the file format.
DTYPES = {
    torch.float32: BitLayout(torch.int32, 23),
    torch.float64: BitLayout(torch.int64, 52),
    torch.float16: BitLayout(torch.int16, 10),
    torch.bfloat16: BitLayout(torch.int16, 7),
}
_MAX_PLACES = 1100  # binary places; the least double has 1074
_EXACT_BITS = 53  # doubles hold every integer of at most 53 bits


def bits_of(tensor: Tensor) -> Tensor:
    """Return the bit patterns of a tensor as signed integers of the same width."""
    return tensor.detach().cpu().contiguous().view(DTYPES[tensor.dtype].integer)


def numbers_of(patterns: Sequence[int] | Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers that have the given bit patterns."""
    return torch.as_tensor(patterns, dtype=DTYPES[dtype].integer).view(dtype)


def ordered(pattern: int, width: int) -> int:
    """Return an integer that increases with the number of a bit pattern.

    It is the magnitude bits of the number, complemented if the sign bit is set: -0.0 becomes -1.

    Args:
        pattern: Bit pattern as a signed integer.
        width: Number of bits of the pattern.
    """
    magnitude = pattern & (1 << width - 1) - 1
    if pattern < 0:
        return ~magnitude
    return magnitude


def _pattern_of(key: int, width: int) -> int:
    """Invert :func:`ordered`."""
    if key >= 0:
        return key
    return ~key - (1 << width - 1)


class NumberGrid:
    r"""A grid of numbers of one type.

    Args:
        dtype: Type of the numbers.
        fixed: Whether the numbers are integers times :math:`2^{-\text{scale}}`. If not, the last
            ``scale`` bits of each are zero.
        scale: Number of binary places, or of zero bits.

    Raises:
        FormatError: The type has no such grid.
    """

    def __init__(self, dtype: torch.dtype, fixed: bool, scale: int) -> None:
        max_scale = DTYPES[dtype].significand
        if fixed:
            max_scale = _MAX_PLACES
        if not 0 <= scale <= max_scale:
            raise FormatError(
                f"expected a grid of numbers of type {dtype} with at most {max_scale} binary "
                f"places, found {scale}"
            )
        self.dtype, self.fixed, self.scale = dtype, fixed, scale
        self._width = 8 * dtype.itemsize

    @classmethod
    def of(cls, patterns: Sequence[int], dtype: torch.dtype, fixed: bool) -> NumberGrid | None:
        """Return the coarsest grid that holds all numbers, or ``None`` if there is none.

        If ``fixed`` is ``False``, there always is one.
        """
        if fixed:
            return cls._of_fixed_point(patterns, dtype)
        used_bits = 0
        for pattern in patterns:
            used_bits |= pattern & (1 << 8 * dtype.itemsize - 1) - 1
        zeros = DTYPES[dtype].significand
        if used_bits:
            zeros = min(zeros, (used_bits & -used_bits).bit_length() - 1)
        return cls(dtype, False, zeros)

    @classmethod
    def _of_fixed_point(cls, patterns: Sequence[int], dtype: torch.dtype) -> NumberGrid | None:
        numbers = numbers_of(patterns, dtype).double().tolist()
        scale = 0
        for number, pattern in zip(numbers, patterns, strict=True):
            if not isfinite(number) or (number == 0 and pattern != 0):  # -0.0 is no integer
                return None
            denominator = number.as_integer_ratio()[1]  # a power of two
            scale = max(scale, denominator.bit_length() - 1)
        for number in numbers:
            exponent = frexp(number)[1]  # |number| < 2^exponent
            if number and exponent + scale > _EXACT_BITS:
                return None
        return cls(dtype, True, scale)

    def integers(self, patterns: Sequence[int]) -> list[int]:
        """Return the places on the grid of numbers with the given bit patterns."""
        result = []
        if self.fixed:
            for number in numbers_of(patterns, self.dtype).double().tolist():
                result.append(int(ldexp(number, self.scale)))
            return result
        for pattern in patterns:
            key = ordered(pattern, self._width)
            if key >= 0:
                result.append(key >> self.scale)
            else:
                result.append(~(~key >> self.scale))
        return result

    def patterns(self, integers: Sequence[int]) -> list[int]:
        """Return the bit patterns of the numbers at the given places on the grid.

        Raises:
            FormatError: A number is too large for the type.
        """
        bits = self._width - 1 - self.scale
        if self.fixed:
            bits = _EXACT_BITS
        limit = 1 << bits
        for integer in integers:
            if not -limit <= integer < limit:
                raise FormatError(
                    f"expected numbers of type {self.dtype}, found larger ones: {integer:,} on "
                    f"a grid from {-limit:,} to {limit - 1:,}"
                )
        if self.fixed:
            exact = [ldexp(integer, -self.scale) for integer in integers]
            numbers = torch.tensor(exact, dtype=torch.float64).to(self.dtype)
            patterns: list[int] = bits_of(numbers).tolist()
            return patterns
        return [self._pattern_at(integer) for integer in integers]

    def _pattern_at(self, integer: int) -> int:
        if integer >= 0:
            return _pattern_of(integer << self.scale, self._width)
        return _pattern_of(~(~integer << self.scale), self._width)
