r"""SGLD with the diagonal preconditioner of RMSprop (pSGLD), many chains at once.

.. math::

    q \leftarrow q + \tfrac{\varepsilon_t}{2}\, G\, \nabla \log \hat p(q)
    + \sqrt{\varepsilon_t T\, G}\; \xi, \qquad
    G = \frac{1}{\lambda + \sqrt V}, \qquad
    V \leftarrow a V + (1 - a)\, \bar g^2

:math:`\log \hat p` is the log density on a minibatch, in nats for the whole data set, and
:math:`\bar g = \nabla \log \hat p / N` is its gradient per example (it includes the prior, which
the paper leaves out and which is of order 1/N). Each chain has a V of its own, which begins with
the gradient at the start.

The term :math:`\Gamma_i = \partial G_i / \partial q_i` of the exact drift is left out, as in the
experiments of the paper: it needs second derivatives of the density. It is of order 1 - a, because
V averages over 1 / (1 - a) steps, and leaving it out causes a bias that does not vanish with the
step size. ``adapt_draws=False`` holds V fixed after the warm-up, where :math:`\Gamma` is zero.

Source: Li, Chen, Carlson & Carin (2016), algorithm 1, https://arxiv.org/abs/1512.07666.
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

from .chains import require_tensors, sample
from .noise import RandomNumbers
from .options import RunOptions
from .sampler import Batch, Update, ValueAndGrad
from .schedules import StepSize, sampling_steps
from .start import Start
from .step_schedule import ScheduledInfo, StepSchedule, require_schedule

__all__ = ["PSGLD", "psgld"]


def psgld(
    model: Program,
    data: Batch,
    *,
    step_size: StepSize | None = None,
    temperature: float = 1.0,
    decay: float = 0.99,
    floor: float = 1e-5,
    preconditioner: float | Tensor | None = None,
    adapt_draws: bool = True,
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
    r"""Sample the posterior, approximately, by preconditioned SGLD.

    Args:
        model: A ``BayesianNet`` or any Pyro program, with proper priors and no free parameters.
        data: All the data, ``(x, y)``.
        step_size: :math:`\varepsilon`, a number or a function of the step number. The step along
            coordinate i is :math:`\varepsilon G_i`, which has the scale of a posterior variance.
            ``None`` for :math:`0.2\,(B/N)/(\lambda G)`, with the curvature :math:`\lambda`
            measured at the start (see :mod:`~pyro_bnn.mcmc.curvature`) and the G to be expected
            there.
        temperature: T; the target is the posterior to the power 1/T. One gives the posterior.
        decay: a, the fraction of V that each step keeps.
        floor: :math:`\lambda`, which bounds G by its inverse.
        preconditioner: G itself, held fixed: a number, or a tensor (D,) in the order of the sites.
            ``None`` to adapt it.
        adapt_draws: Whether G is adapted after the warm-up as well, as in the paper. ``False``
            removes the bias of a G that changes, and suits a warm-up long enough to find G.
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
    num_data = len(require_tensors("psgld", data)[0])
    sampler = PSGLD(
        step_size, temperature, num_data, warmup, decay, floor, preconditioner, adapt_draws
    )
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
        gradient: :math:`\nabla \log \hat p(q)`, (chains, D).
        squares: V, (chains, D).
        decay: a, (); one where V is held fixed.
        schedule: Step size and temperature.
    """

    position: Tensor
    gradient: Tensor
    squares: Tensor
    decay: Tensor
    schedule: StepSchedule


@dataclass(frozen=True)
class PSGLD:
    """The settings of :func:`psgld`."""

    step_size: StepSize | None = None
    temperature: float = 1.0
    num_data: int = 1
    warmup: int = 0
    decay: float = 0.99
    floor: float = 1e-5
    preconditioner: float | Tensor | None = None
    adapt_draws: bool = True

    name = "pSGLD"
    caller = "psgld"

    def __post_init__(self) -> None:
        require_schedule(self)
        if not (0 <= self.decay <= 1 and self.floor > 0):
            raise ValueError(
                "psgld: expected a decay from 0 to 1 and a floor above zero, "
                f"got {self.decay} and {self.floor}"
            )
        if self.preconditioner is not None:
            positive = torch.as_tensor(self.preconditioner) > 0
            if not bool(positive.all()):
                raise ValueError(
                    f"psgld: expected a preconditioner above zero, got {self.preconditioner}"
                )

    def with_default_step_size(
        self, curvature: Callable[[], float], batch_fraction: float
    ) -> PSGLD:
        """Return the settings with a step size, if they have none."""
        if self.step_size is not None:
            return self
        largest = curvature()
        if self.preconditioner is not None:
            scale = float(torch.as_tensor(self.preconditioner).max())
        else:  # a mean gradient over B examples is near sqrt(λ / (N B)), and G near its inverse
            scale = math.sqrt(self.num_data**2 * batch_fraction / largest)
            scale = min(1 / self.floor, scale)
        return replace(self, step_size=0.2 * batch_fraction / (scale * largest))

    def make_update(self, value_and_grad: ValueAndGrad) -> Update:
        """Return one step of all chains, as a function of tensors."""

        def update(
            position: Tensor,
            gradient: Tensor,
            squares: Tensor,
            normal: Tensor,
            step_size: Tensor,
            temperature: Tensor,
            decay: Tensor,
            *batch: Tensor,
        ) -> tuple[Tensor, ...]:
            scale = self._scale(squares)
            drift = 0.5 * step_size * (scale * gradient)
            position = position + drift + (step_size * temperature * scale).sqrt() * normal
            log_density, gradient = value_and_grad(position, *batch)
            squares = decay * squares + (1 - decay) * (gradient / self.num_data).square()
            return position, gradient, squares, log_density

        return update

    def _scale(self, squares: Tensor) -> Tensor:
        """Return G."""
        if self.preconditioner is not None:
            return torch.as_tensor(self.preconditioner, dtype=squares.dtype, device=squares.device)
        return 1 / (self.floor + squares.sqrt())

    def example_arguments(self, position: Tensor, batch: Batch) -> list[Tensor]:
        """Return arguments of the update, to compile it with."""
        zero, one = torch.zeros_like(position), torch.ones_like(position)
        step_size, temperature = position.new_tensor(1e-4), position.new_tensor(1.0)
        decay = position.new_tensor(0.5)
        return [position, zero, one, one, step_size, temperature, decay, *batch]

    def init(
        self, value_and_grad: ValueAndGrad, update: Update, position: Tensor, batch: Batch
    ) -> State:
        """Return the state of chains at these positions (chains, D).

        Raises:
            ValueError: The preconditioner has another shape.
        """
        if self.preconditioner is not None:
            shape, expected = torch.as_tensor(self.preconditioner).shape, position.shape[1:]
            if shape not in (torch.Size(), expected):
                raise ValueError(
                    f"psgld: expected a preconditioner of shape {tuple(expected)}, "
                    f"got {tuple(shape)}"
                )
        _, gradient = value_and_grad(position, *batch)
        return State(
            position,
            gradient,
            squares=(gradient / self.num_data).square(),
            decay=position.new_tensor(self.decay),
            schedule=StepSchedule.start(self, position),
        )

    def step(
        self, update: Update, state: State, number: int, random: RandomNumbers, batch: Batch
    ) -> tuple[State, ScheduledInfo]:
        """Take one step of all chains; the minibatch gives the gradient at its end."""
        schedule, decay = state.schedule.at(number, self), state.decay
        if number == self.warmup and not self.adapt_draws:
            decay = torch.ones_like(decay)
        position, gradient, squares, log_density = update(
            state.position,
            state.gradient,
            state.squares,
            random.normal,
            schedule.step_size,
            schedule.temperature,
            decay,
            *batch,
        )
        info = ScheduledInfo(log_density, schedule.step_size, schedule.cycle)
        return State(position, gradient, squares, decay, schedule), info
