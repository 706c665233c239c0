"""The committed record files are as small and as accurate as the README says."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from pyro_bnn import compression, datasets
from pyro_bnn.metrics import error_of

RECORDS = Path(__file__).parents[3] / "benchmarks" / "records"


class Claim(NamedTuple):
    """What the README says about a file.

    Attributes:
        weights: Weights of the original network.
        rate: Compression rate at least.
        wrong: Wrong answers on the 10,000 test images at most.
    """

    weights: int
    rate: int
    wrong: int


CLAIMS = {
    "lenet-300-100.pbnn": Claim(266_200, 300, 185),
    "lenet-5-caffe.pbnn": Claim(430_500, 1300, 96),
}


@pytest.mark.parametrize(("name", "claim"), CLAIMS.items(), ids=CLAIMS)
def test_a_record_is_as_small_as_claimed(name, claim):
    path = RECORDS / name
    if not path.exists():
        pytest.skip("the records are part of a checkout only")
    assert 4 * claim.weights / path.stat().st_size >= claim.rate
    network = compression.load(path)
    with torch.no_grad():
        assert network(torch.zeros(2, 784)).shape == (2, 10)


@pytest.mark.parametrize(("name", "claim"), CLAIMS.items(), ids=CLAIMS)
def test_a_record_is_as_accurate_as_claimed(name, claim):
    try:
        mnist = datasets.mnist()
    except datasets.DataError:
        pytest.skip("MNIST is not available")
    wrong = 10_000 * error_of(compression.load(RECORDS / name), mnist.test)
    assert wrong <= claim.wrong + 0.5
