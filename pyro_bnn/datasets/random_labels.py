"""Random labels: a training set that can be memorised, and from which nothing can be learned.

Zhang et al. (2017), https://arxiv.org/abs/1611.03530, showed that networks fit such labels perfectly, dropout and
weight decay notwithstanding. Sparse Variational Dropout does not: it removes every weight, and predicts the same for
all inputs (Molchanov, Ashukha & Vetrov, 2017, section 5.4, https://arxiv.org/abs/1701.05369).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pyro_bnn.runtime.validation import DataError

from .base import Dataset

__all__ = ["with_random_labels"]


def with_random_labels(dataset: Dataset, seed: int = 0) -> Dataset:
    r"""Return the data set with training labels that are drawn uniformly from its classes, whatever the inputs.

    .. math:: y_n \sim \mathrm{Uniform}\{0, \ldots, K - 1\} \quad \text{independently, for training examples alone}

    Inputs and test set stay as they are (and the same tensors): a network without memory and a network that memorised
    are both at chance on the test set, and only training accuracy tells them apart.

    Args:
        dataset: of classes.
        seed: of the labels, which depend on it, on the number of examples and of classes alone.

    Raises:
        DataError: a data set for regression.

    >>> from pyro_bnn.datasets import digits
    >>> with_random_labels(digits(), seed=1)
    Dataset('digits with random labels', 1437 train, 360 test, x (64,), 10 classes)
    """
    if dataset.classes is None:
        raise DataError(
            f"with_random_labels: expected a data set of classes, found {dataset.name} with real targets. "
            "Take digits or mnist."
        )
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(dataset.classes, (len(dataset.y_train),), generator=generator)
    return replace(
        dataset,
        name=f"{dataset.name} with random labels",
        y_train=labels.to(dataset.y_train.device),
    )
