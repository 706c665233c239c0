"""A small classifier and images for it."""

import pytest
import torch

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.guides import MeanField


@pytest.fixture
def posterior():
    """Return the posterior of a linear classifier of images of 4x4 pixels into 3 classes."""
    torch.manual_seed(0)
    net = torch.nn.Linear(16, 3)
    model = BayesianNet(net, priors.Normal(1.0), likelihoods.Categorical(), num_data=30)
    return Posterior.from_guide(model, MeanField(model, init_scale=0.3))


@pytest.fixture
def images():
    """Return 30 images and their labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(30, 16, generator=generator), torch.randint(3, (30,), generator=generator)
