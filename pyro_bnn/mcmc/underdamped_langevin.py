r"""Underdamped Langevin dynamics by the splitting BAOA, many chains at once.

.. math::

    B&: p \leftarrow p + \varepsilon \nabla \log \hat p(q) \\
    A&: q \leftarrow q + \tfrac\varepsilon2 p \\
    O&: p \leftarrow c p + \sqrt{T (1 - c^2)}\; \xi, \quad c = e^{-\gamma \varepsilon} \\
    A&: q \leftarrow q + \tfrac\varepsilon2 p

:math:`\log \hat p` is the log density on a minibatch, in nats for the whole data set; a step takes
one gradient. The friction is integrated exactly. For a Gaussian target the stationary distribution
of the positions is exact at every stable step size; elsewhere its bias is of order
:math:`\varepsilon^2`. The noise of the minibatches is not accounted for.

Source: Leimkuhler & Matthews (2013), section 2, https://arxiv.org/abs/1203.5428: BAOAB, whose two
half kicks follow each other with the same gradient and are one here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.program import Program

from .chains import sample
from .noise import RandomNumbers
from .options import RunOptions
from .sampler import Batch, Update, ValueAndGrad
from .schedules import StepSize, sampling_steps
from .start import Start
from .step_schedule import ScheduledInfo, StepSchedule, require_schedule

__all__ = ["BAOA", "baoa"]


def baoa(
    model: Program,
    data: Batch,
    *,
    step_size: StepSize | None = None,
    temperature: float = 1.0,
    friction: float | None = None,
    chains: int = 4,
    warmup: int = 1000,
    draws: int = 1000,
    thin: int = 1,
    batch_size: int | None = None,
    start: Start = "prior",
    seed: int = 0,
    compile: bool = True,
    progress: bool = True,
    folder: str | Path | None = None,
    resume: bool = False,
) -> Posterior:
    r"""Sample the posterior by underdamped Langevin dynamics, up to order :math:`\varepsilon^2`.

    Args:
        model: A ``BayesianNet`` or any Pyro program, with proper priors and no free parameters.
        data: All the data, ``(x, y)``.
        step_size: :math:`\varepsilon`, a number or a function of the step number. It has the scale
            of a posterior standard deviation: where that is s along its narrowest direction,
            chains diverge at steps above 2 s. ``None`` for :math:`0.5/\sqrt\lambda`, or with
            minibatches :math:`0.1\,\gamma (B/N)/\lambda` if that is less, with the curvature
            :math:`\lambda` measured at the start (see :mod:`~pyro_bnn.mcmc.curvature`).
        temperature: T; the target is the posterior to the power 1/T. One gives the posterior.
        friction: :math:`\gamma`, the rate at which momentum is lost, where a step takes the time
            :math:`\varepsilon`. ``None`` for one, or :math:`\sqrt\lambda` if ``step_size`` is
            ``None`` as well.
        chains: Number of chains, computed together in one process.
        warmup: Number of steps before the first draw.
        draws: Number of draws of each chain.
        thin: Number of steps between draws.
        batch_size: B, the number of examples of a minibatch, drawn with replacement for every
            chain and step; ``None`` for all the data.
        start: Where the chains start: ``"prior"`` for a draw from the prior each; a posterior or
            the result of :func:`~pyro_bnn.fit` for a draw from it each; or values of the sites,
            for all chains or one for each.
        seed: Seed of all random numbers.
        compile: Whether to compile the log density; without it, the draws agree up to rounding
            and take longer.
        progress: Whether to show a progress bar.
        folder: Folder to which the draws are written as they are made, and the state of the run
            every 30 seconds.
        resume: Whether to continue the run in ``folder``, bit for bit as if never interrupted.

    Returns:
        The draws, unweighted, with ``statistics`` (chain, draw): ``lp``, ``step_size`` and, for a
        cyclical schedule, ``cycle``. Where the step size changes, expectations are weighted by
        ``posterior.statistics["step_size"]``.

    Raises:
        ImproperPriorError: A prior is improper.
        ValueError: A setting is out of range, the model has free parameters, or the data are not
            its ``num_data`` examples.
        NonFiniteDensityError: The density is zero at the start; the message names the site.
        SamplingError: A position becomes NaN or infinite: the step size is too large.
        CheckpointError: The folder holds another run, or cannot be read or written.
    """
    sampler = BAOA(step_size, temperature, friction)
    options = RunOptions(
        sampler.caller,
        chains=chains,
        warmup=warmup,
        draws=draws,
        thin=thin,
        batch_size=batch_size,
        start=start,
        seed=seed,
        compile=compile,
        progress=progress,
        folder=folder,
        resume=resume,
    )
    return sample(sampler, model, data, options, sampling_steps(step_size))


class State(NamedTuple):
    r"""Everything that the next step needs.

    Attributes:
        position: q, (chains, D).
        momentum: p, (chains, D).
        gradient: :math:`\nabla \log \hat p(q)`, (chains, D).
        schedule: Step size and temperature.
    """

    position: Tensor
    momentum: Tensor
    gradient: Tensor
    schedule: StepSchedule


@dataclass(frozen=True)
class BAOA:
    """The settings of :func:`baoa`."""

    step_size: StepSize | None = None
    temperature: float = 1.0
    friction: float | None = 1.0

    name = "BAOA"
    caller = "baoa"

    def __post_init__(self) -> None:
        require_schedule(self)
        if self.friction is not None and not 0 < self.friction < math.inf:
            raise ValueError(f"baoa: expected a friction above zero, got {self.friction}")

    def with_default_step_size(self, curvature: Callable[[], float], batch_fraction: float) -> BAOA:
        """Return the settings with a step size and a friction, if they have none."""
        if self.step_size is not None:
            return replace(self, friction=self.friction or 1.0)
        largest = curvature()
        friction = self.friction or math.sqrt(largest)
        step_size = 0.5 / math.sqrt(largest)
        if batch_fraction < 1:
            # the noise of a minibatch, ε² λ N / B a step, beside that of the bath, 2 γ ε
            step_size = min(step_size, 0.1 * friction * batch_fraction / largest)
        return replace(self, step_size=step_size, friction=friction)

    def make_update(self, value_and_grad: ValueAndGrad) -> Update:
        """Return one step of all chains, as a function of tensors."""
        friction = self.friction or 1.0

        def update(
            position: Tensor,
            momentum: Tensor,
            gradient: Tensor,
            normal: Tensor,
            step_size: Tensor,
            temperature: Tensor,
            *batch: Tensor,
        ) -> tuple[Tensor, ...]:
            momentum = momentum + step_size * gradient
            position = position + 0.5 * step_size * momentum
            c = (-friction * step_size).exp()
            # 1 - c^2 = -expm1(-2 gamma eps), without cancellation at small steps
            noise = (temperature * -(-2 * friction * step_size).expm1()).sqrt()
            momentum = c * momentum + noise * normal
            position = position + 0.5 * step_size * momentum
            log_density, gradient = value_and_grad(position, *batch)
            return position, momentum, gradient, log_density

        return update

    def example_arguments(self, position: Tensor, batch: Batch) -> list[Tensor]:
        """Return arguments of the update, to compile it with."""
        zero, one = torch.zeros_like(position), torch.ones_like(position)
        step_size, temperature = position.new_tensor(1e-4), position.new_tensor(1.0)
        return [position, zero, zero, one, step_size, temperature, *batch]

    def init(
        self, value_and_grad: ValueAndGrad, update: Update, position: Tensor, batch: Batch
    ) -> State:
        """Return the state of chains at rest at these positions (chains, D)."""
        _, gradient = value_and_grad(position, *batch)
        at_rest = torch.zeros_like(position)
        return State(position, at_rest, gradient, StepSchedule.start(self, position))

    def step(
        self, update: Update, state: State, number: int, random: RandomNumbers, batch: Batch
    ) -> tuple[State, ScheduledInfo]:
        """Take one step of all chains; the minibatch gives the gradient at its end."""
        schedule = state.schedule.at(number, self)
        position, momentum, gradient, log_density = update(
            state.position,
            state.momentum,
            state.gradient,
            random.normal,
            schedule.step_size,
            schedule.temperature,
            *batch,
        )
        info = ScheduledInfo(log_density, schedule.step_size, schedule.cycle)
        return State(position, momentum, gradient, schedule), info
