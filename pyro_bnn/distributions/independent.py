"""The distribution of one element of a site whose elements are independent."""

from __future__ import annotations

from torch.distributions import Distribution, Independent

__all__ = ["base_distribution"]


def base_distribution(distribution: Distribution) -> Distribution:
    """Return the elementwise distribution inside any number of ``Independent`` wrappers.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> base_distribution(dist.Normal(torch.zeros(2, 3), 1.0).to_event(2)).batch_shape
        torch.Size([2, 3])
    """
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution
