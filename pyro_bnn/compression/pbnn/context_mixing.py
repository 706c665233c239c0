r"""Probabilities of decisions, learned while they are coded: several contexts predict, and a small logistic regression
mixes what they say.

A context keeps the frequency of ones it has seen. With :math:`s(p) = \log(p / (1 - p))`, the contexts' frequencies
:math:`p_0, p_1, \ldots` (:math:`p_0` of the plainest) make the prediction

.. math:: p = s^{-1}\Big(v_0 s(p_0) + \sum_{i > 0} v_i (s(p_i) - s(p_0))\Big),

and after each decision b the weights take a step along the gradient of the code length,
:math:`v_i \mathrel{+}= \eta (b - p) x_i`. A context met for the first time starts at :math:`p_0`, with the weight of
``trust`` observations. All numbers are integers: encoder and decoder agree on every machine.

Source: Mahoney (2005), "Adaptive weighing of context models for lossless data compression".
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache
from operator import mul

from .range_coder import Coder, FormatError

__all__ = ["Mixer", "Numbers"]

_P = 22  # bits of a frequency
_NATS = 256  # of a stretched probability: one nat
_HALF, _LEAST = 1 << _P - 1, 1 << _P - 12
_ONE = 1 << 16  # of a weight


@cache
def squash_table() -> list[int]:
    r"""Return :math:`2^{16} / (1 + e^{-x / 256})` for x from -2048 to 2047, in integers alone.

    Rounded down, and kept between 16 and 65520.
    """
    one = 1 << 96
    step, term, k = one, one, 0
    while term:  # e^(1/256) = sum 256^-k / k!
        k += 1
        term //= _NATS * k
        step += term
    powers = [one]  # e^(x / 256)
    for _ in range(8 * _NATS):
        powers.append(powers[-1] * step >> 96)
    negative = [(one << 16) // (one + powers[-x]) for x in range(-8 * _NATS, 0)]
    positive = [(powers[x] << 16) // (one + powers[x]) for x in range(8 * _NATS)]
    return [min(max(p, 16), (1 << 16) - 16) for p in negative + positive]


@cache
def stretch_table() -> list[int]:
    """Return for probabilities (p + 1/2) / 4096 the least x whose squashed value is not below it."""
    table, squash, x = [], squash_table(), 0
    for p in range(4096):
        while x < len(squash) - 1 and squash[x] < 16 * p + 8:
            x += 1
        table.append(x - 8 * _NATS)
    return table


class Mixer:
    """Codes decisions, each under several contexts.

    Args:
        weight: of every context but the first, at the start, in units of 1/65536; the first has 65536.
        rate: of learning, in units of :math:`2^{-12}`.
        trust: how many observations the first guess of a context counts for.
        limit: on the number of observations that a context remembers.
    """

    def __init__(
        self, weight: int = 10_000, rate: int = 20, trust: int = 8, limit: int = 1000
    ) -> None:
        self._slots: dict[Hashable, list[int]] = {}
        self._weights: dict[Hashable, list[int]] = {}
        self._weight, self._rate, self._trust, self._limit = weight, rate, trust, limit

    def code(
        self, coder: Coder, bit: int, contexts: Sequence[Hashable], chosen: Hashable = 0
    ) -> int:
        """Code one decision.

        Args:
            coder: reads or writes.
            bit: what is written.
            contexts: the plainest first; always the same number of them.
            chosen: which weights mix them.
        """
        slots, stretch = self._slots, stretch_table()
        found = [*map(slots.get, contexts)]
        if None in found:
            found = self._started(contexts)
        inputs = [stretch[slot[0] >> 10] for slot in found]  # type: ignore[index]
        base = inputs[0]
        inputs = [base, *[x - base for x in inputs[1:]]]
        weights = self._weights.get(chosen)
        if weights is None:
            weights = [_ONE] + [self._weight] * (len(contexts) - 1)
        total = sum(map(mul, weights, inputs)) + _ONE // 2 >> 16
        p = squash_table()[min(max(total, -8 * _NATS), 8 * _NATS - 1) + 8 * _NATS]
        bit = coder.bit(bit, p)
        # error (2^-16) x input (2^-8 nat) x rate (2^-12), in units of 2^-16
        step = ((bit << 16) - p) * self._rate
        self._weights[chosen] = [
            w + (step * x + (1 << 19) >> 20) for w, x in zip(weights, inputs, strict=True)
        ]
        target, limit = (1 << _P) - _LEAST if bit else _LEAST, self._limit
        for slot in found:
            slot[0] += (target - slot[0]) // slot[1]  # type: ignore[index]
            if slot[1] < limit:  # type: ignore[index]
                slot[1] += 1  # type: ignore[index]
        return bit

    def _started(self, contexts: Sequence[Hashable]) -> list[list[int] | None]:
        """Return the frequencies of the contexts, those of new ones as the first one is."""
        first = self._slots.setdefault(contexts[0], [_HALF, 2])
        return [
            self._slots.setdefault(context, [first[0], 2 + self._trust]) for context in contexts
        ]


class Numbers:
    """Codes integers of unknown size: Elias-gamma, each decision with what it was before.

    n + 1 has L + 1 binary digits: L ones and a zero, each under its place, then the digits behind the first, from the
    top: the first two under all digits so far, the others at even odds.
    """

    def __init__(self) -> None:
        self._mixer = Mixer(weight=40_000, rate=0, trust=0)

    def code(self, coder: Coder, value: int, context: Hashable = 0) -> int:
        """Code an integer from 0 to :math:`2^{72} - 2`.

        Args:
            coder: reads or writes.
            value: what is written.
            context: of what kind the number is; kinds do not learn from each other.

        Raises:
            FormatError: what is read is larger.
        """
        digits, length = (value + 1).bit_length() - 1, 0
        while self._mixer.code(coder, int(length < digits), ((context, length),)):
            length += 1
            if length == 72:
                raise FormatError("expected sizes and numbers, found one of more than 72 bits")
        result = 1
        for place in range(length - 1, -1, -1):
            if length - place <= 2:
                bit = value + 1 >> place & 1
                result = result << 1 | self._mixer.code(coder, bit, ((context, length, result),))
            else:
                rest = place + 1
                return (result << rest | coder.bits(value + 1 & (1 << rest) - 1, rest)) - 1
        return result - 1

    def signed(self, coder: Coder, value: int, context: Hashable = 0) -> int:
        """Code an integer that may be negative; see :meth:`code`."""
        folded = self.code(coder, 2 * value if value >= 0 else -2 * value - 1, context)
        return folded >> 1 if folded % 2 == 0 else -(folded + 1 >> 1)
