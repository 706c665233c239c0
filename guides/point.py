"""PointEstimate: the network as usual, in the place of a posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from .families import Factorized, real_sites

__all__ = ["PointEstimate"]


class PointEstimate(Factorized):
    r"""A point mass at every site: the maximum a posteriori estimate, :math:`q(w) = \delta(w - \theta)`.

    The loss is :math:`-\log p(y \mid x, \theta) - \log p(\theta)`: ordinary training with weight decay under a Gaussian
    prior. The baseline that a posterior has to beat.

    Args:
        model: a ``BayesianNet``, or any Pyro program together with example arguments. Positive sites are not supported:
            their maximum depends on how they are parameterized. Nor has an improper prior a maximum: the density of
            the log-uniform one is infinite at zero.

    Raises:
        ValueError: a positive site; a program without example arguments.
    """

    def __init__(self, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        sites = real_sites("PointEstimate", model, *args, **kwargs)
        super().__init__({name: PointMass(site.initial) for name, site in sites.items()})


class PointMass(nn.Module):
    """All the mass at ``loc``."""

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(initial.clone())

    def forward(self) -> dist.TorchDistribution:
        """Return q as one event."""
        return dist.Delta(self.loc, event_dim=self.loc.dim())
