r"""Stochastic gradient Langevin dynamics, many chains at once.

.. math::

    q \leftarrow q + \tfrac{\varepsilon_t}{2} \nabla \hat U(q) + \sqrt{\varepsilon_t T}\; \xi,
    \qquad \xi \sim \mathcal{N}(0, I)

:math:`\hat U` is the log-density of a minibatch, in nats for the whole data set: the plate of the model has put its N/B
to the likelihood. There is no accept step, so the law that the chain settles in is off by a bias of order
:math:`\varepsilon`, and so is what the noise of the minibatches adds.

Source: Welling & Teh (2011), equation 4, https://www.stats.ox.ac.uk/~teh/research/compstats/WelTeh2011a.pdf.
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

__all__ = ["SGLD", "sgld"]


def sgld(
    model: Callable[..., Any],
    data: tuple[Tensor, ...],
    *,
    step_size: Schedule | None = None,
    chains: int = 4,
    warmup: int = 1000,
    draws: int = 1000,
    batch_size: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    **run: Any,
) -> Posterior:
    r"""Sample the posterior, up to a bias of order :math:`\varepsilon`, by stochastic gradient Langevin dynamics.

    The draws are unweighted. Where the step size changes, expectations are weighted by it:
    ``posterior.statistics["step_size"]``, (chain, draw), has it for every draw.

    Args:
        model: a ``BayesianNet`` or any Pyro program, with proper priors and no free parameters.
        data: all the data, ``(x, y)``.
        step_size: :math:`\varepsilon`, a number or a function of the step number, such as
            :func:`~pyro_bnn.mcmc.schedules.polynomial_decay` and :func:`~pyro_bnn.mcmc.schedules.cyclical`. It has the
            scale of a posterior variance: where that is :math:`s^2` along its narrowest direction, steps above
            :math:`4 s^2` explode.
            ``None``: :math:`0.2\,(B/N)/\lambda`, from the curvature :math:`\lambda` that is found at the start (see
            :mod:`~pyro_bnn.mcmc.curvature`).
        chains: how many, computed together in one process.
        warmup: steps before the first draw.
        draws: to be kept of each chain, one in ``thin`` steps.
        batch_size: B, drawn with replacement for every chain and step; ``None``: all the data.
        temperature: T; the target is the posterior to the power 1/T, so one is the posterior and zero gradient ascent.
        seed: of all random numbers.
        run: ``thin``, ``start``, ``folder``, ``resume``, ``progress``, ``compile``: see
            :func:`~pyro_bnn.mcmc.chains.sample`.

    Raises:
        ImproperPriorError: an improper prior.
        ValueError: settings that make no sense, free parameters, data that are not ``num_data`` examples.
        NonFiniteDensityError: a start of density zero, naming the site.
        SamplingError: a chain that leaves the finite numbers: the step size is too large.
    """
    settings = SGLD(step_size, temperature)
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
    """What the next step needs: where the chains are, and the gradient there."""

    position: Tensor
    gradient: Tensor
    pace: StepSchedule


class Info(NamedTuple):
    """What a person wants to see of a step: the estimated log-density where it ended, and how it was made."""

    lp: Tensor
    step_size: Tensor
    cycle: Tensor | None


@dataclass(frozen=True)
class SGLD:
    """The settings of :func:`sgld`."""

    step_size: Schedule | None = None
    temperature: float = 1.0

    name = "SGLD"

    def __post_init__(self) -> None:
        require_step_schedule("sgld", self.step_size, self.temperature)

    def chosen(self, curvature: Callable[[], float], share: float) -> SGLD:
        """Return the settings with a step size, if none was given; share is B/N."""
        if self.step_size is not None:
            return self
        # ε λ / 4 and ε λ (N / B) / 4: a twentieth of the variance at most
        return replace(self, step_size=0.2 * share / curvature())

    def function(self, gradient: Gradient) -> Update:
        """Return one step of all chains, as a function of tensors."""

        def update(
            position: Tensor,
            slope: Tensor,
            normal: Tensor,
            step_size: Tensor,
            temperature: Tensor,
            *batch: Tensor,
        ) -> tuple[Tensor, ...]:
            position = (
                position + 0.5 * step_size * slope + (step_size * temperature).sqrt() * normal
            )
            value, slope = gradient(position, *batch)
            return position, slope, value

        return update

    def examples(self, position: Tensor, batch: Batch) -> list[Tensor]:
        """Return arguments of that function."""
        small, zero = position.new_tensor(1e-4), torch.zeros_like(position)
        return [position, zero, torch.ones_like(position), small, position.new_tensor(1.0), *batch]

    def init(self, gradient: Gradient, update: Update, position: Tensor, batch: Batch) -> State:
        """Return the state at these positions (chains, D)."""
        return State(
            position,
            gradient(position, *batch)[1],
            StepSchedule.start(self.step_size, self.temperature, position),
        )

    def step(
        self, update: Update, state: State, number: int, random: Numbers, batch: Batch
    ) -> tuple[State, Info]:
        """Move all chains by one step; the minibatch gives the gradient where they arrive."""
        pace = state.pace.at(number, self.step_size, self.temperature)
        position, slope, value = update(
            state.position, state.gradient, random.normal, pace.step_size, pace.temperature, *batch
        )
        return State(position, slope, pace), Info(value, pace.step_size, pace.cycle)
