"""Where chains start."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_bnn import Posterior
from pyro_bnn.mcmc.log_density import LogDensity
from pyro_bnn.mcmc.start import starting_points
from tests.mcmc.runs import MODEL, X, Y, run

pytestmark = pytest.mark.filterwarnings("ignore::pyro_bnn.mcmc.ConvergenceWarning")
TINY = {"step_size": 1e-12, "warmup": 0, "draws": 1}


def test_each_chain_starts_at_its_own_values():
    start = {"weight": torch.arange(6.0).reshape(3, 2), "bias": torch.zeros(3)}
    posterior = run("sgld", start=start, **TINY)
    assert torch.allclose(posterior.draws["weight"][:, 0], start["weight"], atol=1e-4)


def test_all_chains_start_at_the_same_values():
    start = {"weight": torch.tensor([1.0, 2.0]), "bias": torch.tensor(3.0)}
    posterior = run("sgld", start=start, **TINY)
    assert torch.allclose(posterior.draws["weight"][:, 0], start["weight"], atol=1e-4)
    assert torch.allclose(posterior.draws["bias"][:, 0], start["bias"], atol=1e-4)


@pytest.mark.parametrize("wrapped", [False, True])
def test_chains_start_at_draws_of_a_posterior_or_of_a_result_that_holds_one(wrapped):
    posterior = run("sgld")
    assert isinstance(posterior, Posterior)
    start = SimpleNamespace(posterior=posterior) if wrapped else posterior
    starts = run("sgld", start=start, **TINY).draws["weight"][:, 0]
    drawn = posterior.draws["weight"].flatten(0, 1)
    for point in starts:
        assert (drawn - point).abs().sum(-1).min() < 1e-4


def test_values_without_one_of_the_sites_are_an_error():
    message = "^sgld: expected a value of shape .* for site 'bias', got none"
    with pytest.raises(ValueError, match=message):
        run("sgld", start={"weight": torch.zeros(2)})


def test_draws_from_the_prior_differ_between_chains():
    points = starting_points(LogDensity(MODEL, (X, Y)), "prior", 4)
    assert points.shape == (4, 3)
    assert len(set(points[:, 0].tolist())) == 4


def test_draws_of_infinite_density_are_drawn_again():
    def overflowing(y):
        q = pyro.sample("q", dist.Normal(y.new_zeros(()), 1.0))
        scale = torch.where(q > 0, q, torch.inf)  # half of the prior has density zero
        with pyro.plate("data", 1):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    torch.manual_seed(0)
    log_density = LogDensity(overflowing, (torch.zeros(1),))
    points = starting_points(log_density, "prior", 16)
    assert bool((points > 0).all())
