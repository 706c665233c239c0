"""What every test and every doctest starts from."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

torch.set_num_threads(1)  # the tests run in several processes


@pytest.fixture(autouse=True)
def _fresh(doctest_namespace):
    """Seed, empty parameter store, and the usual names for doctests."""
    doctest_namespace.update(torch=torch, nn=nn, pyro=pyro, dist=dist)
    torch.manual_seed(0)
    pyro.clear_param_store()
