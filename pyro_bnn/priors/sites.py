"""Sites that priors are written with: tensors of independent elements, one scale per group, where a guide may start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["Prior", "group_shape", "positive", "sample", "sample_from", "standard_normal"]

Prior = Callable[[str, torch.Size, int | None], Tensor]


def positive(owner: str, argument: str, value: float | Tensor) -> Tensor:
    """Return the value as a tensor, refusing what is not above zero."""
    tensor = (
        torch.as_tensor(value, dtype=torch.get_default_dtype())
        if not isinstance(value, Tensor)
        else value
    )
    if not tensor.is_meta and not bool((tensor > 0).all()):
        raise ValueError(f"{owner}: expected {argument} above zero, got {value}")
    return tensor


def sample(name: str, distribution: dist.TorchDistribution, shape: Sequence[int]) -> Tensor:
    """Sample one tensor of independent elements as one event."""
    return pyro.sample(name, distribution.expand(torch.Size(shape)).to_event(len(shape)))


def sample_from(
    name: str, distribution: dist.TorchDistribution, shape: Sequence[int], initial: Tensor
) -> Tensor:
    """Sample a tensor of independent elements and tell guides where to start."""
    fn = distribution.expand(torch.Size(shape)).to_event(len(shape))
    hint: Any = {"initial": initial.expand(torch.Size(shape))}
    return pyro.sample(name, fn, infer=hint)


def standard_normal(name: str, shape: torch.Size, like: Tensor) -> Tensor:
    """Sample the standard normal site ``NAME.unit`` on the device and in the dtype of ``like``."""
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return sample(f"{name}.unit", dist.Normal(zero, zero + 1, validate_args=False), shape)


def group_shape(shape: Sequence[int], group_dim: int | None) -> list[int]:
    """Return the shape of one scale per group: the weight's own with every axis but ``group_dim`` of size one."""
    return [size if group_dim in (None, axis) else 1 for axis, size in enumerate(shape)]
