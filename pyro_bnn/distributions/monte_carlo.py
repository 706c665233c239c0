r"""An estimate of KL divergences without a closed form."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kl_monte_carlo"]


def kl_monte_carlo(
    q: torch.distributions.Distribution, p: torch.distributions.Distribution, num_samples: int
) -> Tensor:
    r"""Estimate a KL divergence without bias from reparameterized draws.

    .. math:: \frac1S \sum_s \log q(w_s) - \log p(w_s), \quad w_s \sim q

    Use it where no closed form is known, as for a mixture prior.

    Args:
        q: A reparameterized distribution.
        p: Any distribution with a density on the support of q, of a broadcastable batch shape.
        num_samples: The number S of draws, at least 1; all are held in memory at once.

    Returns:
        The estimate in nats, differentiable, of q's batch shape broadcast with p's.

    Raises:
        ValueError: If ``num_samples`` is less than 1, or q has no reparameterized draws.

    Example:
        >>> kl_monte_carlo(dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0), num_samples=3)
        tensor(0.)
    """
    if num_samples < 1:
        raise ValueError(
            f"kl_monte_carlo: expected num_samples to be at least 1; got {num_samples}"
        )
    if not q.has_rsample:
        raise ValueError(
            f"kl_monte_carlo: {type(q).__name__} has no reparameterized draws; choose a q whose "
            "has_rsample is True"
        )
    w = q.rsample(torch.Size([num_samples]))
    return (q.log_prob(w) - p.log_prob(w)).mean(0)
