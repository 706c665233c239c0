"""Warnings about draws: split R-hat by its formula, and divergences."""

import math

import pytest
import torch

from pyro_bnn import mcmc
from pyro_bnn.mcmc.convergence import convergence_warnings, require_valid_draws
from tests.mcmc.runs import run


def split_r_hat(values):
    """Gelman et al. (2013), section 11.4, term by term, of draws (chain, draw)."""
    half = values.shape[1] // 2
    halves = torch.cat([values[:, :half], values[:, -half:]]).double()
    within, between = halves.var(1).mean(), halves.mean(1).var()
    return float(((half - 1) / half + between / within).sqrt())


@pytest.mark.parametrize("draws", [8, 9, 31])
def test_the_r_hat_of_a_warning_is_that_of_the_formula(draws):
    torch.manual_seed(draws)
    values = (
        torch.randn(4, draws) + torch.arange(4.0)[:, None]
    )  # an odd number: the middle is left out
    (warning,) = convergence_warnings({"lp": values})
    assert f"R-hat of the log density is {split_r_hat(values):.2f}; run longer" in warning


def test_chains_that_agree_cause_no_warning():
    torch.manual_seed(0)
    assert convergence_warnings({"lp": torch.randn(4, 500)}) == []


@pytest.mark.parametrize(
    ("values", "r_hat"),
    [
        (torch.ones(3, 10), "nan"),
        (torch.arange(3.0)[:, None].expand(3, 10), "inf"),
        (torch.full((3, 10), math.nan), "nan"),
    ],
    ids=["constant", "constant chains", "NaN"],
)
def test_an_r_hat_without_a_value_causes_a_warning(values, r_hat):
    (warning,) = convergence_warnings({"lp": values})
    assert f"R-hat of the log density is {r_hat}" in warning


@pytest.mark.parametrize("shape", [(1, 100), (3, 7)])
def test_one_chain_or_few_draws_have_no_r_hat(shape):
    assert convergence_warnings({"lp": torch.arange(math.prod(shape)).reshape(shape)}) == []


def test_divergent_draws_and_stuck_chains_are_counted():
    diverging = torch.zeros(4, 5, dtype=torch.bool)
    diverging[0], diverging[1, 2] = True, True
    stuck, divergent = convergence_warnings({"lp": torch.zeros(4, 5), "diverging": diverging})
    assert stuck.startswith("1 of 4 chains diverged at every draw")
    assert divergent.startswith("6 divergent draws (30.0%)")


def test_divergence_of_every_draw_is_an_error():
    require_valid_draws("hmc", {"lp": torch.zeros(2, 3)})
    with pytest.raises(mcmc.SamplingError, match=r"^hmc: all 2 chains diverged at every draw"):
        require_valid_draws("hmc", {"diverging": torch.ones(2, 3, dtype=torch.bool)})


def test_a_warning_names_the_sampler_points_to_the_call_and_is_kept_in_the_facts():
    start = {"weight": torch.tensor([[0.0, 0.0], [30.0, 0.0], [60.0, 0.0]]), "bias": torch.zeros(3)}
    message = "^sgld: the chains do not agree: R-hat"
    with pytest.warns(mcmc.ConvergenceWarning, match=message) as warnings:
        posterior = run("sgld", start=start, step_size=1e-7)
    assert warnings[0].filename.endswith("runs.py")
    assert posterior.facts["warnings"][0].startswith("the chains do not agree")
