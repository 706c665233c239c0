"""Schedules."""

import pytest

from pyro_bnn import linear_warmup


def test_a_warmup_that_ends_when_it_starts_is_an_error():
    with pytest.raises(ValueError, match="start < end"):
        linear_warmup(5, 5)
