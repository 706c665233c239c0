"""scikit-learn's handwritten digits, which need no files."""

import numpy as np
import torch

from pyro_bnn.datasets.base import Dataset
from pyro_bnn.runtime.validation import require_index

__all__ = ["digits"]


def digits(seed: int = 0) -> Dataset:
    """Return the handwritten digits that ship with scikit-learn, in a stratified 80/20 split fixed by `seed`.

    Shapes: x (1437, 64) and (360, 64), the pixels of 8x8 images divided by 16, so in [0, 1]; y in 0..9.

    Raises `DataError` if `seed` is not an integer from 0 to 2**32 - 1.

    Source: Alpaydin & Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998 (its test part).

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
    rows = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=seed
    )
    train, test = (torch.from_numpy(part) for part in rows)
    x, y = torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels).long()
    return Dataset(
        "digits",
        x[train],
        y[train],
        x[test],
        y[test],
        torch.tensor(0.0),
        torch.tensor(16.0),
        classes=10,
    )
