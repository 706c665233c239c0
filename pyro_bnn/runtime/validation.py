"""Checks of data that a person passes in."""

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
    """Raised for data that is missing, unreadable, corrupted, or not what it should be.

    The text names the file or field, what was expected, what was found, and what to do about it.
    """


def validate(x: Tensor, y: Tensor, classes: int | None = None) -> None:
    """Check that inputs x (n, ...) and targets y (n, ...) can be trained on; with `classes`, that y (n,) holds labels.

    Raises `DataError` if x or y is no tensor, is empty, differs in length from the other, or holds a number that is
    not finite; with `classes`, also if y is not a vector of integers in 0..classes-1.

    >>> validate(torch.zeros(3, 2), torch.tensor([0, 4, 1]), classes=3)
    Traceback (most recent call last):
        ...
    pyro_bnn.runtime.validation.DataError: y: expected labels from 0 to 2, found 4 at index 1. Number the classes from 0.
    """
    for name, values in (("x", x), ("y", y)):
        if not isinstance(values, Tensor):
            raise data_error(
                name, "a tensor", type(values).__name__, "Convert it with torch.as_tensor."
            )
        if values.ndim == 0 or values.numel() == 0:
            raise data_error(
                name,
                "at least one example",
                f"shape {tuple(values.shape)}",
                "Examples lie along axis 0.",
            )
    if len(x) != len(y):
        raise data_error(
            "x and y",
            "equal lengths",
            f"{len(x)} and {len(y)}",
            "Pass one target for each example.",
        )
    require_finite(x, "x", "Remove or fill in these examples.")
    require_finite(y, "y", "Remove these examples.")
    if classes is None:
        return
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise data_error(
            "y", f"integer labels of {classes} classes", str(y.dtype), "Convert them with y.long()."
        )
    if y.ndim != 1:
        way_out = "Use y.squeeze(1) for a column, y.argmax(1) for one-hot rows."
        raise data_error("y", f"labels of shape ({len(x)},)", f"shape {tuple(y.shape)}", way_out)
    require_labels(y, classes, "y", "Number the classes from 0.")


def data_error(what: str | Path, expected: str, found: str, way_out: str) -> DataError:
    """Return the error that names what was expected, what was found, and the remedy."""
    return DataError(f"{what}: expected {expected}, found {found}. {way_out}")


def require_finite(values: Tensor, what: str, way_out: str) -> None:
    """Raise :class:`DataError` at the first NaN or infinity."""
    if torch.isfinite(values.sum()):  # one cheap pass: a sum is finite only if every term is
        return
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        found = f"{values[tuple(bad[0])].item()} at index {bad[0].tolist()} ({len(bad)} of {values.numel()} are not)"
        raise data_error(what, "finite numbers", found, way_out)


def require_labels(labels: Tensor, classes: int, what: str | Path, way_out: str) -> None:
    """Raise :class:`DataError` at the first label outside 0..classes-1."""
    outside = ((labels.long() < 0) | (labels.long() >= classes)).nonzero()
    if len(outside):
        first = int(outside[0])
        raise data_error(
            what,
            f"labels from 0 to {classes - 1}",
            f"{labels[first].item()} at index {first}",
            way_out,
        )


def require_index(name: str, value: int, stop: int) -> None:
    """Raise :class:`DataError` unless a value is an integer in 0..stop-1."""
    if not isinstance(value, int | np.integer) or not 0 <= value < stop:
        raise data_error(
            name, f"an integer from 0 to {stop - 1}", repr(value), "Pass one of these."
        )
