"""Draws from a guide have the density of the guide, or a reason why it is unknown."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal

from pyro_bnn import Posterior
from pyro_bnn.diagnostics.guide_draws import draw_guide
from pyro_bnn.guides import MeanField
from pyro_bnn.models import linear_regression
from tests.diagnostics.regression import DATA, N


@pytest.mark.parametrize("guide", [AutoNormal, AutoMultivariateNormal, MeanField])
def test_the_density_of_a_guide_is_that_of_its_distribution(guide):
    """A positive site and a real one, against a Gaussian of the same moments of logarithms."""

    def model(x, y=None):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(loc * x, scale), obs=y)

    data = (torch.ones(4), torch.zeros(4))
    made = guide(model, *data) if guide is MeanField else guide(model, init_scale=0.3)
    made(*data)
    drawn = draw_guide(Posterior.from_guide(model, made, *data), 2000, 0)
    values = torch.stack([drawn.sites["scale"].log(), drawn.sites["loc"]], 1).double()
    normal = torch.distributions.MultivariateNormal(values.mean(0), values.T.cov())
    # the density of a log-normal is the normal one of its logarithm, over the value; moments of
    # 2000 draws are known to 5 / sqrt(2000) sd and 5 sqrt(2 / 2000) of a variance, false alarms
    # below 1e-5
    expected = normal.log_prob(values) - values[:, 0]
    assert drawn.reason == ""
    assert (drawn.log_q - expected).mean().abs() < 0.2
    assert torch.corrcoef(torch.stack([drawn.log_q, expected]))[0, 1] > 0.98


def test_a_point_estimate_has_no_density():
    model = linear_regression(N)
    point = AutoDelta(model)
    point(*DATA)
    drawn = draw_guide(Posterior.from_guide(model, point, *DATA), 3, 0)
    assert drawn.log_q is None
    assert drawn.reason == "the guide is a point estimate, which has no density"


def test_auxiliary_variables_hide_the_density_of_a_guide():
    def model(x, y=None):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(weight * x, 1.0).to_event(1), obs=y)

    def guide(x, y=None):
        hidden = pyro.sample("hidden", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("weight", dist.Normal(hidden, 1.0))

    data = (torch.ones(4), torch.zeros(4))
    drawn = draw_guide(Posterior.from_guide(model, guide, *data), 3, 0)
    assert set(drawn.sites) == {"weight"}
    assert drawn.log_q is None
    assert "auxiliary variables" in drawn.reason
