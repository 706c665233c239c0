"""The digits that ship with scikit-learn."""

import hashlib

import numpy as np
import pytest
import torch

from pyro_bnn.datasets import digits
from pyro_bnn.runtime.validation import DataError


def test_digits_are_a_stratified_partition_of_the_bundled_set():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    data = digits()
    assert data.x_train.shape == (1437, 64)
    assert data.x_test.shape == (360, 64)
    assert data.x_train.dtype == data.x_test.dtype == torch.float32
    assert data.y_train.dtype == data.y_test.dtype == torch.int64
    assert data.classes == 10

    rows = np.column_stack(
        [
            torch.cat([data.x_train, data.x_test]).numpy() * 16,
            torch.cat([data.y_train, data.y_test]),
        ]
    )
    expected = np.column_stack([pixels, labels])
    assert np.array_equal(np.unique(rows, axis=0), np.unique(expected, axis=0))
    assert len(rows) == len(expected) == 1797
    # Stratified: each class gives a fifth of its examples to the test set, up to rounding.
    assert (
        data.y_test.bincount() - torch.from_numpy(labels).bincount() * 360 / 1797
    ).abs().max() < 1


def test_digits_depend_on_the_seed_alone():
    state = np.random.get_state()[1].copy()
    first, again, other = digits(seed=3), digits(seed=3), digits(seed=4)
    assert torch.equal(first.x_train, again.x_train)
    assert torch.equal(first.y_test, again.y_test)
    assert not torch.equal(first.y_test, other.y_test)
    assert np.array_equal(state, np.random.get_state()[1])


@pytest.mark.parametrize("seed", [-1, 2**32, None, 0.5, "0"])
def test_digits_raise_for_a_seed_that_would_not_fix_the_split(seed):
    with pytest.raises(DataError, match="seed: expected an integer from 0"):
        digits(seed=seed)


def test_the_default_split_of_digits_never_changes():
    data = digits()
    assert (
        hashlib.sha256(data.y_test.numpy().astype("u1").tobytes()).hexdigest()[:16]
        == "70ee2850bb25b543"
    )
