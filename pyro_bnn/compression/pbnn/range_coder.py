r"""A binary range coder: decisions of known probability become as many bits as they carry information.

The encoder keeps an interval of :math:`[0, 1)` and shrinks it, decision by decision, by the probability of what it
sees; a number inside the last interval is the message: :math:`-\sum \log_2 p` bits, rounded up to bytes. The decoder
makes the same divisions and looks where the number lies. Everything is an integer, so all machines agree.

All coders have the same two methods, which take a value and return it. A decoder ignores what it is given and
returns what it reads, so that one function describes both directions of a format.

Source: Martin (1979), "Range encoding"; the carry as in Pavlov's LZMA.
"""

from __future__ import annotations

from math import log2
from typing import Protocol

__all__ = [
    "PROBABILITY_BITS",
    "Coder",
    "FormatError",
    "CostRecorder",
    "RangeDecoder",
    "RangeEncoder",
    "information",
]

PROBABILITY_BITS = 16
_TOP, _BOTTOM = 40, 32  # bits of the widest and, but for one, of the narrowest range
_FREE_DECISIONS, _DECISIONS_PER_BYTE = 1 << 14, 1 << 9

_TOO_MANY = (
    "expected a network, found a file that asks for far more decisions than it has bytes for"
)


class FormatError(ValueError):
    """A compressed file that is damaged, incomplete, of another version, or no such file at all."""


class Coder(Protocol):
    """What all coders do: see a value, return the value."""

    def bit(self, bit: int, probability: int) -> int:
        """Code a decision.

        Args:
            bit: 0 or 1.
            probability: of 1, in units of :math:`2^{-16}`, from 1 to 65535.
        """
        ...

    def bits(self, value: int, count: int) -> int:
        """Code ``count`` bits of equal probability, an integer from 0 to :math:`2^{count} - 1`."""
        ...


class RangeEncoder:
    """Decisions to bytes."""

    def __init__(self) -> None:
        self._low, self._range = 0, 1 << _TOP
        self._bytes = bytearray()

    def bit(self, bit: int, probability: int) -> int:
        """Write a decision; see :class:`Coder`."""
        bound = (self._range >> PROBABILITY_BITS) * probability
        if bit:
            self._range = bound
        else:
            self._low += bound
            self._range -= bound
        if self._range < 1 << _BOTTOM:
            self._shift()
        return bit

    def bits(self, value: int, count: int) -> int:
        """Write bits of equal probability; see :class:`Coder`."""
        for start in range(
            0, count, 16
        ):  # no more than 16 at once: the range must not become empty
            step = min(16, count - start)
            self._range >>= step
            self._low += self._range * (value >> (count - start - step) & (1 << step) - 1)
            if self._range < 1 << _BOTTOM:
                self._shift()
        return value

    def _shift(self) -> None:
        """Hand out the bytes that no later decision can change but by a carry."""
        while self._range < 1 << _BOTTOM:
            self._carry()
            self._bytes.append(self._low >> (_TOP - 8))
            self._low = self._low << 8 & (1 << _TOP) - 1
            self._range <<= 8

    def _carry(self) -> None:
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
            padded: whether other bytes follow. If not, the message is the shortest that gives the decisions when
                zeros are read behind its end.
        """
        low, width = self._low, self._range
        for count in range(_TOP // 8 + 1):
            unit = 1 << (_TOP - 8 * count)
            self._low = -(-low // unit) * unit  # the roundest number of the interval
            if self._low < low + width:
                break
        self._carry()
        message = bytes(self._bytes) + self._low.to_bytes(_TOP // 8, "big")
        return message if padded else message.rstrip(b"\0")


class RangeDecoder:
    """Bytes to decisions.

    Args:
        data: the message; zeros are read behind its end.

    Raises:
        FormatError: more decisions are asked for than a message of this length should hold (16,384 and 512 a byte),
            so that a hostile file cannot keep the reader busy.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._read = data, _TOP // 8
        self._value = int.from_bytes(data[: self._read].ljust(self._read, b"\0"), "big")
        self._range = 1 << _TOP
        self._left = most_decisions(len(data))

    def bit(self, bit: int, probability: int) -> int:
        """Read a decision; see :class:`Coder`."""
        self._left -= 1
        if self._left < 0:
            raise FormatError(_TOO_MANY)
        bound = (self._range >> PROBABILITY_BITS) * probability
        if self._value < bound:
            self._range = bound
            bit = 1
        else:
            self._value -= bound
            self._range -= bound
            bit = 0
        if self._range < 1 << _BOTTOM:
            self._shift()
        return bit

    def bits(self, value: int, count: int) -> int:
        """Read bits of equal probability; see :class:`Coder`."""
        value = 0
        for start in range(0, count, 16):
            step = min(16, count - start)
            self._left -= 1
            self._range >>= step
            part = self._value // self._range
            if self._left < 0 or part >> step:
                raise FormatError(
                    _TOO_MANY if self._left < 0 else "expected bytes of this coder, found others"
                )
            self._value -= part * self._range
            value = value << step | part
            if self._range < 1 << _BOTTOM:
                self._shift()
        return value

    def _shift(self) -> None:
        while self._range < 1 << _BOTTOM:
            byte = self._data[self._read] if self._read < len(self._data) else 0
            self._value = self._value << 8 | byte
            self._read += 1
            self._range <<= 8

    def finish(self, padded: bool = False) -> int:
        """Return how many bytes were read, and require that the message is as the encoder ends it.

        Args:
            padded: as the encoder was told.

        Raises:
            FormatError: the message goes on, or is longer than it need be.
        """
        if padded:
            return self._read
        spare = len(self._data) - self._read
        # the last byte could be left out, and the decisions would be the same: the encoder would have
        last = self._data[-1] << max(0, -spare) * 8 if self._data and spare > -_TOP // 8 else 0
        if spare > 0 or (self._data and (self._data[-1] == 0 or self._value >= last > 0)):
            raise FormatError("expected the end of the file, found more bytes")
        return len(self._data)


class CostRecorder:
    """What decisions would cost, without writing them: encoding is tried in several ways, and the best is kept."""

    def __init__(self) -> None:
        self.record: list[
            tuple[int, int]
        ] = []  # (bit, probability), or (value, -count) for bits of equal probability

    def bit(self, bit: int, probability: int) -> int:
        """Note a decision; see :class:`Coder`."""
        self.record.append((bit, probability))
        return bit

    def bits(self, value: int, count: int) -> int:
        """Note bits of equal probability; see :class:`Coder`."""
        self.record.append((value, -count))
        return value

    def cost(self) -> float:
        r"""Return the information in bits, :math:`-\sum \log_2 p`."""
        return sum(information(bit, p) for bit, p in self.record)

    def replay(self, coder: Coder) -> None:
        """Write what was noted."""
        for value, probability in self.record:
            if probability > 0:
                coder.bit(value, probability)
            else:
                coder.bits(value, -probability)


def information(bit: int, probability: int) -> float:
    """Return the bits of a decision, or of -``probability`` bits of equal probability."""
    unit = 1 << PROBABILITY_BITS
    return (
        -log2((probability if bit else unit - probability) / unit)
        if probability > 0
        else float(-probability)
    )


def most_decisions(length: int) -> int:
    """Return how many decisions a message of so many bytes may hold."""
    return _FREE_DECISIONS + _DECISIONS_PER_BYTE * length
