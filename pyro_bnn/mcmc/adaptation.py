"""What the warm-up of HMC learns from all chains together.

The step size (:class:`DualAveraging`), the scale of every coordinate (:class:`RunningMoments`),
and the length of the trajectories (:class:`TrajectoryLength`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "DualAveraging",
    "RunningMoments",
    "TrajectoryLength",
    "ends_of_windows",
    "van_der_corput",
]


class DualAveraging(NamedTuple):
    r"""The step size at which the mean acceptance probability meets its target.

    With :math:`h_t` the running mean of target minus acceptance,

    .. math:: \log\varepsilon_t = \mu - \frac{\sqrt t}{0.15} h_t, \qquad
        \log\bar\varepsilon_t = t^{-0.75} \log\varepsilon_t
        + (1 - t^{-0.75}) \log\bar\varepsilon_{t-1}.

    The factor 0.15 is three times that of the paper: the acceptance is a mean over chains, whose
    noise is smaller, and a step size that varies less is larger on average.

    Source: Hoffman & Gelman (2014), section 3.2.1.

    Attributes:
        log_current: :math:`\log\varepsilon_t`.
        log_average: :math:`\log\bar\varepsilon_t`.
        mean_error: :math:`h_t`.
        iterations: t.
        centre: :math:`\mu`.
    """

    log_current: float
    log_average: float
    mean_error: float
    iterations: int
    centre: float

    @staticmethod
    def start(step_size: float) -> DualAveraging:
        """Begin at a step size; larger ones are tried first."""
        log = math.log(step_size)
        return DualAveraging(log, log, 0.0, 0, log + math.log(4.0))

    @property
    def current(self) -> float:
        """The step size of the next iteration of the warm-up."""
        return math.exp(self.log_current)

    @property
    def average(self) -> float:
        """The step size after the warm-up."""
        return math.exp(self.log_average)

    def restart(self, step_size: float) -> DualAveraging:
        """Begin again at a step size that is known to be near the right one."""
        log = math.log(step_size)
        return DualAveraging(log, log, 0.0, 0, log + math.log(1.5))

    def update(self, acceptance: float, target: float) -> DualAveraging:
        """Return the state after one iteration."""
        t = self.iterations + 1
        error = (1 - 1 / (t + 10)) * self.mean_error + (target - acceptance) / (t + 10)
        log = self.centre - math.sqrt(t) / 0.15 * error
        weight = t**-0.75
        log_average = weight * log + (1 - weight) * self.log_average
        return DualAveraging(log, log_average, error, t, self.centre)


class RunningMoments(NamedTuple):
    """Mean and variance of all positions of all chains so far.

    Source: Welford (1962); Chan, Golub & LeVeque (1979) for several positions at a time.

    Attributes:
        number: Number of positions.
        mean: Their mean, (D,).
        squares: The sum of their squared deviations from the mean, (D,).
    """

    number: int
    mean: Tensor
    squares: Tensor

    @staticmethod
    def start(position: Tensor) -> RunningMoments:
        """Begin without positions; the argument shows their shape, (chains, D)."""
        return RunningMoments(0, position.mean(0), torch.zeros_like(position[0]))

    def update(self, position: Tensor) -> RunningMoments:
        """Add one position of every chain, (chains, D)."""
        chains, total = len(position), self.number + len(position)
        mean = position.mean(0)
        delta = mean - self.mean
        within = (position - mean).square().sum(0)
        between = delta.square() * (self.number * chains / total)
        squares = self.squares + within + between
        return RunningMoments(total, self.mean + delta * (chains / total), squares)

    def variance(self) -> Tensor:
        """Return the variances (D,), shrunk towards 0.001 by the weight of five more positions."""
        n = self.number
        return (n / (n + 5.0)) * self.squares / max(1, n - 1) + 1e-3 * (5.0 / (n + 5.0))


class TrajectoryLength(NamedTuple):
    r"""The length of the trajectories along which squared distances from the mean change most.

    Maximises, by Adam in :math:`\log T`, the criterion

    .. math:: \frac1T\, \tfrac14\, \mathbb{E}\big(\|q' - \bar q\|^2 - \|q - \bar q\|^2\big)^2

    in coordinates of unit variance. Trajectories that return to their start, or stay near it,
    change nothing.

    Source: Hoffman, Radul & Sountsov (2021), section 3; the division by T is that of Sountsov &
    Hoffman (2021), https://arxiv.org/abs/2110.11576.

    Attributes:
        log_current: :math:`\log T` of the next trajectory.
        log_average: Its running average.
        momentum: Adam's running mean of the gradient.
        square: Adam's running mean of its square.
        change: Running mean of the criterion's squared change, which normalises the gradient.
        iterations: Number of updates.
    """

    log_current: float
    log_average: float
    momentum: float
    square: float
    change: float
    iterations: int

    @staticmethod
    def start(length: float) -> TrajectoryLength:
        """Begin at a length."""
        return TrajectoryLength(math.log(length), math.log(length), 0.0, 0.0, 0.0, 0)

    @property
    def current(self) -> float:
        """The mean length of the next trajectory of the warm-up."""
        return math.exp(self.log_current)

    @property
    def average(self) -> float:
        """The mean length after the warm-up."""
        return math.exp(self.log_average)

    def restart(self, factor: float) -> TrajectoryLength:
        """Begin again at the average length times a factor, which converts it to other units.

        The gradients seen so far are dropped: they came from chains far from the mode.
        """
        return TrajectoryLength.start(self.average * factor)

    def update(
        self,
        start: Tensor,
        end: Tensor,
        velocity: Tensor,
        acceptance: Tensor,
        fraction: float,
        shortest: float,
    ) -> TrajectoryLength:
        """Return the state after one trajectory, in coordinates of zero mean and unit variance.

        Args:
            start: Start of the trajectory of every chain, (chains, D).
            end: Its end, whether it was accepted or not.
            velocity: The velocity at the end.
            acceptance: The probability of acceptance, (chains,), which weights the chains.
            fraction: Length of this trajectory, divided by T.
            shortest: The smallest T allowed.
        """
        change = end.square().sum(-1) - start.square().sum(-1)
        # d change / dT = 2 <end, velocity> fraction
        slope = fraction * change * (end * velocity).sum(-1)
        finite = slope.isfinite() & change.isfinite()
        weight = torch.where(finite, acceptance, 0)
        total_weight = weight.sum()
        if not float(total_weight) > 0:
            return self
        slope, change = torch.where(finite, slope, 0), torch.where(finite, change, 0)
        mean_slope = float((weight * slope).sum() / total_weight)
        mean_square = float((weight * change.square()).sum() / total_weight)

        t = self.iterations + 1
        change_average = 0.9 * self.change + 0.1 * mean_square
        # d log(E[change^2] / T) / d log T = T E[2 change change'] / E[change^2] - 1
        scale = max(change_average / (1 - 0.9**t), 1e-30)
        gradient = 4 * self.current * mean_slope / scale - 1
        momentum = 0.9 * self.momentum + 0.1 * gradient
        square = 0.95 * self.square + 0.05 * gradient**2
        adam = (momentum / (1 - 0.9**t)) / (math.sqrt(square / (1 - 0.95**t)) + 1e-8)
        log = max(math.log(shortest), self.log_current + 0.05 * adam)
        recent = t**-0.5
        log_average = recent * log + (1 - recent) * self.log_average
        return TrajectoryLength(log, log_average, momentum, square, change_average, t)


def ends_of_windows(warmup: int) -> set[int]:
    """Return the iterations after which the scales are set to the variances of a window of draws.

    Each window holds more draws than the one before; the last ends well before the warm-up does.
    """
    if warmup < 20:
        return set()
    return {math.ceil(fraction * warmup) for fraction in (0.1, 0.2, 0.4, 0.8)}


def van_der_corput(number: int) -> float:
    """Return term ``number`` of a sequence that fills (0, 1) evenly.

    The bits of the number, in reverse, are the digits after the binary point. Twice this value
    times the mean length is the length of a trajectory.
    """
    value, place = 0.0, 0.5
    while number:
        value, number, place = value + place * (number & 1), number >> 1, place / 2
    return value
