"""The ELBO of Pyro's own autoguides."""

import math

import pyro
import pyro.distributions as dist
import pytest
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import init_to_value
from torch import nn
from torch.distributions import kl_divergence

from pyro_bnn import ELBO, BayesianNet, likelihoods
from tests.variational.estimates import (
    PRIORS,
    agree,
    double,
    estimate,
    stock_loss,
)

pytestmark = pytest.mark.usefixtures("store_stays_empty")


@pytest.mark.parametrize(
    "autoguide", [AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoDelta]
)
@pytest.mark.parametrize("prior", ["Normal", "Horseshoe", "GaussianMixture"])
def test_stock_autoguides_agree_with_the_loss_of_pyro(autoguide, prior, toy):
    noise = dist.LogNormal(-0.5, 0.5)
    model = BayesianNet(nn.Linear(3, 1), PRIORS[prior], likelihoods.Gaussian(noise), num_data=9)
    options = {} if autoguide is AutoDelta else {"init_scale": 0.3}
    guide = autoguide(model, **options)
    loss = ELBO(model, guide)
    loss(*toy).backward()
    assert not list(pyro.get_param_store().keys())
    with pyro.get_param_store().scope():
        agree(
            estimate(lambda: loss(*toy), 20_000),
            estimate(lambda: stock_loss(model, guide, *toy), 20_000),
        )
    assert [name for name, _ in loss.named_parameters() if name.startswith("guide.")]
    assert not list(
        loss.param_store.parameters()
    )  # the guide was built in the first call, and keeps what it declared


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal, AutoDelta])
def test_the_jacobian_of_a_positive_site_enters_the_loss(autoguide):
    def model():
        pyro.sample("z", dist.LogNormal(double(0.5), 0.8))

    guide = autoguide(model, init_loc_fn=init_to_value(values={"z": double(3.0)}))
    loss = ELBO(model, guide).double()
    if autoguide is AutoDelta:
        exact = -dist.LogNormal(double(0.5), 0.8).log_prob(double(3.0)).item()
    else:  # the divergence of two log-normals is that of their logarithms
        loss()
        loss.double()
        exact = kl_divergence(dist.Normal(math.log(3), 0.1), dist.Normal(0.5, 0.8)).item()
    value, error = estimate(loss, 100_000)
    agree((value, error), (exact, 0.0))
    assert error < 0.01  # where the logarithm of the Jacobian, log z, is 1.1
