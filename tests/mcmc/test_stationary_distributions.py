"""The stochastic-gradient samplers against their exact stationary distributions.

The distributions are those of tests/mcmc/stationary.py. Statistical tests have fixed seeds and 4.5
standard errors: on a fresh seed each number would fail falsely with a probability of 7e-6, or 2e-5
where the standard error is that between 256 chains (Student's t). Some 200 numbers are compared,
which is below 0.3 % for the whole file.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_bnn import mcmc
from pyro_bnn.mcmc.langevin import SGLD
from pyro_bnn.mcmc.noise import Noise
from pyro_bnn.mcmc.preconditioned_langevin import PSGLD
from pyro_bnn.mcmc.stochastic_hamiltonian import SGHMC
from pyro_bnn.mcmc.underdamped_langevin import BAOA
from tests.mcmc.stationary import (
    CHAINS,
    MEAN,
    NOISE,
    PRECISION,
    RECURSIONS,
    SAMPLERS,
    SIGMAS,
    STEPS,
    STIFF,
    N,
    baoa_recursion,
    deviation,
    positions,
    run,
    sghmc_recursion,
    sgld_recursion,
    stationary,
)

pytestmark = pytest.mark.filterwarnings("ignore::pyro_bnn.mcmc.ConvergenceWarning")


@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_on_all_the_data_have_the_exact_biased_distribution(
    name, temperature, traced_samplers
):
    settings = {"step_size": STEPS[name], "temperature": temperature}
    assert deviation(run(name, **settings), RECURSIONS[name], **settings) < SIGMAS


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_on_minibatches_have_the_exact_distribution_with_their_noise(name, traced_samplers):
    settings = {"step_size": (0.5 if "sgld" in name else 0.2) * STEPS[name]}
    posterior = run(name, batch_size=3, thin=20, **settings)
    assert deviation(posterior, RECURSIONS[name], batch_size=3, thin=20, **settings) < SIGMAS
    # the noise of the minibatches makes up a considerable part of the variance
    with_noise = np.diag(stationary(RECURSIONS[name], 3, **settings))
    without_noise = np.diag(stationary(RECURSIONS[name], **settings))
    assert (with_noise / without_noise)[:3].mean() > 1.1


def test_sghmc_subtracts_its_estimate_of_the_gradient_noise(traced_samplers):
    settings = {"step_size": STEPS["sghmc"], "noise_estimate": 0.1}
    assert deviation(run("sghmc", **settings), sghmc_recursion, **settings) < SIGMAS


def test_the_variance_of_a_location_model_has_its_closed_form(traced_samplers):
    """Additive minibatch noise of variance V gives s^2 (1 + eps V / 4) / (1 - eps / (4 s^2))."""
    y = torch.linspace(-2, 2, N, dtype=torch.float64)

    def location(y):
        mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
        with pyro.plate("data", N, subsample=range(len(y))):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    variance, step_size = 1 / (N + 1), 0.05
    noise = N**2 * float(y.var(correction=0)) / 4
    exact = variance * (1 + step_size * noise / 4) / (1 - step_size / (4 * variance))
    run = {
        "chains": 256,
        "warmup": 100,
        "draws": 60,
        "thin": 5,
        "batch_size": 4,
        "start": {"mean": y.mean()},
    }
    draws = mcmc.sgld(location, (y,), step_size=step_size, progress=False, **run).draws["mean"]
    each = draws.square().mean(1)
    assert abs(float(each.mean()) - exact) < SIGMAS * float(each.std()) / 16


def relative_bias(name, step_size):
    """The relative bias of the variance: the trace of P A / 3 is one without bias."""
    z = positions(run(name, step_size=step_size, draws=100, thin=10)) - MEAN
    return np.einsum("cti,ij,ctj->", z, PRECISION, z) / (3 * CHAINS * 100) - 1


@pytest.mark.parametrize("name", ["sgld", pytest.param("sghmc", marks=pytest.mark.slow)])
def test_the_bias_of_sgld_and_sghmc_is_proportional_to_the_step(name, traced_samplers):
    steps = np.array([0.25, 0.5, 1.0]) / STIFF
    biases = [relative_bias(name, step) for step in steps]
    assert min(biases) > 0.01
    slope = np.polyfit(np.log(steps), np.log(biases), 1)[0]
    assert abs(slope - 1) < 0.3


@pytest.mark.parametrize("step", [0.3, 1.0, 1.7])
def test_baoa_has_no_bias_on_a_gaussian_posterior_at_any_step(step):
    covariance = stationary(baoa_recursion, step_size=step / math.sqrt(STIFF))[:3, :3]
    assert np.allclose(covariance, np.linalg.inv(PRECISION), rtol=1e-9)


# --- Seeded bugs: the same statistic rejects every one of them ---------------------------------

BUGS = {
    "sgld without the factor 1/2": (
        SGLD,
        "0.5 * step_size * gradient",
        "step_size * gradient",
    ),
    "sgld with noise of scale eps instead of its root": (
        SGLD,
        "(step_size * temperature).sqrt()",
        "step_size * temperature.sqrt()",
    ),
    "sgld with the square of the temperature": (
        SGLD,
        "(step_size * temperature).sqrt()",
        "step_size.sqrt() * temperature",
    ),
    "sgld with twice the variance of the noise": (
        SGLD,
        "(step_size * temperature).sqrt()",
        "(2 * step_size * temperature).sqrt()",
    ),
    "sgld with twice the log density": (
        SGLD,
        "position + 0.5 * step_size * gradient",
        "position + 0.5 * step_size * 2 * gradient",
    ),
    "sgld with one noise for all chains": (
        SGLD,
        "* normal",
        "* normal[:1]",
    ),
    "psgld with a preconditioner of the noise only": (
        PSGLD,
        "(scale * gradient)",
        "gradient",
    ),
    "psgld with noise of scale G instead of its root": (
        PSGLD,
        "(step_size * temperature * scale).sqrt()",
        "(step_size * temperature).sqrt() * scale",
    ),
    "psgld with a preconditioner of the drift only": (
        PSGLD,
        "(step_size * temperature * scale).sqrt()",
        "(step_size * temperature).sqrt()",
    ),
    "sghmc with half the variance of the noise": (
        SGHMC,
        "(2 * (self.friction",
        "((self.friction",
    ),
    "sghmc without friction": (
        SGHMC,
        "(1 - self.friction) * velocity",
        "velocity",
    ),
    "sghmc with the square of the friction in the noise": (
        SGHMC,
        "self.friction - self.noise_estimate",
        "self.friction**2",
    ),
    "sghmc with half the velocity": (
        SGHMC,
        "position + velocity",
        "position + 0.5 * velocity",
    ),
    "baoa without a half step of the position": (
        BAOA,
        "position = position + 0.5 * step_size * momentum\n        c =",
        "c =",
    ),
    "baoa with a linearised friction": (
        BAOA,
        "(-friction * step_size).exp()",
        "1 - friction * step_size",
    ),
    "baoa with noise of variance 1 - c instead of 1 - c^2": (
        BAOA,
        "-2 * friction",
        "-friction",
    ),
    "baoa with half the kick": (
        BAOA,
        "momentum + step_size * gradient",
        "momentum + 0.5 * step_size * gradient",
    ),
    "baoa without friction": (
        BAOA,
        "c * momentum + noise * normal",
        "momentum + noise * normal",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_comparison_rejects(bug, seeded_bug, traced_samplers):
    sampler, right, wrong = BUGS[bug]
    seeded_bug(sampler, "make_update", right, wrong)
    name = sampler.caller
    arguments = {"step_size": STEPS[name], "temperature": 0.25}
    assert deviation(run(name, **arguments), RECURSIONS[name], **arguments) > 2 * SIGMAS


@pytest.mark.parametrize("sampler", [SGLD, BAOA])
def test_a_gradient_of_the_wrong_sign_ends_in_an_error(sampler, seeded_bug, traced_samplers):
    seeded_bug(sampler, "make_update", "step_size * gradient", "step_size * -gradient")
    with pytest.raises(mcmc.SamplingError, match="NaN or infinite"):
        run(sampler.caller, warmup=3000)


def test_the_comparison_rejects_a_likelihood_that_is_not_scaled_to_all_the_data(traced_samplers):
    def unscaled(x, y):
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        bias = pyro.sample("bias", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("y", dist.Normal(x @ weight + bias, NOISE).to_event(1), obs=y)

    settings = {"step_size": 0.2 * STEPS["sgld"]}
    posterior = run("sgld", unscaled, batch_size=3, thin=20, **settings)
    assert deviation(posterior, sgld_recursion, batch_size=3, thin=20, **settings) > 2 * SIGMAS


def test_the_comparison_rejects_minibatches_without_replacement(traced_samplers, monkeypatch):
    def permuted(self):
        numbers = original(self)
        order = torch.rand(len(numbers.examples), N).argsort(1)
        return numbers._replace(examples=order[:, : self.batch_size])

    original = Noise.next
    monkeypatch.setattr(Noise, "next", permuted)
    settings = {"step_size": STEPS["sgld"]}
    posterior = run("sgld", batch_size=8, draws=100, **settings)
    assert deviation(posterior, sgld_recursion, batch_size=8, **settings) > SIGMAS
