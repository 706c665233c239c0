"""Random labels: a training set that can be memorized, and from which nothing can be learned.

Zhang et al. (2017), https://arxiv.org/abs/1611.03530, showed that networks fit such labels
perfectly in spite of dropout and weight decay. Sparse Variational Dropout does not: it removes
every weight and predicts the same for all inputs (Molchanov, Ashukha & Vetrov, 2017, section 5.4,
https://arxiv.org/abs/1701.05369).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pyro_bnn.runtime.validation import DataError

from .base import Dataset

__all__ = ["with_random_labels"]


def with_random_labels(dataset: Dataset, seed: int = 0) -> Dataset:
    r"""Return a data set whose training labels are drawn at random, independently of the inputs.

    .. math:: y_n \sim \mathrm{Uniform}\{0, \ldots, K - 1\}

    Inputs and test set stay the same tensors. A network that learned nothing and one that
    memorized the labels are both at chance on the test set; only their training accuracy differs.

    Args:
        dataset: A data set of classes.
        seed: The seed of the labels, which depend on it and on the numbers of examples and
            classes alone.

    Raises:
        DataError: If the data set is one for regression.

    Example:
        >>> from pyro_bnn.datasets import digits
        >>> with_random_labels(digits(), seed=1)
        Dataset('digits with random labels', 1437 train, 360 test, x (64,), 10 classes)
    """
    if dataset.classes is None:
        raise DataError(
            f"with_random_labels: expected a data set of classes, found {dataset.name} with real "
            "targets. Use digits() or mnist()."
        )
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(dataset.classes, (len(dataset.y_train),), generator=generator)
    return replace(
        dataset,
        name=f"{dataset.name} with random labels",
        y_train=labels.to(dataset.y_train.device),
    )
