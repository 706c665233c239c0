"""Where chains start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pyro_bnn.posterior import Posterior

from .log_density import LogDensity

__all__ = ["HasPosterior", "Start", "starting_points"]

PRIOR_ATTEMPTS = 100


@runtime_checkable
class HasPosterior(Protocol):
    """The result of an inference, such as that of :func:`~pyro_bnn.fit`."""

    posterior: Posterior


Start = str | Posterior | HasPosterior | Mapping[str, Tensor]
"""``"prior"``, a posterior or the result of ``fit``, or values of the sites."""


def starting_points(log_density: LogDensity, start: Start, chains: int) -> Tensor:
    """Return one position of finite density for each chain, (chains, D).

    Args:
        log_density: The log density to be sampled.
        start: ``"prior"`` for a draw from the prior for each chain; a posterior or the result of
            :func:`~pyro_bnn.fit` for a draw from it for each chain (the point itself, for a point
            estimate); or values of the sites, for all chains or one for each.
        chains: Number of chains.

    Raises:
        ValueError: A site has no value, or a value of another shape.
        NonFiniteDensityError: The log density at a position is NaN or infinite.
    """
    if isinstance(start, str):
        position = _prior_draws(log_density, chains)
    else:
        values = _values(start, chains)
        position = log_density.unconstrain(values).expand(chains, log_density.size).clone()
    for point in position:
        log_density.require_finite(point)
    return position


def _values(
    start: Posterior | HasPosterior | Mapping[str, Tensor], chains: int
) -> Mapping[str, Tensor]:
    """Return values of the sites, for all chains or one for each."""
    if isinstance(start, HasPosterior):
        start = start.posterior
    if isinstance(start, Posterior):
        return start.sample(chains, seed=0)
    return start


def _prior_draws(log_density: LogDensity, chains: int) -> Tensor:
    """Return a draw from the prior for each chain, (chains, D)."""
    position = _independent_draws(log_density, chains)
    for _ in range(PRIOR_ATTEMPTS):  # a draw from a heavy-tailed prior may overflow
        finite = log_density.value_and_grad(position, *log_density.data)[0].isfinite()
        if bool(finite.all()):
            break
        position = torch.where(finite[:, None], position, _independent_draws(log_density, chains))
    return position


def _independent_draws(log_density: LogDensity, chains: int) -> Tensor:
    return torch.stack([log_density.prior_draw() for _ in range(chains)])
