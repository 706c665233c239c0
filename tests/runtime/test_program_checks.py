"""Checks of a program against the data."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_bnn.runtime.program_checks import require_program_fits_data
from pyro_bnn.runtime.validation import DataError

X, LABELS = torch.zeros(4, 2), torch.tensor([0, 1, 2, 1])


def classifier(x, y):
    with pyro.plate("data", 4, subsample=range(len(x))):
        pyro.sample("y", dist.Categorical(logits=torch.zeros(len(x), 3)), obs=y)


def trace_of(*batch):
    return poutine.trace(classifier).get_trace(*batch)


def test_targets_and_a_plate_of_the_size_of_the_data_are_accepted():
    require_program_fits_data(trace_of(X, LABELS), (X, LABELS), LABELS, 4)


def test_a_target_outside_the_minibatch_is_checked_too():
    batch = X[:2], LABELS[:2]
    targets = torch.tensor([0, 1, 3, 1])
    with pytest.raises(DataError, match=r"^hmc: y\[2\] = 3 cannot be observed at site 'y'"):
        require_program_fits_data(trace_of(*batch), batch, targets, 4, caller="hmc")


def test_a_plate_of_another_size_than_the_data_is_an_error():
    with pytest.raises(ValueError, match=r"^fit: site 'y' lies in the plate 'data' of 4 examples"):
        require_program_fits_data(trace_of(X, LABELS), (X, LABELS), LABELS, 5)


def test_a_program_without_targets_has_nothing_to_check():
    require_program_fits_data(poutine.trace(lambda x: x).get_trace(X), (X,), None, 5)
