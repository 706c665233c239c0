"""Log-densities of draws against formulas; every example counts once."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_bnn import Posterior
from pyro_bnn.diagnostics import to_arviz
from pyro_bnn.diagnostics.densities import log_densities
from pyro_bnn.diagnostics.guide_draws import draw_guide
from tests.diagnostics.networks import CLASSES, network, variational
from tests.diagnostics.regression import DATA, NOISE, N, X, Y, exact


def test_log_likelihoods_and_joint_density_by_hand():
    posterior = exact(2, 30)
    sites = {name: value.flatten(0, 1) for name, value in posterior.draws.items()}
    densities = log_densities(posterior, sites, DATA)
    weight, bias = sites["weight"], sites["bias"]
    terms = torch.distributions.Normal(weight * X[:, 0] + bias[:, None], NOISE).log_prob(Y)
    assert torch.allclose(densities.log_likelihood["y"], terms, rtol=1e-12)
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = terms.sum(-1) + prior.log_prob(weight[:, 0]) + prior.log_prob(bias)
    assert torch.allclose(densities.log_joint, expected, rtol=1e-12)
    assert densities.num_data == {"y": N}


def hand_written(x, y=None, batch=None, scale=1.0, mask=None):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    plate, scaled = pyro.plate("data", len(x), subsample_size=batch), poutine.scale(scale=scale)
    with plate as index, scaled, poutine.mask(mask=True if mask is None else mask[index]):
        pyro.sample("y", dist.Normal(x[index] @ weight, 0.5), obs=None if y is None else y[index])


@pytest.mark.parametrize("batch", [None, 1, 4, 7, 10])
def test_every_example_counts_once_whatever_the_plate_draws(batch):
    x, y = torch.linspace(-1, 1, 10)[:, None], torch.linspace(0, 1, 10)
    weight = torch.randn(6, 1)
    posterior = Posterior.from_draws(
        lambda x, y=None: hand_written(x, y, batch, scale=0.5), {"weight": weight[None]}
    )
    found = log_densities(posterior, {"weight": weight}, (x, y))
    terms = torch.distributions.Normal(weight * x[:, 0], 0.5).log_prob(y)
    assert torch.allclose(found.log_likelihood["y"], terms.double(), atol=1e-5)
    # the program's own scale belongs to the joint density, that of the plate does not
    joint = 0.5 * terms.sum(1) + torch.distributions.Normal(0.0, 1.0).log_prob(weight[:, 0])
    assert torch.allclose(found.log_joint, joint.double(), rtol=1e-5)
    assert found.num_data == {"y": 10}


def test_a_network_that_draws_minibatches_is_evaluated_on_all_data():
    whole, part = variational(network()), variational(network(subsample_size=3))
    sites = draw_guide(whole, 20, 0).sites
    a, b = log_densities(whole, sites, CLASSES), log_densities(part, sites, CLASSES)
    assert torch.allclose(a.log_likelihood["y"], b.log_likelihood["y"], atol=1e-5)
    assert torch.allclose(a.log_joint, b.log_joint, rtol=1e-5)
    data = to_arviz(part, CLASSES, draws=10)
    assert data["log_likelihood"]["y"].shape == (1, 10, 10)
    assert data["posterior_predictive"]["y"].shape == (1, 10, 10)


def test_masked_examples_have_a_log_likelihood_of_zero():
    x, y, mask = torch.linspace(-1, 1, 10)[:, None], torch.zeros(10), torch.arange(10) > 2
    posterior = Posterior.from_draws(
        lambda x, y=None: hand_written(x, y, 4, mask=mask), {"weight": torch.ones(1, 3, 1)}
    )
    found = log_densities(posterior, {"weight": torch.ones(3, 1)}, (x, y)).log_likelihood["y"]
    assert (found[:, :3] == 0).all()
    assert (found[:, 3:] != 0).all()


def test_data_and_draws_must_be_those_of_the_program():
    posterior = exact(1, 5)
    sites = {name: value[0] for name, value in posterior.draws.items()}
    with pytest.raises(ValueError, match=r"log_densities: expected data of shape .* got \(20, 1\)"):
        log_densities(posterior, sites, (X, Y[:, None]))
    with pytest.raises(ValueError, match="but bias have none; there are draws of weight"):
        log_densities(posterior, {"weight": sites["weight"]}, DATA)
    with pytest.raises(ValueError, match="observes nothing when it is called with the data"):
        log_densities(posterior, sites, (X,))


def test_a_minibatch_around_a_latent_site_is_an_error():
    def model(x, y=None):
        with pyro.plate("data", len(x), subsample_size=2) as index:
            local = pyro.sample("local", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(local, 1.0), obs=None if y is None else y[index])

    posterior = Posterior.from_draws(model, {"local": torch.zeros(1, 3, 2)})
    with pytest.raises(ValueError, match="draw minibatches around the latent sites local"):
        log_densities(posterior, {"local": torch.zeros(3, 2)}, (torch.ones(6), torch.ones(6)))
