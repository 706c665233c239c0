r"""Adaptive probabilities: several contexts predict each bit, and logistic regression mixes them.

A context estimates the frequency of ones among the bits it has seen. With
:math:`s(p) = \log(p / (1 - p))` and the estimates :math:`p_0, p_1, \ldots`, of which :math:`p_0`
belongs to the most general context, the prediction is

.. math:: p = s^{-1}\Big(v_0\, s(p_0) + \sum_{i > 0} v_i \big(s(p_i) - s(p_0)\big)\Big).

After each bit b, every estimate moves towards b, and the weights take a step along the gradient
of the code length, :math:`v_i \mathrel{+}= \eta\,(b - p)\,x_i`, with :math:`x_i` the factor of
:math:`v_i` above. A context that is met for the first time starts at :math:`p_0`, which counts as
``trust`` observations. All numbers are integers, so encoder and decoder agree on every machine.

Source: Mahoney (2005), "Adaptive weighing of context models for lossless data compression".
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from operator import mul

from .range_coder import Coder, FormatError

__all__ = ["Mixer", "Numbers", "squash_table", "stretch_table"]

_FREQUENCY_BITS = 22
_ONE_NAT = 256  # units of a stretched probability per nat
_LIMIT = 8 * _ONE_NAT  # stretched probabilities lie between -_LIMIT and _LIMIT - 1
_HALF = 1 << (_FREQUENCY_BITS - 1)
_MIN_FREQUENCY = 1 << (_FREQUENCY_BITS - 12)  # estimates move towards this or its complement
_MAX_FREQUENCY = (1 << _FREQUENCY_BITS) - _MIN_FREQUENCY
_TABLE_SHIFT = _FREQUENCY_BITS - 12  # the stretch table has 2^12 entries
_WEIGHT_ONE = 1 << 16
_MAX_DIGITS = 72


@cache
def squash_table() -> list[int]:
    r"""Return :math:`2^{16} / (1 + e^{-x / 256})` for x from -2048 to 2047.

    Entries are rounded down and clipped to 16 ... 65520. They are computed with integers alone.
    """
    one = 1 << 96
    step, term, k = one, one, 0
    while term:  # e^(1/256) = sum 256^-k / k!
        k += 1
        term //= _ONE_NAT * k
        step += term
    powers = [one]  # e^(x/256) for x = 0, 1, ...
    for _ in range(_LIMIT):
        powers.append(powers[-1] * step >> 96)
    table = []
    for x in range(-_LIMIT, 0):
        table.append((one << 16) // (one + powers[-x]))
    for x in range(_LIMIT):
        table.append((powers[x] << 16) // (one + powers[x]))
    return [min(max(p, 16), 65520) for p in table]


@cache
def stretch_table() -> list[int]:
    """Return the inverse of :func:`squash_table` at the probabilities (k + 1/2) / 4096.

    Entry k is the least x whose squashed value is at least 16 k + 8, or 2047 if there is none.
    """
    squash = squash_table()
    table = []
    position = 0
    for k in range(4096):
        while position < len(squash) - 1 and squash[position] < 16 * k + 8:
            position += 1
        table.append(position - _LIMIT)
    return table


@dataclass(slots=True)
class _Estimate:
    """Frequency of ones in a context.

    Attributes:
        frequency: In units of :math:`2^{-22}`.
        count: Number of observations, including those that its initial value counts for.
    """

    frequency: int
    count: int


class Mixer:
    r"""Code bits, each under several contexts.

    Args:
        weight: Initial weight of every context but the first, in units of :math:`2^{-16}`. The
            first context has the weight :math:`2^{16}`.
        rate: Learning rate :math:`\eta` of the weights, in units of :math:`2^{-12}`.
        trust: Number of observations that the initial estimate of a new context counts for.
        limit: Largest number of observations that an estimate remembers.
    """

    def __init__(
        self, weight: int = 10_000, rate: int = 20, trust: int = 8, limit: int = 1000
    ) -> None:
        self._weight, self._rate, self._trust, self._limit = weight, rate, trust, limit
        self._estimates: dict[Hashable, _Estimate] = {}
        self._weights: dict[Hashable, list[int]] = {}

    def copy(self) -> Mixer:
        """Return an independent copy, with everything that was learned."""
        new = Mixer(self._weight, self._rate, self._trust, self._limit)
        for context, estimate in self._estimates.items():
            new._estimates[context] = _Estimate(estimate.frequency, estimate.count)
        for key, weights in self._weights.items():
            new._weights[key] = list(weights)
        return new

    def code(
        self, coder: Coder, bit: int, contexts: Sequence[Hashable], weight_set: Hashable = 0
    ) -> int:
        """Code one bit.

        Args:
            coder: Encoder or decoder.
            bit: The bit to write; ignored when reading.
            contexts: The most general context first; the same number of them in every call with
                the same ``weight_set``.
            weight_set: Name of the weights that mix the contexts.
        """
        estimates = self._estimates_of(contexts)
        stretch = stretch_table()
        base = stretch[estimates[0].frequency >> _TABLE_SHIFT]
        inputs = [base]
        for estimate in estimates[1:]:
            inputs.append(stretch[estimate.frequency >> _TABLE_SHIFT] - base)
        weights = self._weights.get(weight_set)
        if weights is None:
            weights = [_WEIGHT_ONE] + [self._weight] * (len(contexts) - 1)
        total = sum(map(mul, weights, inputs)) + _WEIGHT_ONE // 2 >> 16
        probability = squash_table()[min(max(total, -_LIMIT), _LIMIT - 1) + _LIMIT]
        bit = coder.bit(bit, probability)
        # error (2^-16) x input (2^-8 nat) x rate (2^-12), rounded to units of 2^-16
        step = ((bit << 16) - probability) * self._rate
        self._weights[weight_set] = [
            weight + (step * value + (1 << 19) >> 20)
            for weight, value in zip(weights, inputs, strict=True)
        ]
        self._update(estimates, bit)
        return bit

    def _estimates_of(self, contexts: Sequence[Hashable]) -> list[_Estimate]:
        """Return the estimates of the contexts; new ones start at the frequency of the first."""
        estimates = self._estimates
        try:
            return [estimates[context] for context in contexts]
        except KeyError:
            first = estimates.setdefault(contexts[0], _Estimate(_HALF, 2))
            for context in contexts:
                if context not in estimates:
                    estimates[context] = _Estimate(first.frequency, 2 + self._trust)
            return [estimates[context] for context in contexts]

    def _update(self, estimates: Sequence[_Estimate], bit: int) -> None:
        """Move the estimates towards the bit, by 1 / count of the distance."""
        target = _MIN_FREQUENCY
        if bit:
            target = _MAX_FREQUENCY
        for estimate in estimates:
            estimate.frequency += (target - estimate.frequency) // estimate.count
            if estimate.count < self._limit:
                estimate.count += 1


class Numbers:
    """Code integers of unknown size with the Elias gamma code and learned probabilities.

    If n + 1 has L + 1 binary digits, the code is L ones and a zero, then the L digits after the
    leading one, from the highest. The ones and the zero have a context for each position. The
    first two digits have the digits before them as context; the other digits are coded at even
    odds.
    """

    def __init__(self) -> None:
        self._mixer = Mixer(weight=40_000, rate=0, trust=0)

    def copy(self) -> Numbers:
        """Return an independent copy, with everything that was learned."""
        new = Numbers()
        new._mixer = self._mixer.copy()
        return new

    def code(self, coder: Coder, value: int, context: Hashable = 0) -> int:
        r"""Code an integer from 0 to :math:`2^{72} - 2`.

        Args:
            coder: Encoder or decoder.
            value: The integer to write; ignored when reading.
            context: The kind of number. Each kind has statistics of its own.

        Raises:
            FormatError: The integer is larger.
        """
        digits = (value + 1).bit_length() - 1
        length = 0
        while self._mixer.code(coder, int(length < digits), ((context, length),)):
            length += 1
            if length == _MAX_DIGITS:
                raise FormatError(
                    f"expected numbers below 2^{_MAX_DIGITS} - 1, found one of more than "
                    f"{_MAX_DIGITS} bits"
                )
        result = 1
        for place in range(length - 1, max(-1, length - 3), -1):
            bit = value + 1 >> place & 1
            bit = self._mixer.code(coder, bit, ((context, length, result),))
            result = result << 1 | bit
        rest = length - 2
        if rest > 0:
            low_digits = coder.bits(value + 1 & (1 << rest) - 1, rest)
            result = result << rest | low_digits
        return result - 1

    def signed(self, coder: Coder, value: int, context: Hashable = 0) -> int:
        """Code an integer that may be negative; see :meth:`code`.

        The integers 0, -1, 1, -2, 2, ... are coded as 0, 1, 2, 3, 4, ...
        """
        folded = 2 * value
        if value < 0:
            folded = -2 * value - 1
        folded = self.code(coder, folded, context)
        if folded % 2:
            return -(folded + 1 >> 1)
        return folded >> 1

    def sequence(
        self, coder: Coder, values: Iterable[int] | None, count: int, context: Hashable
    ) -> Iterator[int]:
        """Code ``count`` integers one after another; see :meth:`code`.

        Args:
            coder: Encoder or decoder.
            values: The integers to write; ``None`` when reading.
            count: How many integers.
            context: The kind of number.
        """
        if values is None:
            values = repeat(0, count)
        for value in values:
            yield self.code(coder, value, context)
