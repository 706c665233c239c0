"""PointEstimate: weights without uncertainty, and the point masses that other guides use."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_bnn.distributions import Point
from pyro_bnn.runtime.program import Program

from .factorized import Factorized
from .families import as_event
from .latent import latent_sites, require_real_sites

__all__ = ["PointEstimate", "PointUnits"]


class PointEstimate(Factorized):
    r"""A point mass at every site, :math:`q(w) = \delta(w - \theta)`.

    This is maximum a posteriori estimation. The loss is
    :math:`-\log p(y \mid x, \theta) - \log p(\theta)`, which is ordinary training with weight decay
    under a Gaussian prior: the baseline for every posterior.

    Positive sites are not supported, because their maximum depends on how they are parameterized.
    Under an improper prior there may be no maximum: the density of the log-uniform prior is
    infinite at zero.

    Args:
        model: a ``BayesianNet``, or any Pyro program together with example arguments.
        args: example arguments.
        kwargs: example arguments by keyword.

    Raises:
        ValueError: if a site is positive, or if a program needs example arguments and gets none.
    """

    def __init__(self, model: Program, *args: Any, **kwargs: Any) -> None:
        sites = latent_sites("PointEstimate", model, *args, **kwargs)
        require_real_sites("PointEstimate", sites)
        families = {}
        for name, site in sites.items():
            families[name] = PointMass(site.initial)
        super().__init__(families)


class PointMass(nn.Module):
    r"""All the mass at :math:`\theta`, the parameter ``loc``.

    Args:
        initial: initial value of :math:`\theta`.
    """

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(initial.clone())

    def forward(self) -> dist.TorchDistribution:
        """Return q as one event."""
        return dist.Delta(self.loc, event_dim=self.loc.dim())


class PointUnits(nn.Module):
    r"""All the mass at :math:`\theta`, the parameter ``loc``, for units under group scales.

    Unlike :class:`PointMass`, its distribution is a Gaussian of no width: under local
    reparameterization the units stay undrawn, so that the group scales that multiply them can be
    drawn for each example.

    Args:
        initial: initial value of :math:`\theta`.
    """

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(initial.detach().clone())

    def forward(self) -> dist.TorchDistribution:
        """Return q as one event."""
        return as_event(Point(self.loc))
