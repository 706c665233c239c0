"""Hamiltonian Monte Carlo against conjugate posteriors and quadrature.

It has no bias at any step size, so every statistic is compared with the exact value. The errors
are those between independent chains (128 to 512 of them). At 4.5 errors each number would fail
falsely on a fresh seed with a probability of at most 2e-5 (Student's t); some 80 numbers are
compared, which makes 0.2 % for the whole file. Seeds are fixed.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, mcmc, priors
from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.mcmc import hamiltonian
from pyro_bnn.mcmc.hamiltonian import HMC
from pyro_bnn.mcmc.log_density import LogDensity
from tests.mcmc.conjugate import (
    CHAINS,
    COVARIANCE,
    MEAN,
    MODEL,
    SIGMAS,
    STIFF,
    X,
    Y,
    deviation,
    regression_deviation,
)

pytestmark = pytest.mark.filterwarnings("ignore::pyro_bnn.mcmc.ConvergenceWarning")


def run(model=MODEL, data=(X, Y), **settings):
    defaults = {"chains": CHAINS, "warmup": 60, "draws": 50, "progress": False}
    return mcmc.hmc(model, data, **defaults | settings)


torch.manual_seed(5)
FACTOR = torch.linalg.cholesky(torch.tensor(COVARIANCE))
EXACT = torch.tensor(MEAN) + torch.randn(CHAINS, 3).double() @ FACTOR.T
START = {"weight": EXACT[:, :2], "bias": EXACT[:, 2]}

# steps of 1.6 standard deviations, at which leapfrogs lose energy and many ends are rejected
COARSE = {"step_size": 1.6, "trajectory": 3.2, "start": START}


def test_the_adapted_sampler_has_the_conjugate_posterior(traced_samplers):
    posterior = run(warmup=150, chains=128)
    assert regression_deviation(posterior) < SIGMAS
    assert 0.6 < float(posterior.statistics["acceptance_rate"].mean()) < 0.95
    assert posterior.facts["warnings"] == []


def test_a_coarse_step_that_rejects_much_leaves_the_posterior_exact(traced_samplers):
    posterior = run(**COARSE)
    assert float(posterior.statistics["acceptance_rate"].mean()) < 0.8
    assert regression_deviation(posterior) < SIGMAS


def test_without_a_warm_up_a_start_in_the_posterior_stays_there(traced_samplers):
    steps = {"step_size": 1.5 / math.sqrt(STIFF), "trajectory": 3.0 / math.sqrt(STIFF)}
    assert regression_deviation(run(warmup=0, start=START, **steps)) < SIGMAS


# --- Sites that are not real numbers ----------------------------------------------------------

SAMPLE = torch.tensor([0.3, -1.2, 0.8, 2.1, -0.4], dtype=torch.float64)


def scaled(prior):
    def model(y):
        scale = pyro.sample("scale", prior)
        with pyro.plate("data", len(SAMPLE), subsample=range(len(y))):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    return model


def scale_moments(prior):
    """The posterior means of scale, its square and its logarithm, by quadrature."""

    def density(s):
        return prior.pdf(s) * stats.norm(0, s).pdf(SAMPLE.numpy()).prod()

    def integral(function):
        return integrate.quad(lambda s: function(s) * density(s), 0, 60, points=[1, 3])[0]

    return [integral(function) / integral(np.ones_like) for function in FUNCTIONS]


FUNCTIONS = (lambda s: s, lambda s: s**2, np.log)
one = torch.ones((), dtype=torch.float64)
PRIORS = {
    "half-normal": (dist.HalfNormal(one), stats.halfnorm()),
    "gamma": (dist.Gamma(2 * one, 3 * one), stats.gamma(2, scale=1 / 3)),
    "inverse gamma": (dist.InverseGamma(3 * one, 2 * one), stats.invgamma(3, scale=2)),
    "uniform": (dist.Uniform(0.5 * one, 2.5 * one), stats.uniform(0.5, 2.0)),
}


def scale_deviation(name):
    prior, exact = PRIORS[name]
    draws = run(scaled(prior), (SAMPLE,), chains=128).draws["scale"].numpy()
    return deviation(np.stack([f(draws) for f in FUNCTIONS], -1), scale_moments(exact))


@pytest.mark.parametrize("name", PRIORS)
def test_a_noise_scale_has_the_posterior_of_quadrature(name, traced_samplers):
    assert scale_deviation(name) < SIGMAS


def test_a_simplex_has_its_dirichlet_posterior(traced_samplers):
    def model(y):
        shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([1.0, 2.0, 0.5]).double()))
        with pyro.plate("data", 6, subsample=range(len(y))):
            pyro.sample("y", dist.Categorical(shares), obs=y)

    y = torch.tensor([0, 0, 1, 2, 2, 2])
    counts = np.array([3.0, 3.0, 3.5])
    draws = run(model, (y,), chains=128, warmup=100).draws["shares"].numpy()
    exact = stats.dirichlet(counts)
    values = np.concatenate([draws, draws**2], -1)
    moments = np.concatenate([exact.mean(), exact.var() + exact.mean() ** 2])
    assert deviation(values, moments) < SIGMAS


@pytest.mark.slow
def test_a_regularised_horseshoe_is_sampled_with_few_divergences(traced_samplers):
    torch.manual_seed(0)
    x = torch.randn(30, 4)
    y = x[:, 0] + 0.1 * torch.randn(30)
    prior = {"*": priors.Horseshoe(global_scale=0.1, slab=2.0)}
    model = BayesianNet(nn.Linear(4, 1, bias=False), prior, likelihoods.Gaussian(0.1), 30)
    run = {
        "chains": 8,
        "warmup": 150,
        "draws": 50,
        "target_acceptance": 0.9,
        "max_steps": 50,
        "progress": False,
    }
    posterior = mcmc.hmc(model, (x, y), **run)
    assert float(posterior.statistics["diverging"].double().mean()) < 0.02
    weight = posterior.sample(400)["weight"][:, 0]
    assert abs(float(weight[:, 0].mean()) - 1) < 0.05
    assert float(weight[:, 1:].abs().mean()) < 0.05


# --- Seeded bugs -------------------------------------------------------------------

BUGS = {
    "no accept step": (
        HMC,
        "step",
        "random.uniform.to(acceptance) < acceptance",
        "acceptance >= 0",
    ),
    "always the position of the proposal": (
        HMC,
        "step",
        "position=torch.where(rows, position, state.position)",
        "position=position",
    ),
    "the old gradient with the new position": (
        HMC,
        "step",
        "gradient=torch.where(rows, gradient, state.gradient)",
        "gradient=state.gradient",
    ),
    "a first half step that is whole": (
        HMC,
        "make_update",
        "0.5 * step_size * gradient\n        position",
        "step_size * gradient\n        position",
    ),
    "no last half step": (
        HMC,
        "make_update",
        "momentum + 0.5 * step_size * gradient, gradient",
        "momentum, gradient",
    ),
    "momentum not scaled by the mass matrix": (
        HMC,
        "step",
        "random.normal * state.variance.rsqrt()",
        "random.normal",
    ),
    "a kinetic energy without its half": (hamiltonian, "_energy", "0.5 *", "1.0 *"),
    "a kinetic energy without the mass matrix": (hamiltonian, "_energy", " * variance", ""),
    "a coin that accepts too often": (HMC, "step", "random.uniform.to", "0.5 * random.uniform.to"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_conjugate_posterior_rejects(bug, seeded_bug, traced_samplers):
    seeded_bug(*BUGS[bug])
    try:
        largest = regression_deviation(run(**COARSE, draws=100))
    except (mcmc.SamplingError, ValueError):  # a position became NaN or infinite
        largest = math.inf
    assert largest > 1.5 * SIGMAS


@pytest.mark.parametrize("wrong", ["jacobian", "jacobian - log_det.sum()"])
def test_quadrature_rejects_a_missing_jacobian_and_one_of_the_wrong_sign(
    wrong, seeded_bug, traced_samplers
):
    seeded_bug(LogDensity, "_values", "jacobian + log_det.sum()", wrong)
    assert scale_deviation("half-normal") > 2 * SIGMAS


# --- Wrong input --------------------------------------------------------------------------


def test_improper_priors_and_free_parameters_are_errors():
    x, y = torch.randn(6, 2), torch.randn(6)
    net, likelihood = nn.Linear(2, 1), likelihoods.Gaussian(0.3)
    with pytest.raises(ImproperPriorError, match=r"^hmc: site .*weight"):
        mcmc.hmc(BayesianNet(net, {"*": priors.LogUniform()}, likelihood, 6), (x, y))
    with pytest.raises(ValueError, match=r"^hmc: .*net\.bias.*free"):
        mcmc.hmc(BayesianNet(net, priors.Normal(1.0), likelihood, 6), (x, y))


@pytest.mark.parametrize(
    "wrong",
    [{"step_size": 0.0}, {"trajectory": -1.0}, {"target_acceptance": 1.0}, {"max_steps": 0}],
)
def test_a_setting_out_of_range_is_an_error_that_names_it(wrong):
    with pytest.raises(ValueError, match=f"^hmc: expected a.*{next(iter(wrong))}"):
        run(**wrong)


def needle(y):
    """A posterior so narrow that no step size in float32 suits it."""
    q = pyro.sample("q", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", 1):
        pyro.sample("y", dist.Normal(q, 1e-17), obs=y)


NEEDLE = {"chains": 4, "compile": False, "start": {"q": torch.tensor(0.0)}}


def test_a_posterior_too_narrow_for_any_first_step_is_an_error():
    message = "^hmc: no step size down to 1e-12 is accepted at the start"
    with pytest.raises(mcmc.SamplingError, match=message):
        run(needle, (torch.zeros(1),), **NEEDLE)


def test_a_step_size_that_falls_to_zero_is_an_error(monkeypatch):
    monkeypatch.setattr(hamiltonian, "_reasonable_step_size", lambda *_: 1e-9)
    message = r"^hmc: the step size fell below 1e-10.*start elsewhere"
    with pytest.raises(mcmc.SamplingError, match=message):
        run(needle, (torch.zeros(1),), trajectory=1e-9, **NEEDLE)


def test_chains_that_diverge_at_every_draw_are_an_error(traced_samplers):
    message = r"^hmc: all 4 chains diverged at every draw.*longer warm-up"
    with pytest.raises(mcmc.SamplingError, match=message):
        run(chains=4, warmup=0, draws=10, step_size=1e3, trajectory=1e4)


def test_chains_in_different_modes_are_reported_in_a_warning_and_in_the_facts(traced_samplers):
    def modes(y):
        q = pyro.sample("q", dist.Normal(y.new_zeros(()), 10.0))
        with pyro.plate("data", 1):
            pyro.sample("y", dist.Normal(q.abs() + 0.3 * (q > 0), 0.01), obs=y)

    start = {"q": torch.tensor([-5.0, 5.0, -5.0, 5.0])}
    small = {"chains": 4, "warmup": 20, "step_size": 0.003, "trajectory": 0.01}
    with pytest.warns(mcmc.ConvergenceWarning, match=r"^hmc: .*R-hat of the log density"):
        posterior = run(modes, (torch.tensor([5.2]),), start=start, **small)
    assert "do not agree" in posterior.facts["warnings"][0]
    assert isinstance(posterior, Posterior)


def test_the_statistics_of_a_draw_are_those_of_the_documentation(traced_samplers):
    posterior = run(chains=4)
    names = ["lp", "acceptance_rate", "diverging", "energy", "step_size", "n_steps"]
    assert list(posterior.statistics) == names
    assert all(value.shape == (4, 50) for value in posterior.statistics.values())


def test_the_statistic_lp_is_the_log_density_of_the_draw(traced_samplers):
    posterior = run(chains=4)
    draw = {name: value[2, 30] for name, value in posterior.draws.items()}
    trace = pyro.poutine.trace(pyro.condition(MODEL, data=draw)).get_trace(X, Y)
    expected = float(trace.log_prob_sum())
    assert math.isclose(float(posterior.statistics["lp"][2, 30]), expected, rel_tol=1e-10)
