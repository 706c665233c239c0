"""Every test of variational inference has one seed and starts with an empty parameter store."""

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    pyro.clear_param_store()


@pytest.fixture
def store_stays_empty():
    """Check that a test leaves nothing in the parameter store."""
    yield
    assert not list(pyro.get_param_store().keys())


@pytest.fixture(scope="module")
def toy():
    """Return six examples of a regression with three inputs."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(6, 3, generator=generator)
    return x, x[:, 0] - x[:, 1] + 0.3 * torch.randn(6, generator=generator)
