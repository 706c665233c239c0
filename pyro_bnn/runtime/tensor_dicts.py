"""Operations on dictionaries of tensors, such as the draws of several sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["concatenate", "map_tensors", "stack"]


def map_tensors(
    function: Callable[[Tensor], Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the results of a function for every tensor, under the same names.

    Example:
        >>> map_tensors(torch.sum, {"a": torch.ones(2), "b": torch.ones(3)})
        {'a': tensor(2.), 'b': tensor(3.)}
    """
    results = {}
    for name, tensor in tensors.items():
        results[name] = function(tensor)
    return results


def stack(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of each name, stacked along a new first axis."""
    results = {}
    for name in parts[0]:
        results[name] = torch.stack([part[name] for part in parts])
    return results


def concatenate(parts: Sequence[Mapping[str, Tensor]], dim: int = 0) -> dict[str, Tensor]:
    """Return the tensors of each name, concatenated along an axis."""
    results = {}
    for name in parts[0]:
        results[name] = torch.cat([part[name] for part in parts], dim)
    return results
