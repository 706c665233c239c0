"""The form that every data set has."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Dataset"]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A training and a test set, and the affine map that undoes their scaling.

    The original units of inputs and targets are ``x * x_std + x_mean`` and ``y * y_std + y_mean``.
    To report results in the original units, multiply a root mean squared error by ``y_std`` and
    subtract ``log(y_std)`` from a log-likelihood per example (nats).

    Attributes:
        name: The name of the data set.
        x_train: Training inputs (n, ...), float32.
        y_train: Training targets (n,): int64 labels from 0 to ``classes - 1``, or float32.
        x_test: Test inputs (m, ...).
        y_test: Test targets (m,).
        x_mean: The shift of the inputs; broadcasts against one example.
        x_std: The scale of the inputs; broadcasts against one example.
        y_mean: The shift of the targets.
        y_std: The scale of the targets.
        classes: The number of classes, or ``None`` for regression.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    x_mean: Tensor
    x_std: Tensor
    y_mean: float = 0.0
    y_std: float = 1.0
    classes: int | None = None

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """The pair ``(x_train, y_train)``, as ``fit`` takes it."""
        return self.x_train, self.y_train

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """The pair ``(x_test, y_test)``."""
        return self.x_test, self.y_test

    def __repr__(self) -> str:
        task = "regression" if self.classes is None else f"{self.classes} classes"
        sizes = f"{len(self.x_train)} train, {len(self.x_test)} test"
        return f"Dataset({self.name!r}, {sizes}, x {tuple(self.x_train.shape[1:])}, {task})"
