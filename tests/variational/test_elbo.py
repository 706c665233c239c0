"""The ELBO against Pyro's estimator and quadrature, and its two uses."""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from scipy import integrate, special
from torch import nn

from pyro_bnn import ELBO, BayesianNet, likelihoods, local_reparameterization, priors
from pyro_bnn.guides import (
    MeanField,
)
from pyro_bnn.models import linear_regression
from tests.variational.estimates import (
    PRIORS,
    agree,
    double,
    estimate,
    stock_loss,
)

pytestmark = pytest.mark.usefixtures("store_stays_empty")


@pytest.mark.parametrize("noise", [0.6, dist.HalfNormal(1.0)], ids=["known", "inferred"])
@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_the_loss_agrees_with_that_of_pyro_in_expectation(prior, noise, toy):
    model = BayesianNet(nn.Linear(3, 1), {"weight": prior}, likelihoods.Gaussian(noise), num_data=9)
    guide = MeanField(model, init_scale=0.3)
    plain, local = ELBO(model, guide), ELBO(model, local_reparameterization(guide))
    with pyro.get_param_store().scope():
        reference = estimate(lambda: stock_loss(model, guide, *toy), 20_000)
    agree(estimate(lambda: plain(*toy), 20_000), reference)
    agree(estimate(lambda: local(*toy), 20_000), reference)


def test_the_loss_agrees_in_a_network_of_two_layers(toy):
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    model = BayesianNet(net, {"*": priors.Normal(1.0)}, likelihoods.Gaussian(0.6), num_data=9)
    guide = MeanField(model, init_scale=0.3)
    plain, local = ELBO(model, guide), ELBO(model, local_reparameterization(guide))
    with pyro.get_param_store().scope():
        reference = estimate(lambda: stock_loss(model, guide, *toy), 20_000)
    agree(estimate(lambda: plain(*toy), 20_000), reference)
    agree(estimate(lambda: local(*toy), 20_000), reference)


def test_the_reference_loss_is_that_of_trace_elbo(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.Horseshoe(), likelihoods.Gaussian(0.6), num_data=9)
    guide = MeanField(model)
    with pyro.get_param_store().scope():
        torch.manual_seed(3)
        reference = Trace_ELBO().loss(model, guide, *toy)
        torch.manual_seed(3)
        assert stock_loss(model, guide, *toy).item() == pytest.approx(reference, rel=1e-6)


@pytest.mark.parametrize("theta", [-1.2, 0.05, 0.8])
@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.5])
def test_the_loss_of_one_weight_under_the_log_uniform_prior_equals_quadrature(theta, sigma):
    x, y, s = np.array([0.5, -1.0, 2.0]), np.array([0.4, -0.9, 1.5]), 0.7
    model = BayesianNet(
        nn.Linear(1, 1, bias=False), priors.LogUniform(), likelihoods.Gaussian(s), num_data=3
    ).double()
    guide = MeanField(model)
    guide.sites.weight.loc.data.fill_(theta)
    guide.sites.weight.log_scale.data.fill_(math.log(sigma))
    terms = ELBO(model, guide).terms(double(x[:, None]), double(y))
    # E_q (y - w x)^2 = (y - theta x)^2 + sigma^2 x^2
    # KL = 2 int_0^r D(t) dt with Dawson's function D and r = |theta| / (sigma sqrt 2)
    data = np.sum(
        ((y - theta * x) ** 2 + sigma**2 * x**2) / (2 * s**2) + math.log(s * math.sqrt(2 * math.pi))
    )
    kl = 2 * integrate.quad(special.dawsn, 0, abs(theta) / (sigma * math.sqrt(2)), limit=400)[0]
    assert terms.kl["weight"].item() == pytest.approx(kl, abs=1e-7)
    local = ELBO(model, local_reparameterization(guide))
    agree(
        estimate(lambda: local(double(x[:, None]), double(y)), 100_000), (data + kl, 0.0), errors=4
    )


def test_the_log_uniform_density_has_the_constant_of_the_closed_divergence():
    model = BayesianNet(
        nn.Linear(1, 1, bias=False), priors.LogUniform(), likelihoods.Gaussian(1.0), num_data=1
    ).double()
    guide = MeanField(model, init_scale=0.5)
    x, y = torch.zeros(1, 1, dtype=torch.float64), double([0.0])
    with pyro.get_param_store().scope():
        reference = estimate(lambda: stock_loss(model, guide, x, y), 200_000)
    loss = ELBO(model, guide)  # x = 0: the data term is a constant
    agree(reference, (loss(x, y).item(), 0.0), errors=4)
    assert reference[1] < 0.01


def test_stock_svi_trains_biases_and_guide(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(), num_data=6)
    guide = MeanField(model)
    before = {
        name: p.detach().clone()
        for name, p in (*model.named_parameters(), *guide.named_parameters())
    }
    with pyro.get_param_store().scope():
        svi = SVI(
            model, local_reparameterization(guide), pyro.optim.Adam({"lr": 0.05}), loss=ELBO()
        )
        losses = [svi.step(*toy) for _ in range(100)]
        assert svi.evaluate_loss(*toy) < 0.8 * losses[0]
    after = dict((*model.named_parameters(), *guide.named_parameters()))
    assert set(before) == {
        "net.bias",
        "likelihood.log_scale",
        "sites.weight.loc",
        "sites.weight.log_scale",
    }
    assert all(not torch.equal(before[name], after[name].detach()) for name in before)


def test_a_copy_of_the_loss_is_trained_alone(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(), num_data=6)
    loss = ELBO(model, MeanField(model), kl_weight=0.5)
    torch.manual_seed(1)
    first = loss(*toy).item()
    other = copy.deepcopy(loss)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(*toy).backward()
    optimizer.step()
    torch.manual_seed(1)
    assert loss(*toy).item() == first
    torch.manual_seed(1)
    assert other(*toy).item() != first
    assert not {id(p) for p in loss.parameters()} & {id(p) for p in other.parameters()}
    assert other.kl_weight == 0.5


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_the_terms_have_the_dtype_of_model_and_data(prior, toy):
    model = BayesianNet(
        nn.Linear(3, 1), prior, likelihoods.Gaussian(dist.HalfNormal(1.0)), num_data=9
    )
    loss = ELBO(model, local_reparameterization(MeanField(model))).double()
    terms = loss.terms(*(part.double() for part in toy))
    assert {value.dtype for value in (terms.data, *terms.kl.values(), terms.loss())} == {
        torch.float64
    }


def test_particles_are_averaged(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(0.5), num_data=6)
    guide = MeanField(model, init_scale=0.3)
    torch.manual_seed(4)
    alone = [ELBO(model, guide)(*toy).item() for _ in range(5)]
    torch.manual_seed(4)
    assert ELBO(model, guide, num_particles=5)(*toy).item() == pytest.approx(
        np.mean(alone), rel=1e-6
    )


def test_one_estimator_serves_several_pairs_and_checks_each(toy):
    estimator = ELBO()
    first = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(0.5), num_data=6)
    estimator(first, MeanField(first))(*toy)
    other = BayesianNet(nn.Linear(3, 1), priors.Horseshoe(), likelihoods.Gaussian(0.5), num_data=6)
    with pytest.raises(
        ValueError, match=r"no site weight\.global_scale, weight\.scale, weight\.unit"
    ):
        estimator(other, MeanField(first))(*toy)


def test_a_model_without_a_guide_is_an_error():
    model = linear_regression(num_data=6, inputs=3)
    with pytest.raises(ValueError, match="got one alone"):
        ELBO(model)
    with pytest.raises(ValueError, match="got one alone"):
        ELBO(guide=model)
