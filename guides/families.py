"""Variational families of one site: Gaussians for real values, log-normals for positive ones.

A family is a module that holds the variational parameters of one site; calling it returns the
distribution of the site.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from .latent import LatentSite, elementwise_support

__all__ = ["Gaussian", "LogNormal", "as_event", "default_family"]


class Gaussian(nn.Module):
    r"""Independent Gaussians, :math:`q(w) = \mathcal{N}(w; \mu, \sigma^2)`.

    Its parameters are ``loc``, :math:`\mu`, and ``log_scale``, :math:`\log\sigma`.

    Args:
        initial: initial value of :math:`\mu`, of the shape of the site.
        init_scale: initial value of :math:`\sigma`, the same for all elements.
    """

    def __init__(self, initial: Tensor, init_scale: float = 1e-2) -> None:
        super().__init__()
        self.loc = nn.Parameter(initial.detach().clone())
        self.log_scale = nn.Parameter(torch.full_like(initial, init_scale).log())

    def forward(self) -> dist.TorchDistribution:
        """Return q as one event."""
        return as_event(dist.Normal(self.loc, self.log_scale.exp(), validate_args=False))


class LogNormal(nn.Module):
    r"""Independent log-normals, :math:`\log z \sim \mathcal{N}(\mu, \sigma^2)`.

    Its parameters are ``loc``, :math:`\mu`, and ``log_scale``, :math:`\log\sigma`.

    Args:
        initial: initial value of the median :math:`e^\mu`, of the shape of the site.
        init_scale: initial value of :math:`\sigma`, the same for all elements.
    """

    def __init__(self, initial: Tensor, init_scale: float = 1e-2) -> None:
        super().__init__()
        self.loc = nn.Parameter(initial.detach().log())
        self.log_scale = nn.Parameter(torch.full_like(initial, init_scale).log())

    def forward(self) -> dist.TorchDistribution:
        """Return q as one event."""
        q = dist.LogNormal(self.loc, self.log_scale.exp(), validate_args=False)
        return as_event(q)


def as_event(
    distribution: dist.TorchDistribution, axes: int | None = None
) -> dist.TorchDistribution:
    """Return a distribution with its last batch axes, by default all, as one event."""
    if axes is None:
        axes = len(distribution.batch_shape)
    event: dist.TorchDistribution = distribution.to_event(axes)
    return event


def default_family(
    guide: str, name: str, site: LatentSite, init_scale: float
) -> Gaussian | LogNormal:
    """Return the family for the support of a site.

    Args:
        guide: name of the guide, for the error.
        name: name of the site, for the error.
        site: the site.
        init_scale: initial standard deviation, of the logarithm if the site is positive.

    Raises:
        ValueError: if the site is neither real nor positive.
    """
    support = elementwise_support(site.support)
    if support is constraints.real:
        return Gaussian(site.initial, init_scale)
    if support in (constraints.positive, constraints.nonnegative):
        return LogNormal(site.initial, init_scale)
    raise ValueError(
        f"{guide}: site {name!r} has the support {support}; expected a real or a "
        "positive site. Write its guide by hand"
    )
