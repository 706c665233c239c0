r"""Step sizes that change from step to step: a number, a decay, or cycles.

A schedule is a function of the number of the step, counted from zero at the first step of the warm-up. One of your own
serves as well; what it prints as (its ``repr``) tells an interrupted run from others, so a dataclass resumes in another
process and a lambda does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Cyclical",
    "StepSchedule",
    "PolynomialDecay",
    "Schedule",
    "cyclical",
    "polynomial_decay",
]

Schedule = float | Callable[[int], float]


def polynomial_decay(a: float, b: float = 1.0, gamma: float = 0.55) -> PolynomialDecay:
    r"""Return the step sizes :math:`\varepsilon_t = a (b + t)^{-\gamma}`.

    With :math:`\tfrac12 < \gamma \le 1` their sum is infinite and that of their squares finite, so the chain gets
    everywhere and its bias vanishes. Expectations are then weighted by the step sizes,
    :math:`\mathbb{E} f \approx \sum_t \varepsilon_t f_t / \sum_t \varepsilon_t`: a posterior's draws carry no weights,
    so weight them by ``posterior.statistics["step_size"]``.

    Args:
        a: the step size where b + t is one.
        b: how many steps pass before the decay is felt.
        gamma: the power.

    Raises:
        ValueError: a or b not above zero, gamma outside (1/2, 1].

    Source: Welling & Teh (2011), section 3.

    >>> decay = polynomial_decay(0.2, b=231, gamma=0.55)
    >>> print(round(decay(0), 4))
    0.01
    """
    if not (a > 0 and b > 0 and 0.5 < gamma <= 1):
        raise ValueError(
            f"polynomial_decay: expected a and b above zero and gamma in (1/2, 1], got a={a}, b={b}, gamma={gamma}"
        )
    return PolynomialDecay(a, b, gamma)


def cyclical(initial: float, cycle_length: int, exploration: float = 0.5) -> Cyclical:
    r"""Return step sizes that fall from ``initial`` towards zero along a cosine, again and again.

    With :math:`r_t = (t \bmod L) / L` the position in a cycle of L steps,
    :math:`\varepsilon_t = \tfrac{\varepsilon_0}{2} (\cos \pi r_t + 1)`. While :math:`r_t <` ``exploration`` the sampler
    adds no noise (temperature zero) and moves to another mode by its large steps; after that it samples there. Draws
    are of the sampling part alone, and ``posterior.statistics["cycle"]`` tells their cycle.

    Args:
        initial: :math:`\varepsilon_0`, the step size that every cycle begins with.
        cycle_length: L, in steps.
        exploration: the part of each cycle without noise, at least 0 and below 1.

    Raises:
        ValueError: numbers outside these bounds, or no step left to sample.

    Source: Zhang, Li, Zhang, Chen & Wilson (2020), section 3, https://arxiv.org/abs/1902.03932.

    >>> schedule = cyclical(0.1, cycle_length=4, exploration=0.5)
    >>> [(round(schedule(step), 3), schedule.samples(step)) for step in range(5)]
    [(0.1, False), (0.085, False), (0.05, True), (0.015, True), (0.1, False)]
    """
    if not (initial > 0 and cycle_length >= 1 and 0 <= exploration < 1):
        raise ValueError(
            "cyclical: expected an initial step size above zero, a cycle_length of at least one step and an "
            f"exploration of at least 0 and below 1, got {initial}, {cycle_length} and {exploration}"
        )
    schedule = Cyclical(initial, cycle_length, exploration)
    if not schedule.samples(cycle_length - 1):
        raise ValueError(
            f"cyclical: exploration={exploration} of a cycle of {cycle_length} steps leaves none to sample; expected "
            f"at most {1 - 1 / cycle_length:.3g}"
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
        return self.a * (self.b + number) ** -self.gamma


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
        """Return whether step ``number`` has noise, so that where it leads may be a draw."""
        return self._phase(number) >= self.exploration

    def cycle(self, number: int) -> int:
        """Return the cycle of step ``number``, counted from zero."""
        return number // self.cycle_length

    def _phase(self, number: int) -> float:
        return (number % self.cycle_length) / self.cycle_length


class StepSchedule(NamedTuple):
    """Step size and temperature as tensors (), made anew only when their values change, and the cycle if there is one.

    A new tensor costs microseconds, as much as the arithmetic of a small network.
    """

    step_size: Tensor
    temperature: Tensor
    cycle: Tensor | None
    values: tuple[float, float, int | None]

    @staticmethod
    def start(schedule: Schedule | None, temperature: float, like: Tensor) -> StepSchedule:
        """Return the pace of step zero."""
        nothing = like.new_zeros(())
        return StepSchedule(nothing, nothing, None, (math.nan, math.nan, None)).at(
            0, schedule, temperature
        )

    def at(self, number: int, schedule: Schedule | None, temperature: float) -> StepSchedule:
        """Return the pace of step ``number``.

        Raises:
            ValueError: a schedule that gives no positive number.
        """
        assert schedule is not None  # the loop has chosen one where none was given
        step_size = schedule(number) if callable(schedule) else schedule
        cycle = None
        if isinstance(schedule, Cyclical):
            cycle = schedule.cycle(number)
            temperature = temperature if schedule.samples(number) else 0.0
        values = (step_size, temperature, cycle)
        if values == self.values:
            return self
        if not 0 < step_size < math.inf:
            raise ValueError(
                f"step_size: expected a number above zero at step {number}, got {step_size}"
            )
        new = self.step_size.new_tensor
        noted = None if cycle is None else new(cycle, dtype=torch.int64)
        return StepSchedule(new(step_size), new(temperature), noted, values)


def require_step_schedule(name: str, step_size: Schedule | None, temperature: float) -> None:
    """Refuse a step size or a temperature that makes no sense.

    Raises:
        ValueError: with what was expected.
    """
    if step_size is not None and not callable(step_size) and not 0 < step_size < math.inf:
        raise ValueError(
            f"{name}: expected a step_size above zero or a function of the step number, got {step_size}"
        )
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"{name}: expected a temperature of at least zero (1 for the posterior), got {temperature}"
        )


def sampling_steps(step_size: Schedule | None) -> Callable[[int], bool] | None:
    """Return which steps may become draws, or ``None`` where all may."""
    return step_size.samples if isinstance(step_size, Cyclical) else None
