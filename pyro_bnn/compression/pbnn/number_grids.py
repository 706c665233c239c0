r"""Floating-point numbers as integers, exactly: the bits without the zeros that all of them end in, or multiples of a
power of two."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, ldexp

import torch
from torch import Tensor

from .range_coder import FormatError

__all__ = ["DTYPES", "NumberGrid", "bits_of", "numbers_of", "ordered"]

# the integer of as many bits, and the bits of the significand that are stored; in the order of the file format
DTYPES = {
    torch.float32: (torch.int32, 23),
    torch.float64: (torch.int64, 52),
    torch.float16: (torch.int16, 10),
    torch.bfloat16: (torch.int16, 7),
}
MOST_PLACES = 1100  # behind the binary point: the least double has 1074


def bits_of(tensor: Tensor) -> Tensor:
    """Return the bit patterns of numbers, as integers with sign."""
    return tensor.detach().cpu().contiguous().view(DTYPES[tensor.dtype][0])


def numbers_of(patterns: Sequence[int] | Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers that have these bit patterns."""
    return torch.as_tensor(patterns, dtype=DTYPES[dtype][0]).view(dtype)


def ordered(pattern: int, width: int) -> int:
    """Return an integer that grows with the number: the bits of its magnitude, complemented if its sign is set."""
    magnitude = pattern & (1 << width - 1) - 1
    return ~magnitude if pattern < 0 else magnitude


def _pattern(key: int, width: int) -> int:
    """Invert :func:`ordered`."""
    return key if key >= 0 else ~key - (1 << width - 1)


class NumberGrid:
    """A grid of numbers of one type.

    Args:
        dtype: of the numbers.
        fixed: whether they are integers times :math:`2^{-scale}`; otherwise the last ``scale`` bits of each are zero.
        scale: how many.
    """

    def __init__(self, dtype: torch.dtype, fixed: bool, scale: int) -> None:
        if not 0 <= scale <= (MOST_PLACES if fixed else DTYPES[dtype][1]):
            raise FormatError(f"expected numbers of type {dtype}, found {scale} binary places")
        self.fixed, self.scale, self.dtype = fixed, scale, dtype
        self._width = 8 * dtype.itemsize

    @classmethod
    def of(cls, patterns: Sequence[int], dtype: torch.dtype, fixed: bool) -> NumberGrid | None:
        """Return the coarsest grid on which all numbers lie, if there is one."""
        if not fixed:
            union = 0
            for pattern in patterns:
                union |= pattern & (1 << 8 * dtype.itemsize - 1) - 1
            zeros = (union & -union).bit_length() - 1 if union else DTYPES[dtype][1]
            return cls(dtype, False, min(zeros, DTYPES[dtype][1]))
        numbers = numbers_of(patterns, dtype).double().tolist()
        if not all(
            isfinite(x) and (x != 0 or p == 0) for x, p in zip(numbers, patterns, strict=True)
        ):
            return None
        scale = max((x.as_integer_ratio()[1].bit_length() - 1 for x in numbers), default=0)
        if any(abs(int(x)) >> 53 or abs(ldexp(x, scale)) >= 2.0**53 for x in numbers):
            return None
        return cls(dtype, True, scale)

    def integers(self, patterns: Sequence[int]) -> list[int]:
        """Return where numbers of the grid lie on it."""
        if self.fixed:
            return [
                int(ldexp(x, self.scale))
                for x in numbers_of(patterns, self.dtype).double().tolist()
            ]
        keys = (ordered(pattern, self._width) for pattern in patterns)
        return [key >> self.scale if key >= 0 else ~(~key >> self.scale) for key in keys]

    def patterns(self, integers: Sequence[int]) -> list[int]:
        """Return the bit patterns of numbers of the grid.

        Raises:
            FormatError: a number is too large for the type.
        """
        limit = 1 << (53 if self.fixed else self._width - 1 - self.scale)
        if any(not -limit <= integer < limit for integer in integers):
            raise FormatError(f"expected numbers of type {self.dtype}, found larger ones")
        if self.fixed:
            exact = torch.tensor(
                [ldexp(integer, -self.scale) for integer in integers], dtype=torch.float64
            )
            return bits_of(exact.to(self.dtype)).tolist()
        return [
            _pattern(
                integer << self.scale if integer >= 0 else ~(~integer << self.scale), self._width
            )
            for integer in integers
        ]
