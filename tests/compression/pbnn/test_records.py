"""The committed record files are what the README says they are."""

from pathlib import Path

import pytest
import torch

from pyro_bnn import compression
from pyro_bnn.datasets import base as data
from pyro_bnn.metrics import error_of

RECORDS = Path(__file__).parents[3] / "benchmarks" / "records"
# file: weights of the original, at least so many times smaller, at most so many of 10,000 test images wrong
CLAIMS = {"lenet-300-100.pbnn": (266_200, 300, 185), "lenet-5-caffe.pbnn": (430_500, 1300, 96)}


@pytest.mark.parametrize(("name", "claim"), CLAIMS.items(), ids=CLAIMS)
def test_a_record_is_as_small_as_claimed(name, claim):
    weights, times, _ = claim
    path = RECORDS / name
    if not path.exists():
        pytest.skip("installed, not a checkout")
    assert 4 * weights / path.stat().st_size >= times
    network = compression.load(path)
    with torch.no_grad():
        assert network(torch.zeros(2, 784)).shape == (2, 10)


@pytest.mark.parametrize(("name", "claim"), CLAIMS.items(), ids=CLAIMS)
def test_a_record_is_as_good_as_claimed(name, claim):
    try:
        mnist = data.mnist()
    except data.DataError:
        pytest.skip("MNIST is not here")
    assert error_of(compression.load(RECORDS / name), mnist.test) * 10_000 <= claim[2] + 0.5
