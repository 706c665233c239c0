"""The protocol of priors, and the sample statements that priors are written with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bnn.distributions import as_event

__all__ = [
    "Prior",
    "PriorMapping",
    "group_shape",
    "positive",
    "sample",
    "sample_from",
    "standard_normal",
]


class Prior(Protocol):
    """A small Pyro program that draws one weight tensor.

    Any function of this signature is a prior, and so is a module whose ``forward`` has it.
    """

    def __call__(self, name: str, shape: torch.Size, group_dim: int | None, /) -> Tensor:
        """Draw the sites of a weight and return the weight.

        Args:
            name: The name of the weight, such as ``"fc1.weight"``; its sites begin with it.
            shape: The shape of the weight.
            group_dim: The axis whose indices a group prior keeps or drops together, or ``None``
                where every element is a group of its own.

        Returns:
            The weight, of shape ``shape``.
        """


PriorMapping = Mapping[str | type[nn.Module], Prior | None]
"""Priors by pattern of parameter names or by layer type; ``None`` for an ordinary parameter."""


def positive(caller: str, argument: str, value: float | Tensor) -> Tensor:
    """Return a value as a tensor of the default dtype; a tensor keeps its dtype.

    Raises:
        ValueError: If an element is not above zero.
    """
    tensor = value
    if not isinstance(tensor, Tensor):
        tensor = torch.as_tensor(tensor, dtype=torch.get_default_dtype())
    if not tensor.is_meta and not bool((tensor > 0).all()):
        raise ValueError(f"{caller}: expected {argument} above zero, got {value}")
    return tensor


def sample(name: str, distribution: dist.TorchDistribution, shape: Sequence[int]) -> Tensor:
    """Draw one tensor of independent elements, as one event."""
    return pyro.sample(name, _independent(distribution, shape))


def sample_from(
    name: str, distribution: dist.TorchDistribution, shape: Sequence[int], initial: Tensor
) -> Tensor:
    """Draw as :func:`sample` does, with a hint to guides where to start."""
    hint: Any = {"initial": initial.expand(torch.Size(shape))}
    return pyro.sample(name, _independent(distribution, shape), infer=hint)


def _independent(
    distribution: dist.TorchDistribution, shape: Sequence[int]
) -> dist.TorchDistribution:
    return as_event(distribution.expand(torch.Size(shape)), len(shape))


def standard_normal(name: str, shape: torch.Size, like: Tensor) -> Tensor:
    """Draw the standard normal site ``NAME.unit`` on the device and in the dtype of ``like``."""
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return sample(f"{name}.unit", dist.Normal(zero, zero + 1, validate_args=False), shape)


def group_shape(shape: Sequence[int], group_dim: int | None) -> list[int]:
    """Return the shape of one scale per group.

    It is the shape of the weight with size one on every axis but ``group_dim``; without
    ``group_dim`` every weight is a group of its own.
    """
    if group_dim is None:
        return list(shape)
    groups = [1] * len(shape)
    groups[group_dim] = shape[group_dim]
    return groups
