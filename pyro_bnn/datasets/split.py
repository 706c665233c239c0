"""Hold out a part of the training set."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from .base import Dataset

__all__ = ["hold_out"]


def hold_out(data: Dataset, num: int) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """Return the data set without its last ``num`` training examples, and those examples (x, y).

    Raises:
        ValueError: If no examples would remain for training, or none of some class.
    """
    remaining = len(data.x_train) - num
    if not 0 < remaining <= len(data.x_train):
        raise ValueError(
            f"hold_out: expected fewer than the {len(data.x_train)} training examples of "
            f"{data.name}, got {num}"
        )
    y_train, y_held_out = data.y_train[:remaining], data.y_train[remaining:]
    if data.classes is not None:
        lost_classes = set(y_held_out.tolist()) - set(y_train.tolist())
        if lost_classes:
            raise ValueError(
                f"hold_out: expected examples of every class to remain, but the last {num} "
                f"training examples are all there are of class {min(lost_classes)}; shuffle the "
                "training set"
            )
    training_set = replace(data, x_train=data.x_train[:remaining], y_train=y_train)
    return training_set, (data.x_train[remaining:], y_held_out)
