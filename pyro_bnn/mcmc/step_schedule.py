"""Step size and temperature of the present step, for the samplers without an accept step."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .schedules import Cyclical, StepSize

__all__ = ["ScheduledInfo", "StepSchedule", "require_schedule"]


class Scheduled(Protocol):
    """The settings of a sampler whose step size may change from step to step."""

    @property
    def caller(self) -> str:
        """The name of the public function, with which messages begin."""

    @property
    def step_size(self) -> StepSize | None:
        """The step size; ``None`` until the default is chosen."""

    @property
    def temperature(self) -> float:
        """The temperature."""


class ScheduledInfo(NamedTuple):
    """What one step of these samplers reports.

    Attributes:
        lp: Estimate of the log density after the step, (chains,), in nats.
        step_size: Size of the step, ().
        cycle: Cycle of a cyclical schedule, (), counted from zero; ``None`` for other schedules.
    """

    lp: Tensor
    step_size: Tensor
    cycle: Tensor | None


class StepSchedule(NamedTuple):
    """Step size and temperature of the present step, as tensors.

    The tensors are replaced only when their values change: a new one costs microseconds, as much
    as the arithmetic of a small network.

    Attributes:
        step_size: The step size, ().
        temperature: The temperature, (); zero in the exploring part of a cycle.
        cycle: Cycle of a cyclical schedule, (), counted from zero; ``None`` for other schedules.
        values: The three as Python numbers.
    """

    step_size: Tensor
    temperature: Tensor
    cycle: Tensor | None
    values: tuple[float, float, int | None]

    @staticmethod
    def start(settings: Scheduled, like: Tensor) -> StepSchedule:
        """Return the values of step zero, as tensors with the device and dtype of ``like``."""
        zero = like.new_zeros(())
        return StepSchedule(zero, zero, None, (math.nan, math.nan, None)).at(0, settings)

    def at(self, number: int, settings: Scheduled) -> StepSchedule:
        """Return the values of step ``number``.

        Raises:
            ValueError: The schedule returns a step size that is not a positive number.
        """
        schedule, temperature, cycle = settings.step_size, settings.temperature, None
        assert schedule is not None  # with_default_step_size has been called
        step_size = schedule(number) if callable(schedule) else schedule
        if isinstance(schedule, Cyclical):
            cycle = schedule.cycle(number)
            if not schedule.samples(number):
                temperature = 0.0
        values = (step_size, temperature, cycle)
        if values == self.values:
            return self
        if not 0 < step_size < math.inf:
            raise ValueError(
                f"{settings.caller}: expected a step_size above zero at step {number}, "
                f"got {step_size}"
            )
        cycle_tensor = None
        if cycle is not None:
            cycle_tensor = self.step_size.new_tensor(cycle, dtype=torch.int64)
        return StepSchedule(
            self.step_size.new_tensor(step_size),
            self.step_size.new_tensor(temperature),
            cycle_tensor,
            values,
        )


def require_schedule(settings: Scheduled) -> None:
    """Raise an error for a step size or a temperature out of range.

    Raises:
        ValueError: The step size is not above zero, or the temperature is below zero.
    """
    step_size, temperature = settings.step_size, settings.temperature
    if step_size is not None and not callable(step_size) and not 0 < step_size < math.inf:
        raise ValueError(
            f"{settings.caller}: expected a step_size above zero or a function of the step number, "
            f"got {step_size}"
        )
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"{settings.caller}: expected a temperature of at least zero (1 for the posterior), "
            f"got {temperature}"
        )
