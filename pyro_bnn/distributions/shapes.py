"""Batch shapes of distributions."""

from __future__ import annotations

import torch

__all__ = ["Shape", "broadcast_shapes"]

Shape = torch.Size | tuple[int, ...] | list[int]


def broadcast_shapes(first: torch.Size, second: torch.Size) -> torch.Size:
    """Return the common shape, quickly where the two are equal.

    ``torch.broadcast_shapes`` takes 60 microseconds for that, at every training step.
    """
    if first == second:
        return first
    shape: torch.Size = torch.broadcast_shapes(first, second)
    return shape
