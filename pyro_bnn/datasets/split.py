"""Hold out a part of the training set."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from pyro_bnn.datasets.base import Dataset

__all__ = ["hold_out"]


def hold_out(data: Dataset, num: int) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """Return the data set without its last ``num`` training examples, and these.

    Raises:
        ValueError: none would be left to train on, or none of some class.
    """
    left = len(data.x_train) - num
    if not 0 < left <= len(data.x_train):
        there = f"the {len(data.x_train)} training examples of {data.name}"
        raise ValueError(f"hold-out: expected fewer than {there}, got {num}")
    held_out = data.x_train[left:], data.y_train[left:]
    if data.classes is not None and (
        gone := set(held_out[1].tolist()) - set(data.y_train[:left].tolist())
    ):
        raise ValueError(
            f"hold-out: the last {num} examples are all that there are of class {min(gone)}; shuffle them"
        )
    return replace(data, x_train=data.x_train[:left], y_train=data.y_train[:left]), held_out
