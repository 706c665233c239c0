r"""Underdamped Langevin dynamics by the splitting BAOA, many chains at once.

.. math::

    B: p \leftarrow p + \varepsilon \nabla \hat U(q), \qquad
    A: q \leftarrow q + \tfrac\varepsilon2 p, \qquad
    O: p \leftarrow c p + \sqrt{T (1 - c^2)}\; \xi, \quad c = e^{-\gamma \varepsilon}, \qquad
    A: q \leftarrow q + \tfrac\varepsilon2 p

:math:`\hat U` is the log-density of a minibatch in nats for the whole data set; one gradient a step. The friction is
solved exactly, and for a Gaussian target the law of the positions is the exact one at every stable step size; elsewhere
its bias is of order :math:`\varepsilon^2`. What the noise of the minibatches adds is not accounted for.

Source: Leimkuhler & Matthews (2013), section 2, https://arxiv.org/abs/1203.5428: BAOAB, whose two half kicks, next to
each other and from the same gradient, are one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bnn.posterior import Posterior

from .chains import sample
from .noise import Numbers
from .sampler import Batch, Gradient, Update
from .schedules import Schedule, StepSchedule, require_step_schedule, sampling_steps

__all__ = ["BAOA", "baoa"]


def baoa(
    model: Callable[..., Any],
    data: tuple[Tensor, ...],
    *,
    step_size: Schedule | None = None,
    chains: int = 4,
    warmup: int = 1000,
    draws: int = 1000,
    batch_size: int | None = None,
    temperature: float = 1.0,
    friction: float | None = None,
    seed: int = 0,
    **run: Any,
) -> Posterior:
    r"""Sample the posterior, up to a bias of order :math:`\varepsilon^2`, by underdamped Langevin dynamics.

    The draws are unweighted. Where the step size changes, expectations are weighted by it:
    ``posterior.statistics["step_size"]``, (chain, draw), has it for every draw.

    Args:
        model: a ``BayesianNet`` or any Pyro program, with proper priors and no free parameters.
        data: all the data, ``(x, y)``.
        step_size: :math:`\varepsilon`, a number or a function of the step number. It has the scale of a posterior
            standard deviation: where that is s along its narrowest direction, steps above 2 s explode.
            ``None``: :math:`0.5/\sqrt\lambda`, with minibatches :math:`0.1\,\gamma (B/N)/\lambda` if that is less,
            from the curvature :math:`\lambda` that is found at the start (see :mod:`~pyro_bnn.mcmc.curvature`).
        chains: how many, computed together in one process.
        warmup: steps before the first draw.
        draws: to be kept of each chain, one in ``thin`` steps.
        batch_size: B, drawn with replacement for every chain and step; ``None``: all the data.
        temperature: T; the target is the posterior to the power 1/T, so one is the posterior.
        friction: :math:`\gamma`, the rate at which momentum is lost, where a step takes the time :math:`\varepsilon`.
            ``None``: one; :math:`\sqrt\lambda` where the step size is left open as well.
        seed: of all random numbers.
        run: ``thin``, ``start``, ``folder``, ``resume``, ``progress``, ``compile``: see
            :func:`~pyro_bnn.mcmc.chains.sample`.

    Raises:
        ImproperPriorError: an improper prior.
        ValueError: settings that make no sense, free parameters, data that are not ``num_data`` examples.
        NonFiniteDensityError: a start of density zero, naming the site.
        SamplingError: a chain that leaves the finite numbers: the step size is too large.
    """
    settings = BAOA(step_size, temperature, friction)
    return sample(
        settings,
        model,
        data,
        chains=chains,
        warmup=warmup,
        draws=draws,
        batch_size=batch_size,
        seed=seed,
        keep=sampling_steps(step_size),
        **run,
    )


class State(NamedTuple):
    """What the next step needs: where the chains are, how they move, and the gradient there."""

    position: Tensor
    momentum: Tensor
    gradient: Tensor
    pace: StepSchedule


class Info(NamedTuple):
    """What a person wants to see of a step: the estimated log-density where it ended, and how it was made."""

    lp: Tensor
    step_size: Tensor
    cycle: Tensor | None


@dataclass(frozen=True)
class BAOA:
    """The settings of :func:`baoa`."""

    step_size: Schedule | None = None
    temperature: float = 1.0
    friction: float | None = 1.0

    name = "BAOA"

    def __post_init__(self) -> None:
        require_step_schedule("baoa", self.step_size, self.temperature)
        if self.friction is not None and not 0 < self.friction < math.inf:
            raise ValueError(f"baoa: expected a friction above zero, got {self.friction}")

    def chosen(self, curvature: Callable[[], float], share: float) -> BAOA:
        """Return the settings with a step size and a friction, if none were given; share is B/N."""
        if self.step_size is not None:
            return self if self.friction is not None else replace(self, friction=1.0)
        largest = curvature()
        friction = math.sqrt(largest) if self.friction is None else self.friction
        # the noise of a minibatch, ε² λ N / B a step, beside that of the bath, 2 γ ε
        noisy = math.inf if share == 1 else 0.1 * friction * share / largest
        return replace(self, step_size=min(0.5 / math.sqrt(largest), noisy), friction=friction)

    def function(self, gradient: Gradient) -> Update:
        """Return one step of all chains, as a function of tensors."""
        friction = 1.0 if self.friction is None else self.friction

        def update(
            position: Tensor,
            momentum: Tensor,
            slope: Tensor,
            normal: Tensor,
            step_size: Tensor,
            temperature: Tensor,
            *batch: Tensor,
        ) -> tuple[Tensor, ...]:
            momentum = momentum + step_size * slope
            position = position + 0.5 * step_size * momentum
            kept = (-friction * step_size).exp()
            # 1 - c^2 = -expm1(-2 gamma eps), without cancellation at small steps
            noise = (temperature * -(-2 * friction * step_size).expm1()).sqrt()
            momentum = kept * momentum + noise * normal
            position = position + 0.5 * step_size * momentum
            value, slope = gradient(position, *batch)
            return position, momentum, slope, value

        return update

    def examples(self, position: Tensor, batch: Batch) -> list[Tensor]:
        """Return arguments of that function."""
        zero, one = torch.zeros_like(position), torch.ones_like(position)
        return [
            position,
            zero,
            zero,
            one,
            position.new_tensor(1e-4),
            position.new_tensor(1.0),
            *batch,
        ]

    def init(self, gradient: Gradient, update: Update, position: Tensor, batch: Batch) -> State:
        """Return the state at these positions (chains, D), at rest."""
        pace = StepSchedule.start(self.step_size, self.temperature, position)
        return State(position, torch.zeros_like(position), gradient(position, *batch)[1], pace)

    def step(
        self, update: Update, state: State, number: int, random: Numbers, batch: Batch
    ) -> tuple[State, Info]:
        """Move all chains by one step; the minibatch gives the gradient where they arrive."""
        pace = state.pace.at(number, self.step_size, self.temperature)
        position, momentum, slope, value = update(
            state.position,
            state.momentum,
            state.gradient,
            random.normal,
            pace.step_size,
            pace.temperature,
            *batch,
        )
        return State(position, momentum, slope, pace), Info(value, pace.step_size, pace.cycle)
