r"""Hamiltonian Monte Carlo, many chains at once.

With a momentum :math:`p \sim \mathcal{N}(0, \Sigma^{-1})` beside the position q, the energy
:math:`H(q, p) = -U(q) + \tfrac12 p^T \Sigma p` is nearly conserved by the leapfrog integrator

.. math::

    p \leftarrow p + \tfrac\varepsilon2 \nabla U(q), \qquad q \leftarrow q + \varepsilon \Sigma p, \qquad
    p \leftarrow p + \tfrac\varepsilon2 \nabla U(q),

which is reversible and keeps volumes. So the end of a trajectory of L of them, accepted with probability
:math:`\min(1, e^{H - H'})`, leaves the posterior invariant.

All chains take the same number of leapfrogs at a time, so each of these is one call of one compiled function; the
number changes from trajectory to trajectory. In the warm-up, all chains together choose the step size (dual averaging),
the diagonal :math:`\Sigma` (the variances of the draws) and the length of the trajectories (ChEES).

Sources: Neal (2011), chapter 5 of the Handbook of MCMC, https://arxiv.org/abs/1206.1901; Hoffman & Gelman (2014),
section 3.2, for dual averaging; Hoffman, Radul & Sountsov (2021), section 3, for ChEES and the harmonic mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_bnn.posterior import Posterior

from .adaptation import DualAveraging, Moments, Trajectory
from .chains import sample
from .noise import Numbers
from .sampler import Batch, Gradient, SamplingError, Update

__all__ = ["HMC", "hmc"]


def hmc(
    model: Callable[..., Any],
    data: tuple[Tensor, ...],
    *,
    chains: int = 4,
    warmup: int = 500,
    draws: int = 500,
    seed: int = 0,
    step_size: float | None = None,
    trajectory: float | None = None,
    target_acceptance: float = 0.8,
    max_steps: int = 1000,
    **run: Any,
) -> Posterior:
    r"""Sample the posterior by Hamiltonian Monte Carlo.

    Args:
        model: a ``BayesianNet`` or any Pyro program, with proper priors and no free parameters.
        data: all the data, ``(x, y)``.
        chains: how many, computed together in one process.
        warmup: iterations in which step size, scales and trajectory length are adapted; not kept.
        draws: iterations that are kept, for each chain.
        seed: of all random numbers.
        step_size: :math:`\varepsilon`, held fixed; ``None`` to adapt it to ``target_acceptance``.
        trajectory: the mean of :math:`L\varepsilon`, held fixed; ``None`` to adapt it.
        target_acceptance: the mean acceptance probability that the step size is adapted to; in the first half of the
            warm-up the harmonic mean over the chains, which is near zero as long as any chain is stuck.
        max_steps: the largest L.
        run: ``start``, ``thin``, ``folder``, ``resume``, ``progress``, ``compile``: see
            :func:`~pyro_bnn.mcmc.chains.sample`.

    Raises:
        ImproperPriorError: an improper prior.
        ValueError: settings that make no sense, free parameters, data that are not ``num_data`` examples.
        NonFiniteDensityError: a start of density zero, naming the site.
        SamplingError: a step size that falls to zero.
    """
    settings = HMC(warmup, step_size, trajectory, target_acceptance, max_steps)
    return sample(
        settings, model, data, chains=chains, warmup=warmup, draws=draws, seed=seed, **run
    )


class State(NamedTuple):
    """What the next iteration needs: where the chains are, and what the warm-up has learned."""

    position: Tensor
    value: Tensor
    gradient: Tensor
    variance: Tensor
    step_size: DualAveraging
    moments: Moments
    trajectory: Trajectory


class Info(NamedTuple):
    """What a person wants to see of an iteration, for each chain."""

    lp: Tensor
    acceptance_rate: Tensor
    diverging: Tensor
    energy: Tensor
    step_size: Tensor
    n_steps: Tensor


@dataclass(frozen=True)
class HMC:
    """The settings of :func:`hmc`."""

    warmup: int
    step_size: float | None = None
    trajectory: float | None = None
    target_acceptance: float = 0.8
    max_steps: int = 1000

    name = "HMC"

    def __post_init__(self) -> None:
        for name in ("step_size", "trajectory"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(
                    f"hmc: expected a {name} above zero, or None to have it adapted; got {value}"
                )
        if not 0 < self.target_acceptance < 1 or self.max_steps < 1:
            raise ValueError(
                "hmc: expected a target_acceptance between 0 and 1 and max_steps of at least 1, "
                f"got {self.target_acceptance} and {self.max_steps}"
            )

    def chosen(self, curvature: Callable[[], float], share: float) -> HMC:
        """Return the settings as they are: what was left open is adapted in the warm-up."""
        return self

    def function(self, gradient: Gradient) -> Update:
        """Return one leapfrog of all chains, as a function of tensors."""

        def leapfrog(
            position: Tensor,
            momentum: Tensor,
            slope: Tensor,
            step_size: Tensor,
            variance: Tensor,
            *batch: Tensor,
        ) -> tuple[Tensor, ...]:
            momentum = momentum + 0.5 * step_size * slope
            position = position + step_size * variance * momentum
            value, slope = gradient(position, *batch)
            return position, momentum + 0.5 * step_size * slope, slope, value

        return leapfrog

    def examples(self, position: Tensor, batch: Batch) -> list[Tensor]:
        """Return arguments of that function."""
        zero, one = torch.zeros_like(position), torch.ones_like(position[0])
        return [position, zero, zero, 0.01 * one[0], one, *batch]

    def init(self, gradient: Gradient, leapfrog: Update, position: Tensor, batch: Batch) -> State:
        """Return the state at these positions (chains, D)."""
        value, slope = gradient(position, *batch)
        variance = torch.ones_like(position[0])
        first = self.step_size or _reasonable_step(
            leapfrog, position, slope, value, variance, batch
        )
        length = Trajectory.start(self.trajectory or 1.0)
        return State(
            position,
            value,
            slope,
            variance,
            DualAveraging.start(first),
            Moments.start(position),
            length,
        )

    def step(
        self, leapfrog: Update, state: State, number: int, random: Numbers, batch: Batch
    ) -> tuple[State, Info]:
        """Run one trajectory and accept or reject its end."""
        warming = number < self.warmup
        epsilon = self.step_size or (
            state.step_size.current if warming else state.step_size.average
        )
        length = state.trajectory.current if warming else state.trajectory.average
        fraction = 2 * _van_der_corput(number + 1)
        steps = min(
            self.max_steps, max(1, math.ceil(fraction * (self.trajectory or length) / epsilon))
        )

        position, value, gradient = state.position, state.value, state.gradient
        momentum = random.normal * state.variance.rsqrt()
        before = _energy(value, momentum, state.variance)
        size = state.variance.new_tensor(epsilon)
        for _ in range(steps):
            position, momentum, gradient, value = leapfrog(
                position, momentum, gradient, size, state.variance, *batch
            )
        loss = (_energy(value, momentum, state.variance) - before).nan_to_num(math.inf, math.inf)
        acceptance = (-loss).clamp_max(0).exp()
        accepted = random.uniform.to(acceptance) < acceptance
        info = Info(
            torch.where(accepted, value, state.value),
            acceptance,
            loss > 1000,
            before,
            size.expand(len(acceptance)),
            torch.full_like(acceptance, steps),
        )
        chosen = accepted[:, None]
        new = state._replace(
            position=torch.where(chosen, position, state.position),
            value=info.lp,
            gradient=torch.where(chosen, gradient, state.gradient),
        )
        if warming:
            new = self._adapted(state, new, number, position, momentum, acceptance, fraction)
        return new, info

    def _adapted(
        self,
        old: State,
        new: State,
        number: int,
        proposal: Tensor,
        momentum: Tensor,
        acceptance: Tensor,
        u: float,
    ) -> State:
        """Return the state with what this iteration taught."""
        step_size = new.step_size
        if self.step_size is None:
            # at first the harmonic mean, which one chain that is stuck pulls to zero; a mean leaves that chain behind
            arriving = number < self.warmup // 2
            mean = 1 / (1 / acceptance).mean() if arriving else acceptance.mean()
            step_size = step_size.update(float(mean), self.target_acceptance)
        if step_size.current < 1e-10:
            raise SamplingError(
                "hmc: the step size fell below 1e-10, so the log-density has no usable gradient where the chains are; "
                "scale the data, make the priors narrower, or start elsewhere (start=...)"
            )
        moments = new.moments.update(new.position)
        trajectory = new.trajectory
        if (
            number >= self.warmup // 10
        ):  # chains that still fall towards the mode come from far at any length
            trajectory = trajectory.update(
                old.position,
                proposal,
                momentum,
                acceptance,
                moments.mean,
                new.variance,
                u,
                step_size.current,
            )
        if number + 1 in _windows(self.warmup):
            scale = moments.variance()
            ratio = float((scale / new.variance).sqrt().log().mean().exp())
            new, moments = new._replace(variance=scale), Moments.start(new.position)
            # positions are now measured in their own standard deviations, so a step of the old length is a shorter one
            trajectory = trajectory.restart(1 / ratio)
            if self.step_size is None:
                step_size = step_size.restart(step_size.average / ratio)
        return new._replace(step_size=step_size, moments=moments, trajectory=trajectory)


def _energy(value: Tensor, momentum: Tensor, variance: Tensor) -> Tensor:
    return 0.5 * (momentum.square() * variance).sum(-1) - value


def _windows(warmup: int) -> set[int]:
    """Return after which iterations the scales are set anew: each time from more draws, none near the end."""
    return {math.ceil(share * warmup) for share in (0.1, 0.2, 0.4, 0.8)} if warmup >= 20 else set()


def _van_der_corput(number: int) -> float:
    """Return term ``number`` of a sequence that fills (0, 1) evenly: the bits of the number, mirrored at the point."""
    value, place = 0.0, 0.5
    while number:
        value, number, place = value + place * (number & 1), number >> 1, place / 2
    return value


def _reasonable_step(
    leapfrog: Update,
    position: Tensor,
    gradient: Tensor,
    value: Tensor,
    variance: Tensor,
    batch: Batch,
) -> float:
    """Return the largest step size 2^-k whose first leapfrog most chains would accept."""
    generator = torch.Generator(position.device).manual_seed(0)
    momentum = torch.empty_like(position).normal_(generator=generator)
    before = _energy(value, momentum, variance)
    for k in range(40):
        _, p, _, v = leapfrog(
            position, momentum, gradient, variance.new_tensor(2.0**-k), variance, *batch
        )
        loss = (_energy(v, p, variance) - before).nan_to_num(math.inf, math.inf)
        if float((-loss).clamp_max(0).exp().mean()) > 0.8:
            return 2.0**-k
    raise SamplingError(
        "hmc: no step size down to 1e-12 is accepted at the start; check data, priors and start"
    )
