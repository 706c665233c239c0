"""Checks of the data that a caller passes in."""

import numpy as np
import pytest
import torch

from pyro_bnn.runtime.validation import DataError, validate


def test_valid_data_pass():
    validate(torch.zeros(3, 2), torch.zeros(3))
    validate(torch.zeros(3, 2), torch.zeros(3, 4))
    validate(torch.tensor([3e38, 3e38]), torch.zeros(2))  # the sum overflows, the values are finite
    validate(torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 2, 1]), classes=3)
    validate(torch.zeros(2, 2), torch.tensor([0, 255], dtype=torch.uint8), classes=300)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_error_for_nan_or_infinity_counts_them_and_gives_the_first_index(bad, dtype):
    x, y = torch.zeros(5, 3, dtype=dtype), torch.zeros(5, dtype=dtype)
    x[2, 1] = x[4, 0] = bad
    with pytest.raises(
        DataError, match=rf"x: .*, found {bad} at index \[2, 1\] \(2 of 15 are not\)"
    ):
        validate(x, y)
    y[3] = bad
    with pytest.raises(DataError, match=rf"y: .*, found {bad} at index \[3\] \(1 of 5 are not\)"):
        validate(torch.zeros(5, 3), y)


def test_infinities_of_opposite_sign_are_both_counted():
    with pytest.raises(DataError, match="2 of 2"):
        validate(torch.tensor([float("inf"), -float("inf")]), torch.zeros(2))


@pytest.mark.parametrize(
    ("x", "y", "classes", "message"),
    [
        (np.zeros((2, 2)), torch.zeros(2), None, "x: expected a tensor, found ndarray"),
        (torch.zeros(2, 2), [0, 1], None, "y: expected a tensor, found list"),
        (torch.zeros(0, 2), torch.zeros(0), None, "x: expected at least one example"),
        (torch.zeros(2, 0), torch.zeros(2), None, "x: expected at least one example"),
        (torch.tensor(1.0), torch.zeros(1), None, "x: expected at least one example"),
        (torch.zeros(1), torch.tensor(1.0), None, "y: expected at least one example"),
        (torch.zeros(3, 2), torch.zeros(2), None, "x and y: expected equal lengths, found 3 and 2"),
        (
            torch.zeros(2, 2),
            torch.zeros(2),
            3,
            "y: expected integer labels of 3 classes, found torch.float32",
        ),
        (torch.zeros(2, 2), torch.zeros(2, dtype=torch.bool), 2, "found torch.bool"),
        (torch.zeros(2, 2), torch.zeros(2, dtype=torch.cfloat), 2, "found torch.complex64"),
        (
            torch.zeros(2, 2),
            torch.zeros(2, 1).long(),
            3,
            r"y: expected labels of shape \(2,\), found shape \(2, 1\)",
        ),
        (
            torch.zeros(2, 2),
            torch.tensor([0, 3]),
            3,
            "y: expected labels from 0 to 2, found 3 at index 1",
        ),
        (torch.zeros(3, 2), torch.tensor([0, -1, 9]), 3, "found -1 at index 1"),
        (torch.zeros(1, 2), torch.tensor([44], dtype=torch.uint8), 10, "found 44 at index 0"),
    ],
)
def test_invalid_data_are_a_data_error(x, y, classes, message):
    with pytest.raises(DataError, match=message):
        validate(x, y, classes)
