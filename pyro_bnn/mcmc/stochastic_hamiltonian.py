r"""Stochastic gradient Hamiltonian Monte Carlo (SGHMC), many chains at once.

.. math::

    v \leftarrow (1 - \alpha) v + \eta_t \nabla \log \hat p(q)
    + \sqrt{2 (\alpha - \hat\beta)\, \eta_t T}\; \xi, \qquad
    q \leftarrow q + v

:math:`\log \hat p` is the log density on a minibatch, in nats for the whole data set. This is
gradient descent with momentum :math:`1 - \alpha` and learning rate :math:`\eta`, plus noise; v is
the momentum times the step, with the distribution :math:`\mathcal{N}(0, \eta T)`. With
:math:`\alpha = 1` it is SGLD with step size :math:`2 \eta`.

The friction removes the energy that the noise of the minibatches adds: for gradients of covariance
B, :math:`\hat\beta = \eta B / 2` accounts for it. There is no accept step: for a Gaussian target
of precision A the variance has a bias by the factor
:math:`1 / (1 - \eta A / (2 (2 - \alpha)))`.

Source: Chen, Fox & Guestrin (2014), equation 15, https://arxiv.org/abs/1402.4102.
"""

from __future__ import annotations

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

__all__ = ["SGHMC", "sghmc"]


def sghmc(
    model: Program,
    data: Batch,
    *,
    step_size: StepSize | None = None,
    temperature: float = 1.0,
    friction: float = 0.1,
    noise_estimate: float = 0.0,
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
    r"""Sample the posterior, approximately, by stochastic gradient Hamiltonian Monte Carlo.

    Args:
        model: A ``BayesianNet`` or any Pyro program, with proper priors and no free parameters.
        data: All the data, ``(x, y)``.
        step_size: :math:`\eta`, a number or a function of the step number. It has the scale of a
            posterior variance: where that is :math:`s^2` along its narrowest direction, chains
            diverge at steps above :math:`2 (2 - \alpha) s^2`. ``None`` for :math:`0.1/\lambda`, or
            with minibatches :math:`0.1\,\alpha (B/N)/\lambda`, with the curvature
            :math:`\lambda` measured at the start (see :mod:`~pyro_bnn.mcmc.curvature`).
        temperature: T; the target is the posterior to the power 1/T. One gives the posterior.
        friction: :math:`\alpha`, the fraction of the momentum lost in a step, above 0 and at
            most 1.
        noise_estimate: :math:`\hat\beta`, from 0 to :math:`\alpha`.
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
    sampler = SGHMC(step_size, temperature, friction, noise_estimate)
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
        velocity: v, (chains, D).
        gradient: :math:`\nabla \log \hat p(q)`, (chains, D).
        schedule: Step size and temperature.
    """

    position: Tensor
    velocity: Tensor
    gradient: Tensor
    schedule: StepSchedule


@dataclass(frozen=True)
class SGHMC:
    """The settings of :func:`sghmc`."""

    step_size: StepSize | None = None
    temperature: float = 1.0
    friction: float = 0.1
    noise_estimate: float = 0.0

    name = "SGHMC"
    caller = "sghmc"

    def __post_init__(self) -> None:
        require_schedule(self)
        if not (0 < self.friction <= 1 and 0 <= self.noise_estimate <= self.friction):
            raise ValueError(
                "sghmc: expected a friction above 0 and at most 1, and a noise_estimate from 0 to "
                f"the friction, got {self.friction} and {self.noise_estimate}"
            )

    def with_default_step_size(
        self, curvature: Callable[[], float], batch_fraction: float
    ) -> SGHMC:
        """Return the settings with a step size, if they have none."""
        if self.step_size is not None:
            return self
        # η λ / 4 without minibatches; with them the estimate β = η λ (N / B) / 2 beside α
        relative = 0.1
        if batch_fraction < 1:
            relative = 0.1 * self.friction * batch_fraction
        return replace(self, step_size=relative / curvature())

    def make_update(self, value_and_grad: ValueAndGrad) -> Update:
        """Return one step of all chains, as a function of tensors."""

        def update(
            position: Tensor,
            velocity: Tensor,
            gradient: Tensor,
            normal: Tensor,
            step_size: Tensor,
            temperature: Tensor,
            *batch: Tensor,
        ) -> tuple[Tensor, ...]:
            noise = (2 * (self.friction - self.noise_estimate) * step_size * temperature).sqrt()
            velocity = (1 - self.friction) * velocity + step_size * gradient + noise * normal
            position = position + velocity
            log_density, gradient = value_and_grad(position, *batch)
            return position, velocity, gradient, log_density

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
        position, velocity, gradient, log_density = update(
            state.position,
            state.velocity,
            state.gradient,
            random.normal,
            schedule.step_size,
            schedule.temperature,
            *batch,
        )
        info = ScheduledInfo(log_density, schedule.step_size, schedule.cycle)
        return State(position, velocity, gradient, schedule), info
