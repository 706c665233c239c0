"""What a warm-up learns from all chains together: step size, scales, and length of the trajectories."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DualAveraging", "Moments", "Trajectory"]


class DualAveraging(NamedTuple):
    r"""The step size at which the mean acceptance probability meets its target.

    With :math:`h` the running mean of target minus acceptance,

    .. math:: \log\varepsilon_t = \mu - \frac{\sqrt t}{0.15} h_t, \qquad
        \log\bar\varepsilon_t = t^{-0.75} \log\varepsilon_t + (1 - t^{-0.75}) \log\bar\varepsilon_{t-1}

    The factor is three times that of the paper (0.05): the acceptance is a mean over chains, which needs less patience,
    and a step size that swings less is larger on average.

    Source: Hoffman & Gelman (2014), section 3.2.1.
    """

    log_current: float
    log_average: float
    error: float
    rounds: int
    centre: float

    @staticmethod
    def start(step_size: float) -> DualAveraging:
        """Begin at this step size; larger ones are tried first."""
        log = math.log(step_size)
        return DualAveraging(log, log, 0.0, 0, log + math.log(4.0))

    @property
    def current(self) -> float:
        """The step size of the next iteration."""
        return math.exp(self.log_current)

    @property
    def average(self) -> float:
        """The step size to keep."""
        return math.exp(self.log_average)

    def restart(self, step_size: float) -> DualAveraging:
        """Begin again, nearer to a step size that is known."""
        log = math.log(step_size)
        return DualAveraging(log, log, 0.0, 0, log + math.log(1.5))

    def update(self, acceptance: float, target: float) -> DualAveraging:
        """Return the state after one iteration."""
        t = self.rounds + 1
        error = (1 - 1 / (t + 10)) * self.error + (target - acceptance) / (t + 10)
        log = self.centre - math.sqrt(t) / 0.15 * error
        weight = t**-0.75
        return DualAveraging(
            log, weight * log + (1 - weight) * self.log_average, error, t, self.centre
        )


class Moments(NamedTuple):
    """Mean and sum of squared deviations of all positions of all chains so far (Welford, 1962; Chan et al., 1979)."""

    number: int
    mean: Tensor
    squares: Tensor

    @staticmethod
    def start(position: Tensor) -> Moments:
        """Begin with no positions."""
        return Moments(0, position.mean(0), torch.zeros_like(position[0]))

    def update(self, position: Tensor) -> Moments:
        """Take in one position of every chain."""
        chains, total = len(position), self.number + len(position)
        mean = position.mean(0)
        delta = mean - self.mean
        squares = (
            self.squares
            + (position - mean).square().sum(0)
            + delta.square() * (self.number * chains / total)
        )
        return Moments(total, self.mean + delta * (chains / total), squares)

    def variance(self) -> Tensor:
        """Return the variances, shrunk towards a thousandth as by five more draws, for few of them are little."""
        n = self.number
        return (n / (n + 5.0)) * self.squares / max(1, n - 1) + 1e-3 * (5.0 / (n + 5.0))


class Trajectory(NamedTuple):
    r"""The length of the trajectories at which squared distances from the mean change most.

    Climbs, by Adam in :math:`\log T`, the criterion
    :math:`\tfrac14 \mathbb{E}\big(\|q' - \bar q\|^2 - \|q - \bar q\|^2\big)^2` per unit of T, in coordinates scaled to
    unit variance: trajectories that come back, or go nowhere, change nothing.

    Source: Hoffman, Radul & Sountsov (2021), section 3; divided by T, as by Sountsov & Hoffman (2021),
    https://arxiv.org/abs/2110.11576.
    """

    log_current: float
    log_average: float
    momentum: float
    square: float
    norm: float
    rounds: int

    @staticmethod
    def start(length: float) -> Trajectory:
        """Begin at this length."""
        return Trajectory(math.log(length), math.log(length), 0.0, 0.0, 0.0, 0)

    @property
    def current(self) -> float:
        """The mean length of the next trajectory."""
        return math.exp(self.log_current)

    @property
    def average(self) -> float:
        """The length to keep."""
        return math.exp(self.log_average)

    def restart(self, factor: float) -> Trajectory:
        """Begin again at this length, in other units: what was long before the chains arrived says nothing now."""
        return Trajectory.start(self.average * factor)

    def update(
        self,
        position: Tensor,
        proposal: Tensor,
        momentum: Tensor,
        acceptance: Tensor,
        mean: Tensor,
        variance: Tensor,
        fraction: float,
        step_size: float,
    ) -> Trajectory:
        """Return the length after one trajectory from ``position`` to ``proposal``, ``fraction`` of T long."""
        scale = variance.rsqrt()
        before, after = (position - mean) * scale, (proposal - mean) * scale
        change = after.square().sum(-1) - before.square().sum(-1)
        # d/dT of change is 2 <after, velocity> fraction; the velocity in scaled coordinates is p * sd
        slope = fraction * change * (after * momentum * variance.sqrt()).sum(-1)
        length = self.current
        good = slope.isfinite() & change.isfinite()
        weight = torch.where(good, acceptance, 0)
        if not float(weight.sum()) > 0:
            return self
        slope, change = torch.where(good, slope, 0), torch.where(good, change, 0)
        t = self.rounds + 1
        norm = 0.9 * self.norm + 0.1 * float((weight * change.square()).sum() / weight.sum())
        # d log(E[change^2] / T) / d log T = T E[2 change change'] / E[change^2] - 1
        gradient = (
            4
            * length
            * float((weight * slope).sum() / weight.sum())
            / max(norm / (1 - 0.9**t), 1e-30)
            - 1
        )
        speed = 0.9 * self.momentum + 0.1 * gradient
        square = 0.95 * self.square + 0.05 * gradient**2
        rise = 0.05 * (speed / (1 - 0.9**t)) / (math.sqrt(square / (1 - 0.95**t)) + 1e-8)
        log = max(math.log(step_size), self.log_current + rise)
        recent = t**-0.5
        return Trajectory(
            log, recent * log + (1 - recent) * self.log_average, speed, square, norm, t
        )
