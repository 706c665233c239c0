"""The handwritten digits of scikit-learn, which need no files."""

from __future__ import annotations

import numpy as np
import torch

from pyro_bnn.runtime.validation import require_index

from .base import Dataset

__all__ = ["digits"]


def digits(seed: int = 0) -> Dataset:
    """Return the handwritten digits that ship with scikit-learn, the default of every example.

    The 80/20 split into training and test set is stratified by class and fixed by ``seed``. Inputs
    have shapes (1437, 64) and (360, 64): the pixels of 8 x 8 images divided by 16, in [0, 1].
    Labels are 0 to 9.

    Args:
        seed: The seed of the split.

    Raises:
        DataError: If ``seed`` is not an integer from 0 to 2**32 - 1.

    References:
        Alpaydin & Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998 (the
        test part).

    Example:
        >>> data = digits()
        >>> data
        Dataset('digits', 1437 train, 360 test, x (64,), 10 classes)
        >>> data.x_train.min().item(), data.x_train.max().item()
        (0.0, 1.0)
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    require_index("seed", seed, 2**32)
    pixels, labels = load_digits(return_X_y=True)
    train_rows, test_rows = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=seed
    )
    x = torch.from_numpy(pixels).float() / 16
    y = torch.from_numpy(labels).long()
    return Dataset(
        name="digits",
        x_train=x[train_rows],
        y_train=y[train_rows],
        x_test=x[test_rows],
        y_test=y[test_rows],
        x_mean=torch.tensor(0.0),
        x_std=torch.tensor(16.0),
        classes=10,
    )
