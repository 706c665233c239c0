r"""Stochastic gradient Langevin dynamics with the diagonal preconditioner of RMSprop, many chains at once.

.. math::

    q \leftarrow q + \tfrac{\varepsilon_t}{2}\, G\, \nabla \hat U(q) + \sqrt{\varepsilon_t T\, G}\; \xi, \qquad
    G = \frac{1}{\lambda + \sqrt V}, \qquad V \leftarrow a V + (1 - a)\, \bar g^2,

:math:`\hat U` being the log-density of a minibatch in nats for the whole data set, and :math:`\bar g = \nabla \hat U /
N` its gradient per example (the prior's part of it, which the paper leaves out, is of order 1/N). Each chain has its
own V, which begins with the gradient at the start.

The term :math:`\Gamma_i = \partial G_i / \partial q_i` of the exact drift is left out, as in the paper's experiments:
it needs second derivatives of the density, and it is of order 1 - a, for V averages over 1 / (1 - a) steps. What it
leaves is a bias that does not vanish with the step size; ``adapt_draws=False`` holds V fixed after the warm-up, where
:math:`\Gamma` is zero.

Source: Li, Chen, Carlson & Carin (2016), algorithm 1, https://arxiv.org/abs/1512.07666.
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

__all__ = ["PSGLD", "psgld"]


def psgld(
    model: Callable[..., Any],
    data: tuple[Tensor, ...],
    *,
    step_size: Schedule | None = None,
    chains: int = 4,
    warmup: int = 1000,
    draws: int = 1000,
    batch_size: int | None = None,
    temperature: float = 1.0,
    decay: float = 0.99,
    floor: float = 1e-5,
    preconditioner: float | Tensor | None = None,
    adapt_draws: bool = True,
    seed: int = 0,
    **run: Any,
) -> Posterior:
    r"""Sample the posterior, approximately, by preconditioned stochastic gradient Langevin dynamics.

    The draws are unweighted. Where the step size changes, expectations are weighted by it:
    ``posterior.statistics["step_size"]``, (chain, draw), has it for every draw.

    Args:
        model: a ``BayesianNet`` or any Pyro program, with proper priors and no free parameters.
        data: all the data, ``(x, y)``.
        step_size: :math:`\varepsilon`, a number or a function of the step number; along coordinate i the step is
            :math:`\varepsilon G_i`, which has the scale of a posterior variance.
            ``None``: :math:`0.2\,(B/N)/(\lambda G)`, from the curvature :math:`\lambda` that is found at the start
            (see :mod:`~pyro_bnn.mcmc.curvature`) and the G that goes with it.
        chains: how many, computed together in one process.
        warmup: steps before the first draw.
        draws: to be kept of each chain, one in ``thin`` steps.
        batch_size: B, drawn with replacement for every chain and step; ``None``: all the data.
        temperature: T; the target is the posterior to the power 1/T, so one is the posterior.
        decay: a, how much of V each step keeps.
        floor: :math:`\lambda`, which bounds G by its inverse.
        preconditioner: G itself, a number or a tensor (D,) in the order of the sites, held fixed; ``None``: adapted.
        adapt_draws: adapt G after the warm-up as well, as the paper does.
        seed: of all random numbers.
        run: ``thin``, ``start``, ``folder``, ``resume``, ``progress``, ``compile``: see
            :func:`~pyro_bnn.mcmc.chains.sample`.

    Raises:
        ImproperPriorError: an improper prior.
        ValueError: settings that make no sense, free parameters, data that are not ``num_data`` examples.
        NonFiniteDensityError: a start of density zero, naming the site.
        SamplingError: a chain that leaves the finite numbers: the step size is too large.
    """
    num_data = len(data[0])
    settings = PSGLD(
        step_size, temperature, num_data, warmup, decay, floor, preconditioner, adapt_draws
    )
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
    """What the next step needs: where the chains are, the gradient there, V, and how much of it to keep."""

    position: Tensor
    gradient: Tensor
    squares: Tensor
    decay: Tensor
    pace: StepSchedule


class Info(NamedTuple):
    """What a person wants to see of a step: the estimated log-density where it ended, and how it was made."""

    lp: Tensor
    step_size: Tensor
    cycle: Tensor | None


@dataclass(frozen=True)
class PSGLD:
    """The settings of :func:`psgld`."""

    step_size: Schedule | None = None
    temperature: float = 1.0
    num_data: int = 1
    warmup: int = 0
    decay: float = 0.99
    floor: float = 1e-5
    preconditioner: float | Tensor | None = None
    adapt_draws: bool = True

    name = "pSGLD"

    def __post_init__(self) -> None:
        require_step_schedule("psgld", self.step_size, self.temperature)
        if not (0 <= self.decay <= 1 and self.floor > 0):
            raise ValueError(
                f"psgld: expected a decay from 0 to 1 and a floor above zero, got {self.decay} and {self.floor}"
            )
        if self.preconditioner is not None and not bool(
            (torch.as_tensor(self.preconditioner) > 0).all()
        ):
            raise ValueError(
                f"psgld: expected a preconditioner above zero, got {self.preconditioner}"
            )

    def chosen(self, curvature: Callable[[], float], share: float) -> PSGLD:
        """Return the settings with a step size, if none was given; share is B/N."""
        if self.step_size is not None:
            return self
        largest = curvature()
        if self.preconditioner is not None:
            scale = float(torch.as_tensor(self.preconditioner).max())
        else:  # a mean gradient over B examples is near sqrt(λ / (N B)), so G is near its inverse
            scale = min(1 / self.floor, math.sqrt(self.num_data**2 * share / largest))
        return replace(self, step_size=0.2 * share / (scale * largest))

    def function(self, gradient: Gradient) -> Update:
        """Return one step of all chains, as a function of tensors."""

        def update(
            position: Tensor,
            slope: Tensor,
            squares: Tensor,
            normal: Tensor,
            step_size: Tensor,
            temperature: Tensor,
            decay: Tensor,
            *batch: Tensor,
        ) -> tuple[Tensor, ...]:
            scale = self._scale(squares)
            drift = 0.5 * step_size * (scale * slope)
            position = position + drift + (step_size * temperature * scale).sqrt() * normal
            value, slope = gradient(position, *batch)
            squares = decay * squares + (1 - decay) * (slope / self.num_data).square()
            return position, slope, squares, value

        return update

    def _scale(self, squares: Tensor) -> Tensor:
        """Return G."""
        if self.preconditioner is not None:
            return torch.as_tensor(self.preconditioner, dtype=squares.dtype, device=squares.device)
        return 1 / (self.floor + squares.sqrt())

    def examples(self, position: Tensor, batch: Batch) -> list[Tensor]:
        """Return arguments of that function."""
        zero, one = torch.zeros_like(position), torch.ones_like(position)
        scalars = [position.new_tensor(value) for value in (1e-4, 1.0, 0.5)]
        return [position, zero, one, one, *scalars, *batch]

    def init(self, gradient: Gradient, update: Update, position: Tensor, batch: Batch) -> State:
        """Return the state at these positions (chains, D).

        Raises:
            ValueError: a preconditioner of another shape.
        """
        shape = torch.as_tensor(1.0 if self.preconditioner is None else self.preconditioner).shape
        if shape not in (torch.Size(), position.shape[1:]):
            raise ValueError(
                f"psgld: expected a preconditioner of shape {tuple(position.shape[1:])}, got {tuple(shape)}"
            )
        slope = gradient(position, *batch)[1]
        pace = StepSchedule.start(self.step_size, self.temperature, position)
        return State(
            position, slope, (slope / self.num_data).square(), position.new_tensor(self.decay), pace
        )

    def step(
        self, update: Update, state: State, number: int, random: Numbers, batch: Batch
    ) -> tuple[State, Info]:
        """Move all chains by one step; the minibatch gives the gradient where they arrive."""
        pace, decay = state.pace.at(number, self.step_size, self.temperature), state.decay
        if number == self.warmup and not self.adapt_draws:
            decay = torch.ones_like(decay)
        position, slope, squares, value = update(
            state.position,
            state.gradient,
            state.squares,
            random.normal,
            pace.step_size,
            pace.temperature,
            decay,
            *batch,
        )
        return State(position, slope, squares, decay, pace), Info(value, pace.step_size, pace.cycle)
