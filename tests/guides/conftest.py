"""Every test of a guide has one seed and starts with an empty parameter store."""

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    pyro.clear_param_store()
