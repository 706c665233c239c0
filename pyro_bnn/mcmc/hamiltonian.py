r"""Hamiltonian Monte Carlo, many chains at once.

With a momentum :math:`p \sim \mathcal{N}(0, \Sigma^{-1})` beside the position q, the energy

.. math:: H(q, p) = -\log p(q) + \tfrac12 p^T \Sigma p

is nearly conserved by the leapfrog integrator

.. math::

    p \leftarrow p + \tfrac\varepsilon2 \nabla \log p(q), \qquad
    q \leftarrow q + \varepsilon \Sigma p, \qquad
    p \leftarrow p + \tfrac\varepsilon2 \nabla \log p(q),

which is reversible and preserves volume. Therefore the end of a trajectory of L leapfrogs,
accepted with probability :math:`\min(1, e^{H - H'})`, leaves the posterior invariant.

All chains take the same number of leapfrogs at a time, so each leapfrog is one call of one
compiled function; the number changes from trajectory to trajectory. In the warm-up, all chains
together choose the step size (dual averaging), the diagonal :math:`\Sigma` (the variances of the
draws) and the length of the trajectories (ChEES): see :mod:`~pyro_bnn.mcmc.adaptation`.

Sources: Neal (2011), chapter 5 of the Handbook of MCMC, https://arxiv.org/abs/1206.1901; Hoffman &
Gelman (2014), section 3.2, for dual averaging; Hoffman, Radul & Sountsov (2021), section 3, for
ChEES and the harmonic mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.program import Program

from .adaptation import (
    DualAveraging,
    RunningMoments,
    TrajectoryLength,
    ends_of_windows,
    van_der_corput,
)
from .chains import sample
from .noise import RandomNumbers
from .options import RunOptions
from .sampler import Batch, SamplingError, Update, ValueAndGrad
from .start import Start

__all__ = ["HMC", "hmc"]

DIVERGENCE = 1000.0  # nats of energy lost
SMALLEST_STEP_SIZE = 1e-10


def hmc(
    model: Program,
    data: Batch,
    *,
    step_size: float | None = None,
    trajectory: float | None = None,
    target_acceptance: float = 0.8,
    max_steps: int = 1000,
    chains: int = 4,
    warmup: int = 500,
    draws: int = 500,
    thin: int = 1,
    start: Start = "prior",
    seed: int = 0,
    compile: bool = True,
    progress: bool = True,
    folder: str | Path | None = None,
    resume: bool = False,
) -> Posterior:
    r"""Sample the posterior by Hamiltonian Monte Carlo.

    Args:
        model: A ``BayesianNet`` or any Pyro program, with proper priors and no free parameters.
        data: All the data, ``(x, y)``.
        step_size: :math:`\varepsilon`, held fixed; ``None`` to adapt it to ``target_acceptance``.
        trajectory: The mean of :math:`L\varepsilon`, held fixed; ``None`` to adapt it.
        target_acceptance: The mean acceptance probability to which the step size is adapted. In
            the first half of the warm-up it is the harmonic mean over the chains, which stays near
            zero while any chain is stuck.
        max_steps: The largest L.
        chains: Number of chains, computed together in one process.
        warmup: Number of steps before the first draw, in which step size, scales and trajectory
            length are adapted.
        draws: Number of draws of each chain.
        thin: Number of steps between draws.
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
        The draws, with ``statistics`` (chain, draw): ``lp``, ``acceptance_rate``, ``diverging``,
        ``energy``, ``step_size`` and ``n_steps``.

    Raises:
        ImproperPriorError: A prior is improper.
        ValueError: A setting is out of range, the model has free parameters, or the data are not
            its ``num_data`` examples.
        NonFiniteDensityError: The density is zero at the start; the message names the site.
        SamplingError: The step size falls to zero, or every draw diverges.
        CheckpointError: The folder holds another run, or cannot be read or written.
    """
    sampler = HMC(warmup, step_size, trajectory, target_acceptance, max_steps)
    options = RunOptions(
        sampler.caller,
        chains=chains,
        warmup=warmup,
        draws=draws,
        thin=thin,
        start=start,
        seed=seed,
        compile=compile,
        progress=progress,
        folder=folder,
        resume=resume,
    )
    return sample(sampler, model, data, options)


class State(NamedTuple):
    r"""Everything that the next iteration needs.

    Attributes:
        position: q, (chains, D).
        log_density: :math:`\log p(q)`, (chains,), in nats.
        gradient: :math:`\nabla \log p(q)`, (chains, D).
        variance: The diagonal of :math:`\Sigma`, (D,).
        step_size: The adaptation of :math:`\varepsilon`.
        moments: The moments of the positions since :math:`\Sigma` was last set.
        trajectory: The adaptation of the length of the trajectories.
    """

    position: Tensor
    log_density: Tensor
    gradient: Tensor
    variance: Tensor
    step_size: DualAveraging
    moments: RunningMoments
    trajectory: TrajectoryLength


class Info(NamedTuple):
    """What one iteration reports, each (chains,).

    Attributes:
        lp: Log density after the iteration, in nats.
        acceptance_rate: The probability of acceptance.
        diverging: Whether the trajectory lost more than 1000 nats of energy.
        energy: H at the start of the trajectory, in nats.
        step_size: Size of the leapfrogs.
        n_steps: Number of leapfrogs.
    """

    lp: Tensor
    acceptance_rate: Tensor
    diverging: Tensor
    energy: Tensor
    step_size: Tensor
    n_steps: Tensor


class Proposal(NamedTuple):
    """The end of a trajectory.

    Attributes:
        position: q', (chains, D).
        momentum: p', (chains, D).
        gradient: Gradient of the log density at q', (chains, D).
        log_density: Log density at q', (chains,), in nats.
        acceptance: Probability of acceptance, (chains,).
        fraction: Length of the trajectory, divided by the mean length.
    """

    position: Tensor
    momentum: Tensor
    gradient: Tensor
    log_density: Tensor
    acceptance: Tensor
    fraction: float


@dataclass(frozen=True)
class HMC:
    """The settings of :func:`hmc`."""

    warmup: int
    step_size: float | None = None
    trajectory: float | None = None
    target_acceptance: float = 0.8
    max_steps: int = 1000

    name = "HMC"
    caller = "hmc"

    def __post_init__(self) -> None:
        for name, value in (("step_size", self.step_size), ("trajectory", self.trajectory)):
            if value is not None and not value > 0:
                raise ValueError(
                    f"hmc: expected a {name} above zero, or None to adapt it; got {value}"
                )
        if not 0 < self.target_acceptance < 1 or self.max_steps < 1:
            raise ValueError(
                "hmc: expected a target_acceptance between 0 and 1 and max_steps of at least 1, "
                f"got {self.target_acceptance} and {self.max_steps}"
            )

    def with_default_step_size(self, curvature: Callable[[], float], batch_fraction: float) -> HMC:
        """Return the settings unchanged: the warm-up adapts the step size."""
        return self

    def make_update(self, value_and_grad: ValueAndGrad) -> Update:
        """Return one leapfrog of all chains, as a function of tensors."""

        def leapfrog(
            position: Tensor,
            momentum: Tensor,
            gradient: Tensor,
            step_size: Tensor,
            variance: Tensor,
            *batch: Tensor,
        ) -> tuple[Tensor, ...]:
            momentum = momentum + 0.5 * step_size * gradient
            position = position + step_size * variance * momentum
            log_density, gradient = value_and_grad(position, *batch)
            return position, momentum + 0.5 * step_size * gradient, gradient, log_density

        return leapfrog

    def example_arguments(self, position: Tensor, batch: Batch) -> list[Tensor]:
        """Return arguments of the leapfrog, to compile it with."""
        zero, one = torch.zeros_like(position), torch.ones_like(position[0])
        return [position, zero, zero, 0.01 * one[0], one, *batch]

    def init(
        self, value_and_grad: ValueAndGrad, leapfrog: Update, position: Tensor, batch: Batch
    ) -> State:
        """Return the state of chains at these positions (chains, D)."""
        log_density, gradient = value_and_grad(position, *batch)
        variance = torch.ones_like(position[0])
        step_size = self.step_size or _reasonable_step_size(
            leapfrog, position, gradient, log_density, variance, batch
        )
        return State(
            position,
            log_density,
            gradient,
            variance,
            DualAveraging.start(step_size),
            RunningMoments.start(position),
            TrajectoryLength.start(self.trajectory or 1.0),
        )

    def step(
        self, leapfrog: Update, state: State, number: int, random: RandomNumbers, batch: Batch
    ) -> tuple[State, Info]:
        """Follow one trajectory and accept or reject its end."""
        warming_up = number < self.warmup
        step_size, length = self._step_size_and_length(state, warming_up)
        fraction = 2 * van_der_corput(number + 1)
        steps = min(self.max_steps, max(1, math.ceil(fraction * length / step_size)))

        position, log_density, gradient = state.position, state.log_density, state.gradient
        momentum = random.normal * state.variance.rsqrt()
        energy = _energy(log_density, momentum, state.variance)
        epsilon = state.variance.new_tensor(step_size)
        for _ in range(steps):
            position, momentum, gradient, log_density = leapfrog(
                position, momentum, gradient, epsilon, state.variance, *batch
            )
        loss = _energy(log_density, momentum, state.variance) - energy
        loss = loss.nan_to_num(math.inf, math.inf)
        acceptance = (-loss).clamp_max(0).exp()
        accepted = random.uniform.to(acceptance) < acceptance

        info = Info(
            lp=torch.where(accepted, log_density, state.log_density),
            acceptance_rate=acceptance,
            diverging=loss > DIVERGENCE,
            energy=energy,
            step_size=epsilon.expand(len(acceptance)),
            n_steps=torch.full_like(acceptance, steps),
        )
        rows = accepted[:, None]
        new_state = state._replace(
            position=torch.where(rows, position, state.position),
            log_density=info.lp,
            gradient=torch.where(rows, gradient, state.gradient),
        )
        if warming_up:
            proposal = Proposal(position, momentum, gradient, log_density, acceptance, fraction)
            new_state = self._adapt(state, new_state, proposal, number)
        return new_state, info

    def _step_size_and_length(self, state: State, warming_up: bool) -> tuple[float, float]:
        """Return the step size and the mean length of this trajectory."""
        if warming_up:
            step_size, length = state.step_size.current, state.trajectory.current
        else:
            step_size, length = state.step_size.average, state.trajectory.average
        return self.step_size or step_size, self.trajectory or length

    def _adapt(self, old: State, new: State, proposal: Proposal, number: int) -> State:
        """Return the state with step size, scales and trajectory length adapted to an iteration."""
        step_size = self._adapt_step_size(new.step_size, proposal.acceptance, number)
        moments, trajectory = new.moments.update(new.position), new.trajectory
        if number >= self.warmup // 10:  # until then, chains far from the mode fit any length
            scale = new.variance.rsqrt()
            trajectory = trajectory.update(
                start=(old.position - moments.mean) * scale,
                end=(proposal.position - moments.mean) * scale,
                velocity=proposal.momentum * new.variance.sqrt(),
                acceptance=proposal.acceptance,
                fraction=proposal.fraction,
                shortest=step_size.current,
            )
        if number + 1 in ends_of_windows(self.warmup):
            variance = moments.variance()
            ratio = float((variance / new.variance).sqrt().log().mean().exp())
            new, moments = new._replace(variance=variance), RunningMoments.start(new.position)
            # lengths are now measured in the new standard deviations
            trajectory = trajectory.restart(1 / ratio)
            if self.step_size is None:
                step_size = step_size.restart(step_size.average / ratio)
        return new._replace(step_size=step_size, moments=moments, trajectory=trajectory)

    def _adapt_step_size(
        self, step_size: DualAveraging, acceptance: Tensor, number: int
    ) -> DualAveraging:
        """Return the adaptation of the step size after one iteration.

        Raises:
            SamplingError: The step size has fallen to zero.
        """
        if self.step_size is None:
            mean = acceptance.mean()
            if number < self.warmup // 2:
                # One stuck chain pulls the harmonic mean to zero; the arithmetic mean would
                # leave it behind.
                mean = 1 / (1 / acceptance).mean()
            step_size = step_size.update(float(mean), self.target_acceptance)
        if step_size.current < SMALLEST_STEP_SIZE:
            raise SamplingError(
                f"hmc: the step size fell below {SMALLEST_STEP_SIZE:.0e}, so the log density has "
                "no usable gradient where the chains are; scale the data, make the priors "
                "narrower, or start elsewhere (start=...)"
            )
        return step_size


def _energy(log_density: Tensor, momentum: Tensor, variance: Tensor) -> Tensor:
    """Return H, (chains,), in nats."""
    return 0.5 * (momentum.square() * variance).sum(-1) - log_density


def _reasonable_step_size(
    leapfrog: Update,
    position: Tensor,
    gradient: Tensor,
    log_density: Tensor,
    variance: Tensor,
    batch: Batch,
) -> float:
    """Return the largest step size 2^-k whose first leapfrog most chains would accept."""
    generator = torch.Generator(position.device).manual_seed(0)
    momentum = torch.empty_like(position).normal_(generator=generator)
    energy = _energy(log_density, momentum, variance)
    for k in range(40):
        step_size = variance.new_tensor(2.0**-k)
        end = leapfrog(position, momentum, gradient, step_size, variance, *batch)
        loss = (_energy(end[3], end[1], variance) - energy).nan_to_num(math.inf, math.inf)
        if float((-loss).clamp_max(0).exp().mean()) > 0.8:
            return 2.0**-k
    raise SamplingError(
        "hmc: no step size down to 1e-12 is accepted at the start; check the data, the priors and "
        "the start"
    )
