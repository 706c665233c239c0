"""Functions of torch and Pyro that have no annotations, with types."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["as_event", "register_kl"]

_KL = TypeVar("_KL", bound=Callable[..., Tensor])


def register_kl(
    q: type[torch.distributions.Distribution], p: type[torch.distributions.Distribution]
) -> Callable[[_KL], _KL]:
    """Return the decorator that registers a function as the KL divergence of q from p."""
    decorator = torch.distributions.kl.register_kl(q, p)
    return cast("Callable[[_KL], _KL]", decorator)


def as_event(distribution: dist.TorchDistribution, axes: int) -> dist.TorchDistribution:
    """Return a distribution whose last batch axes, ``axes`` of them, form one event."""
    event: dist.TorchDistribution = distribution.to_event(axes)
    return event
