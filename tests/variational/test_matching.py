"""A guide that does not fit its model is an error."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_bnn import ELBO, BayesianNet, likelihoods, priors
from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.guides import (
    MeanField,
)
from pyro_bnn.models import linear_regression

pytestmark = pytest.mark.usefixtures("store_stays_empty")


def test_the_guide_of_another_model_is_an_error_that_names_the_sites(toy):
    model = BayesianNet(
        nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(dist.HalfNormal(1.0)), num_data=6
    )
    known = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(1.0), num_data=6)
    with pytest.raises(ValueError, match="no site noise; its sites are weight"):
        ELBO(model, MeanField(known))(*toy)
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="no site noise"):
        ELBO(model, MeanField(known))(*toy)
    with pytest.raises(ValueError, match="no site y"):  # called without the data
        ELBO(known, MeanField(known))(toy[0])


def test_sites_and_data_of_different_shapes_are_an_error(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(0.5), num_data=6)
    wide = BayesianNet(nn.Linear(3, 2), priors.Normal(), likelihoods.Gaussian(0.5), num_data=6)
    with pytest.raises(ValueError, match="shapes disagree at site 'weight'"):
        ELBO(model, MeanField(wide))(*toy)
    with pytest.raises(ValueError, match=r"site 'y' have the shape \(6, 1\).*y.squeeze"):
        ELBO(model, MeanField(model))(toy[0], toy[1][:, None])  # would broadcast to 6 x 6


def test_a_guide_that_samples_the_data_is_an_error():
    x, y = torch.randn(6, 3), torch.randn(6)
    model = linear_regression(num_data=6, inputs=3)
    guide = MeanField(model, x)  # the y that was left out was taken for a latent site
    with pytest.raises(ValueError, match="samples 'y', which the model observes"):
        ELBO(model, guide)(x, y)


def test_a_missing_site_under_an_improper_prior_is_an_error(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.LogUniform(), likelihoods.Gaussian(1.0), num_data=6)
    with pytest.raises(
        ValueError, match="no site for a weight under an improper prior; its sites are none"
    ) as caught:
        ELBO(model, lambda x, y: None)(*toy)
    assert isinstance(caught.value.__cause__, ImproperPriorError)
