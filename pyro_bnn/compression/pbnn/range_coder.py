r"""Binary range coder: bits of known probability become bytes at the cost of their information.

The encoder keeps an interval of :math:`[0, 1)` and narrows it, bit by bit, by the probability of
the bit that it codes. Any number inside the final interval is the message; it takes
:math:`-\sum \log_2 p` bits, rounded up to bytes. The decoder makes the same divisions and looks
where the number lies. All arithmetic is on integers, so all machines agree.

All coders share two methods, which take a value and return it. An encoder codes the value
passed to it; a decoder ignores it and returns the value that it reads. One function therefore
describes both directions of a format.

Source: Martin (1979), "Range encoding"; the carry as in Pavlov's LZMA.
"""

from __future__ import annotations

from math import log2
from typing import Protocol

__all__ = [
    "PROBABILITY_BITS",
    "Coder",
    "CostRecorder",
    "FormatError",
    "RangeDecoder",
    "RangeEncoder",
    "information",
    "max_decisions",
]

PROBABILITY_BITS = 16
_TOP, _BOTTOM = 40, 32  # the range lies between 2^32 and 2^40
_WINDOW = _TOP // 8  # bytes that the decoder looks at
_CHUNK = 16  # bits of equal probability coded in one step; more could empty the range
_FREE_DECISIONS, _DECISIONS_PER_BYTE = 1 << 14, 1 << 9


class FormatError(ValueError):
    """Raised for a compressed file that is damaged, incomplete, or of another format or version."""


class Coder(Protocol):
    """The two methods of every coder: both take a value and return the value that was coded."""

    def bit(self, bit: int, probability: int) -> int:
        """Code one bit.

        Args:
            bit: 0 or 1; ignored by a decoder.
            probability: Probability of a one in units of :math:`2^{-16}`, from 1 to 65535.
        """
        ...

    def bits(self, value: int, count: int) -> int:
        r"""Code ``count`` bits of probability one half each, the highest first.

        Args:
            value: Integer from 0 to :math:`2^\text{count} - 1`; ignored by a decoder.
            count: Number of bits.
        """
        ...


class RangeEncoder:
    """Encode bits into bytes."""

    def __init__(self) -> None:
        self._low = 0
        self._range = 1 << _TOP
        self._bytes = bytearray()

    def bit(self, bit: int, probability: int) -> int:
        """Write one bit; see :class:`Coder`."""
        bound = (self._range >> PROBABILITY_BITS) * probability
        if bit:
            self._range = bound
        else:
            self._low += bound
            self._range -= bound
        if self._range < 1 << _BOTTOM:
            self._renormalize()
        return bit

    def bits(self, value: int, count: int) -> int:
        """Write bits of equal probability; see :class:`Coder`."""
        remaining = count
        while remaining > 0:
            step = min(_CHUNK, remaining)
            remaining -= step
            chunk = value >> remaining & (1 << step) - 1
            self._range >>= step
            self._low += self._range * chunk
            if self._range < 1 << _BOTTOM:
                self._renormalize()
        return value

    def _renormalize(self) -> None:
        """Emit the leading bytes of the interval, which only a carry can still change."""
        while self._range < 1 << _BOTTOM:
            self._carry()
            self._bytes.append(self._low >> (_TOP - 8))
            self._low = self._low << 8 & (1 << _TOP) - 1
            self._range <<= 8

    def _carry(self) -> None:
        """Add the bit above the window to the bytes that were already emitted."""
        if self._low >> _TOP:
            self._low &= (1 << _TOP) - 1
            last = len(self._bytes) - 1
            while self._bytes[last] == 255:
                self._bytes[last] = 0
                last -= 1
            self._bytes[last] += 1

    def finish(self, padded: bool = False) -> bytes:
        """Return the message.

        Args:
            padded: Whether other bytes follow the message in its file. If not, the message is the
                shortest one that decodes to the same bits when zeros are read after its end.
        """
        self._low = self._roundest_number()
        self._carry()
        message = bytes(self._bytes) + self._low.to_bytes(_WINDOW, "big")
        if padded:
            return message
        return message.rstrip(b"\0")

    def _roundest_number(self) -> int:
        """Return the number of the interval that ends in the most zero bytes."""
        end = self._low + self._range
        for count in range(_WINDOW):
            unit = 1 << (_TOP - 8 * count)
            number = -(-self._low // unit) * unit
            if number < end:
                return number
        return self._low


class RangeDecoder:
    """Decode bytes into bits.

    Args:
        data: The message. Zeros are read after its end.

    Raises:
        FormatError: More bits are requested than a message of this length may hold (see
            :func:`max_decisions`), so that a hostile file cannot keep the reader busy.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._read = _WINDOW
        self._value = int.from_bytes(data[:_WINDOW].ljust(_WINDOW, b"\0"), "big")
        self._range = 1 << _TOP
        self._decisions_left = max_decisions(len(data))

    def bit(self, bit: int, probability: int) -> int:
        """Read one bit; see :class:`Coder`."""
        self._decisions_left -= 1
        if self._decisions_left < 0:
            raise self._too_many_decisions()
        bound = (self._range >> PROBABILITY_BITS) * probability
        if self._value < bound:
            self._range = bound
            bit = 1
        else:
            self._value -= bound
            self._range -= bound
            bit = 0
        if self._range < 1 << _BOTTOM:
            self._renormalize()
        return bit

    def bits(self, value: int, count: int) -> int:
        """Read bits of equal probability; see :class:`Coder`."""
        value, remaining = 0, count
        while remaining > 0:
            step = min(_CHUNK, remaining)
            remaining -= step
            self._decisions_left -= 1
            if self._decisions_left < 0:
                raise self._too_many_decisions()
            self._range >>= step
            chunk = self._value // self._range
            if chunk >> step:
                raise FormatError(
                    f"expected {step} bits of a range coder, found a number outside of its range: "
                    "the file is damaged"
                )
            self._value -= chunk * self._range
            value = value << step | chunk
            if self._range < 1 << _BOTTOM:
                self._renormalize()
        return value

    def _too_many_decisions(self) -> FormatError:
        length = len(self._data)
        return FormatError(
            f"expected at most {max_decisions(length):,} binary decisions in {length:,} bytes, "
            "found more decisions: the file is damaged"
        )

    def _renormalize(self) -> None:
        while self._range < 1 << _BOTTOM:
            byte = 0
            if self._read < len(self._data):
                byte = self._data[self._read]
            self._value = self._value << 8 | byte
            self._read += 1
            self._range <<= 8

    def finish(self, padded: bool = False) -> int:
        """Return the number of bytes of the message, and check that it ends as encoders end it.

        Args:
            padded: Whether other bytes follow the message, as for :meth:`RangeEncoder.finish`.

        Raises:
            FormatError: Bytes follow the message, or it is longer than necessary.
        """
        if padded:
            return self._read
        if self._read < len(self._data) or self._last_byte_is_spare():
            raise FormatError("expected the end of the file, found more bytes")
        return len(self._data)

    def _last_byte_is_spare(self) -> bool:
        """Return whether the message decodes to the same bits without its last byte."""
        if not self._data:
            return False
        if self._data[-1] == 0:
            return True
        missing = self._read - len(self._data)
        if missing >= _WINDOW:  # the last byte is no longer part of the number
            return False
        # Without the last byte the number would be smaller by that byte, and still in the interval.
        return self._value >= self._data[-1] << 8 * missing


class CostRecorder:
    """Record bits and their cost without writing them, so that several encodings can be compared.

    Attributes:
        record: The calls in order: (bit, probability), or (value, -count) for bits of equal
            probability. Plain tuples, because a large network has millions of them.
    """

    def __init__(self) -> None:
        self.record: list[tuple[int, int]] = []

    def bit(self, bit: int, probability: int) -> int:
        """Record one bit; see :class:`Coder`."""
        self.record.append((bit, probability))
        return bit

    def bits(self, value: int, count: int) -> int:
        """Record bits of equal probability; see :class:`Coder`."""
        self.record.append((value, -count))
        return value

    def cost(self) -> float:
        r"""Return the information of the record in bits, :math:`-\sum \log_2 p`."""
        total = 0.0
        for value, probability in self.record:
            total += information(value, probability)
        return total

    def replay(self, coder: Coder) -> None:
        """Code everything that was recorded with another coder."""
        for value, probability in self.record:
            if probability > 0:
                coder.bit(value, probability)
            else:
                coder.bits(value, -probability)


def information(bit: int, probability: int) -> float:
    """Return the information of one bit, in bits.

    Args:
        bit: 0 or 1.
        probability: Probability of a one in units of :math:`2^{-16}`; or, if it is not positive,
            the negative number of bits of equal probability.
    """
    if probability <= 0:
        return float(-probability)
    unit = 1 << PROBABILITY_BITS
    if bit:
        return -log2(probability / unit)
    return -log2((unit - probability) / unit)


def max_decisions(length: int) -> int:
    """Return the number of decisions that a message of ``length`` bytes may hold."""
    return _FREE_DECISIONS + _DECISIONS_PER_BYTE * length
