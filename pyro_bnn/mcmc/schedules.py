r"""Step sizes that change from step to step: a decay, or cycles.

A schedule is a function of the number of the step, counted from zero at the first step of the
warm-up. Any function serves. Its ``repr`` identifies it when an interrupted run is resumed, so a
dataclass can be resumed in another process and a lambda cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "Cyclical",
    "PolynomialDecay",
    "StepSize",
    "cyclical",
    "polynomial_decay",
    "sampling_steps",
]

StepSize = float | Callable[[int], float]
"""A step size: a number, or a function of the number of the step."""


def polynomial_decay(a: float, b: float = 1.0, gamma: float = 0.55) -> PolynomialDecay:
    r"""Return the step sizes :math:`\varepsilon_t = a (b + t)^{-\gamma}`.

    With :math:`\tfrac12 < \gamma \le 1` their sum is infinite and the sum of their squares finite,
    so a chain can reach every position and its bias vanishes. Expectations are then weighted by
    the step sizes, :math:`\mathbb{E} f \approx \sum_t \varepsilon_t f_t / \sum_t \varepsilon_t`.
    The draws of a posterior carry no weights; ``posterior.statistics["step_size"]`` has them.

    Args:
        a: Step size where b + t is one.
        b: Number of steps before the decay shows.
        gamma: The power.

    Raises:
        ValueError: ``a`` or ``b`` is not above zero, or ``gamma`` lies outside (1/2, 1].

    Source: Welling & Teh (2011), section 3.

    Example:
        >>> decay = polynomial_decay(0.2, b=231, gamma=0.55)
        >>> print(round(decay(0), 4))
        0.01
    """
    if not (a > 0 and b > 0 and 0.5 < gamma <= 1):
        raise ValueError(
            "polynomial_decay: expected a and b above zero and gamma in (1/2, 1], "
            f"got a={a}, b={b}, gamma={gamma}"
        )
    return PolynomialDecay(a, b, gamma)


def cyclical(initial: float, cycle_length: int, exploration: float = 0.5) -> Cyclical:
    r"""Return step sizes that decay from ``initial`` towards zero along a cosine, in cycles.

    With :math:`r_t = (t \bmod L) / L` the position in a cycle of L steps,

    .. math:: \varepsilon_t = \tfrac{\varepsilon_0}{2} (\cos \pi r_t + 1).

    While :math:`r_t <` ``exploration``, the sampler adds no noise (temperature zero) and its large
    steps lead to another mode; after that it samples there. Draws come from the sampling part of
    a cycle only, and ``posterior.statistics["cycle"]`` has the cycle of each draw.

    Args:
        initial: :math:`\varepsilon_0`, the step size at the start of every cycle.
        cycle_length: L, in steps.
        exploration: Fraction of each cycle without noise, at least 0 and below 1.

    Raises:
        ValueError: An argument lies outside these bounds, or no step of a cycle would sample.

    Source: Zhang, Li, Zhang, Chen & Wilson (2020), section 3, https://arxiv.org/abs/1902.03932.

    Example:
        >>> schedule = cyclical(0.1, cycle_length=4, exploration=0.5)
        >>> [(round(schedule(step), 3), schedule.samples(step)) for step in range(5)]
        [(0.1, False), (0.085, False), (0.05, True), (0.015, True), (0.1, False)]
    """
    if not (initial > 0 and cycle_length >= 1 and 0 <= exploration < 1):
        raise ValueError(
            "cyclical: expected an initial step size above zero, a cycle_length of at least one "
            "step and an exploration of at least 0 and below 1, "
            f"got {initial}, {cycle_length} and {exploration}"
        )
    schedule = Cyclical(initial, cycle_length, exploration)
    if not schedule.samples(cycle_length - 1):
        raise ValueError(
            f"cyclical: exploration={exploration} of a cycle of {cycle_length} steps leaves none "
            f"to sample; expected at most {1 - 1 / cycle_length:.3g}"
        )
    return schedule


@dataclass(frozen=True)
class PolynomialDecay:
    """The schedule of :func:`polynomial_decay`."""

    a: float
    b: float
    gamma: float

    def __call__(self, number: int) -> float:
        """Return the size of step ``number``."""
        return float(self.a * (self.b + number) ** -self.gamma)


@dataclass(frozen=True)
class Cyclical:
    """The schedule of :func:`cyclical`."""

    initial: float
    cycle_length: int
    exploration: float

    def __call__(self, number: int) -> float:
        """Return the size of step ``number``."""
        return 0.5 * self.initial * (math.cos(math.pi * self._phase(number)) + 1)

    def samples(self, number: int) -> bool:
        """Return whether step ``number`` adds noise, so that it may end in a draw."""
        return self._phase(number) >= self.exploration

    def cycle(self, number: int) -> int:
        """Return the cycle of step ``number``, counted from zero."""
        return number // self.cycle_length

    def _phase(self, number: int) -> float:
        return (number % self.cycle_length) / self.cycle_length


def sampling_steps(step_size: StepSize | None) -> Callable[[int], bool] | None:
    """Return the function that tells whether a step may end in a draw; ``None`` if all may."""
    if isinstance(step_size, Cyclical):
        return step_size.samples
    return None
