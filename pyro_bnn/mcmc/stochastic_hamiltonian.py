r"""Stochastic gradient Hamiltonian Monte Carlo, many chains at once.

.. math::

    v \leftarrow (1 - \alpha) v + \eta_t \nabla \hat U(q) + \sqrt{2 (\alpha - \hat\beta)\, \eta_t T}\; \xi, \qquad
    q \leftarrow q + v

:math:`\hat U` is the log-density of a minibatch in nats for the whole data set. This is gradient descent with momentum
:math:`1 - \alpha` and learning rate :math:`\eta`, and noise: v is the momentum times the step, in the law
:math:`\mathcal{N}(0, \eta T)`. With :math:`\alpha = 1` it is SGLD of step size :math:`2 \eta`. The friction takes out
what the noise of the minibatches puts in: for gradients of covariance B, :math:`\hat\beta = \eta B / 2` accounts for
it. There is no accept step: for a Gaussian target of precision A the variance is off by a factor of
:math:`1 / (1 - \eta A / (2 (2 - \alpha)))`.

Source: Chen, Fox & Guestrin (2014), equation 15, https://arxiv.org/abs/1402.4102.
"""

from __future__ import annotations

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

__all__ = ["SGHMC", "sghmc"]


def sghmc(
    model: Callable[..., Any],
    data: tuple[Tensor, ...],
    *,
    step_size: Schedule | None = None,
    chains: int = 4,
    warmup: int = 1000,
    draws: int = 1000,
    batch_size: int | None = None,
    temperature: float = 1.0,
    friction: float = 0.1,
    noise_estimate: float = 0.0,
    seed: int = 0,
    **run: Any,
) -> Posterior:
    r"""Sample the posterior, approximately, by stochastic gradient Hamiltonian Monte Carlo.

    The draws are unweighted. Where the step size changes, expectations are weighted by it:
    ``posterior.statistics["step_size"]``, (chain, draw), has it for every draw.

    Args:
        model: a ``BayesianNet`` or any Pyro program, with proper priors and no free parameters.
        data: all the data, ``(x, y)``.
        step_size: :math:`\eta`, a number or a function of the step number. It has the scale of a posterior variance:
            where that is :math:`s^2` along its narrowest direction, steps above :math:`2 (2 - \alpha) s^2` explode.
            ``None``: :math:`0.1/\lambda`, with minibatches :math:`0.1\,\alpha (B/N)/\lambda`, from the curvature
            :math:`\lambda` that is found at the start (see :mod:`~pyro_bnn.mcmc.curvature`).
        chains: how many, computed together in one process.
        warmup: steps before the first draw.
        draws: to be kept of each chain, one in ``thin`` steps.
        batch_size: B, drawn with replacement for every chain and step; ``None``: all the data.
        temperature: T; the target is the posterior to the power 1/T, so one is the posterior.
        friction: :math:`\alpha`, above 0 and at most 1, the part of the momentum that a step loses.
        noise_estimate: :math:`\hat\beta`, at least 0 and at most :math:`\alpha`.
        seed: of all random numbers.
        run: ``thin``, ``start``, ``folder``, ``resume``, ``progress``, ``compile``: see
            :func:`~pyro_bnn.mcmc.chains.sample`.

    Raises:
        ImproperPriorError: an improper prior.
        ValueError: settings that make no sense, free parameters, data that are not ``num_data`` examples.
        NonFiniteDensityError: a start of density zero, naming the site.
        SamplingError: a chain that leaves the finite numbers: the step size is too large.
    """
    settings = SGHMC(step_size, temperature, friction, noise_estimate)
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
    velocity: Tensor
    gradient: Tensor
    pace: StepSchedule


class Info(NamedTuple):
    """What a person wants to see of a step: the estimated log-density where it ended, and how it was made."""

    lp: Tensor
    step_size: Tensor
    cycle: Tensor | None


@dataclass(frozen=True)
class SGHMC:
    """The settings of :func:`sghmc`."""

    step_size: Schedule | None = None
    temperature: float = 1.0
    friction: float = 0.1
    noise_estimate: float = 0.0

    name = "SGHMC"

    def __post_init__(self) -> None:
        require_step_schedule("sghmc", self.step_size, self.temperature)
        if not (0 < self.friction <= 1 and 0 <= self.noise_estimate <= self.friction):
            raise ValueError(
                "sghmc: expected a friction above 0 and at most 1, and a noise_estimate from 0 to the friction, "
                f"got {self.friction} and {self.noise_estimate}"
            )

    def chosen(self, curvature: Callable[[], float], share: float) -> SGHMC:
        """Return the settings with a step size, if none was given; share is B/N."""
        if self.step_size is not None:
            return self
        # η λ / 4 without minibatches; with them the estimate β = η λ (N / B) / 2 beside the friction α
        return replace(
            self, step_size=(0.1 if share == 1 else 0.1 * self.friction * share) / curvature()
        )

    def function(self, gradient: Gradient) -> Update:
        """Return one step of all chains, as a function of tensors."""

        def update(
            position: Tensor,
            velocity: Tensor,
            slope: Tensor,
            normal: Tensor,
            step_size: Tensor,
            temperature: Tensor,
            *batch: Tensor,
        ) -> tuple[Tensor, ...]:
            noise = (2 * (self.friction - self.noise_estimate) * step_size * temperature).sqrt()
            velocity = (1 - self.friction) * velocity + step_size * slope + noise * normal
            position = position + velocity
            value, slope = gradient(position, *batch)
            return position, velocity, slope, value

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
        position, velocity, slope, value = update(
            state.position,
            state.velocity,
            state.gradient,
            random.normal,
            pace.step_size,
            pace.temperature,
            *batch,
        )
        return State(position, velocity, slope, pace), Info(value, pace.step_size, pace.cycle)
