"""Checks of the data that a caller passes in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "DataError",
    "data_error",
    "require_finite",
    "require_index",
    "require_labels",
    "validate",
]


class DataError(ValueError):
    """Raised for data that is missing, unreadable, corrupted, or of an unexpected kind.

    The message names the file or field, what was expected, what was found, and what to do.
    """


def validate(x: Tensor, y: Tensor, classes: int | None = None) -> None:
    """Check that inputs and targets can be trained on.

    Args:
        x: Inputs (n, ...).
        y: Targets (n, ...); labels (n,) if ``classes`` is given.
        classes: The number of classes, or ``None`` for regression.

    Raises:
        DataError: If x or y is not a tensor, is empty, differs in length from the other, or
            contains NaN or infinity. With ``classes``, also if y is not a vector of integers from
            0 to ``classes - 1``.

    Example:
        >>> validate(torch.zeros(3, 2), torch.tensor([0, 4, 1]), classes=3)
        Traceback (most recent call last):
            ...
        pyro_bnn.runtime.validation.DataError: y: expected labels from 0 to 2, found 4 at index 1. \
Number the classes from 0.
    """
    _require_examples("x", x)
    _require_examples("y", y)
    if len(x) != len(y):
        hint = "Pass one target for each example."
        raise data_error("x and y", "equal lengths", f"{len(x)} and {len(y)}", hint)
    require_finite(x, "x", "Remove or fill in these examples.")
    require_finite(y, "y", "Remove these examples.")
    if classes is not None:
        _require_label_vector(y, classes)


def data_error(subject: str | Path, expected: str, received: str, hint: str) -> DataError:
    """Return the error that names what was expected, what was found, and what to do.

    Args:
        subject: The file or field that is wrong.
        expected: What it should hold.
        received: What it holds.
        hint: What to do; a whole sentence.
    """
    return DataError(f"{subject}: expected {expected}, found {received}. {hint}")


def require_finite(values: Tensor, subject: str, hint: str) -> None:
    """Raise :class:`DataError` at the first NaN or infinity."""
    if torch.isfinite(values.sum()):  # one cheap pass: a sum is finite only if every term is
        return
    places = (~torch.isfinite(values)).nonzero()
    if len(places):  # otherwise the sum alone has overflowed
        value, index = values[tuple(places[0])].item(), places[0].tolist()
        received = f"{value} at index {index} ({len(places)} of {values.numel()} are not)"
        raise data_error(subject, "finite numbers", received, hint)


def require_labels(labels: Tensor, classes: int, subject: str | Path, hint: str) -> None:
    """Raise :class:`DataError` at the first label outside 0..classes-1."""
    outside = ((labels.long() < 0) | (labels.long() >= classes)).nonzero()
    if len(outside):
        index = int(outside[0])
        received = f"{labels[index].item()} at index {index}"
        raise data_error(subject, f"labels from 0 to {classes - 1}", received, hint)


def require_index(name: str, value: int, stop: int) -> None:
    """Raise :class:`DataError` unless a value is an integer in 0..stop-1."""
    if not isinstance(value, int | np.integer) or not 0 <= value < stop:
        hint = "Pass one of these."
        raise data_error(name, f"an integer from 0 to {stop - 1}", repr(value), hint)


def _require_examples(name: str, values: Tensor) -> None:
    """Check that a value is a tensor with at least one example."""
    if not isinstance(values, Tensor):
        hint = "Convert it with torch.as_tensor."
        raise data_error(name, "a tensor", type(values).__name__, hint)
    if values.ndim == 0 or values.numel() == 0:
        hint = "Examples lie along axis 0."
        raise data_error(name, "at least one example", f"shape {tuple(values.shape)}", hint)


def _require_label_vector(y: Tensor, classes: int) -> None:
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        expected = f"integer labels of {classes} classes"
        raise data_error("y", expected, str(y.dtype), "Convert them with y.long().")
    if y.ndim != 1:
        hint = "Use y.squeeze(1) for a column, y.argmax(1) for one-hot rows."
        raise data_error("y", f"labels of shape ({len(y)},)", f"shape {tuple(y.shape)}", hint)
    require_labels(y, classes, "y", "Number the classes from 0.")
