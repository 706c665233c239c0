"""The optimum that a fit reaches, compared with closed forms.

Statistical checks allow 5 standard errors at fixed seeds (false-alarm rate below 1e-6 each).
"""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from torch.distributions import constraints

from pyro_bnn import ELBO
from pyro_bnn.models import linear_regression
from tests.training.programs import decaying_rate, exact_posterior, linear_pair, quick_fit, toy_data


@pytest.mark.parametrize("size", [32, 12])
def test_conjugate_regression_reaches_the_optimum_with_any_batch_size(size):
    x, y = toy_data(32)
    model, guide = linear_pair(32)
    epochs = 400 * size // 32
    result = quick_fit(
        model, guide, (x, y), epochs=epochs, batch_size=size, learning_rate=decaying_rate(epochs)
    )
    moments = result.posterior.moments()
    mean, precision = exact_posterior(x, y, 0.3)
    got = torch.cat([moments["weight"][0].flatten(), moments["bias"][0]]).double()
    variance = torch.cat([moments["weight"][1].flatten(), moments["bias"][1]]).double()
    # the mean-field optimum: the exact mean, and the inverse of the precision's diagonal
    assert torch.allclose(got, mean, atol=0.01)
    assert torch.allclose(variance * precision.diagonal(), torch.ones(4).double(), atol=0.25)


def test_without_local_reparameterization_the_optimum_is_the_same():
    x, y = toy_data(32)
    model, guide = linear_pair(32)
    result = quick_fit(
        model,
        guide,
        (x, y),
        epochs=400,
        batch_size=32,
        learning_rate=decaying_rate(400),
        reparameterize=False,
    )
    mean, _ = exact_posterior(x, y, 0.3)
    weight_mean, _ = result.posterior.moments()["weight"]
    assert torch.allclose(weight_mean[0].double(), mean[:3], atol=0.01)


@pytest.mark.filterwarnings(
    "ignore::pyro_bnn.variational.reparameterization.ReparameterizationWarning"
)
@pytest.mark.parametrize("kind", [AutoNormal, AutoLowRankMultivariateNormal])
def test_a_stock_guide_reaches_the_exact_posterior_mean(kind):
    x, y = toy_data(32)
    model, _ = linear_pair(32)
    guide = kind(model, init_scale=0.05)
    bound = guide.model
    result = quick_fit(
        model, guide, (x, y), epochs=200, batch_size=None, learning_rate=decaying_rate(200)
    )
    weights = result.posterior.sample(2000)
    mean, _ = exact_posterior(x, y, 0.3)
    got = torch.cat([weights["weight"].mean(0).flatten(), weights["bias"].mean(0)]).double()
    assert torch.allclose(got, mean, atol=0.05)  # a posterior deviation
    assert not list(guide.parameters())  # the argument itself was not built
    assert guide.model is bound  # and still refers to its model
    assert not list(pyro.get_param_store().keys())
    assert result.posterior.predict(x, draws=4).mean.shape == (32,)


def test_a_guide_with_param_statements_reaches_the_exact_posterior_mean():
    x, y = toy_data(32)

    def guide(x, y=None):
        loc = pyro.param("loc", torch.zeros(3))
        scale = pyro.param("scale", torch.full((3,), 0.05), constraint=constraints.positive)
        pyro.sample("weight", dist.Normal(loc, scale).to_event(1))
        pyro.sample("bias", dist.Normal(pyro.param("bias_loc", torch.zeros(())), 0.05))

    model = linear_regression(32, inputs=3, noise=0.3)
    result = quick_fit(
        model, guide, (x, y), epochs=200, batch_size=16, learning_rate=decaying_rate(200)
    )
    mean, _ = exact_posterior(x, y, 0.3)
    with result.posterior.source.statements.capture():
        assert torch.allclose(pyro.param("loc").detach().double(), mean[:3], atol=0.01)
    assert not list(pyro.get_param_store().keys())
    assert result.posterior.predict(x, draws=5).mean.shape == (32,)


def test_adam_takes_the_same_path_for_the_sum_and_the_mean_over_examples():
    """Exactly so if Adam's epsilon is scaled as the loss is."""
    x, y = toy_data(dtype=torch.float64)
    model, guide = (part.double() for part in linear_pair())
    result = quick_fit(
        model, guide, (x, y), epochs=30, batch_size=None, learning_rate=0.01, reparameterize=False
    )

    again = copy.deepcopy(guide)
    by_hand = ELBO()(model, again)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01, eps=1e-8 / 30)
    torch.manual_seed(0)
    by_hand.trace(x, y)
    for _ in range(30):
        optimizer.zero_grad()
        (by_hand(x, y) / 30).backward()
        optimizer.step()
    for name, value in again.state_dict().items():
        assert torch.allclose(value, result.guide.state_dict()[name], rtol=1e-9, atol=1e-12)


def test_particles_reduce_the_variance_of_the_loss_by_their_number():
    model, guide = linear_pair()
    options = {"epochs": 30, "batch_size": None, "learning_rate": 0.0}
    one = quick_fit(model, guide, toy_data(), num_particles=1, **options)
    six = quick_fit(model, guide, toy_data(), num_particles=6, **options)
    a, b = torch.tensor(one.history["data"]), torch.tensor(six.history["data"])
    error = math.sqrt((float(a.var()) + float(b.var())) / 30)
    assert abs(float(a.mean() - b.mean())) < 5 * error
    # the ratio of the sample variances, divided by six, has an F distribution with 29 degrees of
    # freedom each, which lies outside [1/7, 7] once in 1e6 cases
    assert 6 / 7 < float(a.var() / b.var()) < 6 * 7
