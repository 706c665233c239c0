"""The stochastic-gradient samplers: their relations, both modes of a mixture, wrong settings."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_bnn import BayesianNet, likelihoods, mcmc, priors
from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.mcmc.preconditioned_langevin import PSGLD
from tests.mcmc.stationary import MEAN, MODEL, SAMPLERS, SIGMAS, STEPS, X, Y, positions, run

pytestmark = pytest.mark.filterwarnings("ignore::pyro_bnn.mcmc.ConvergenceWarning")


# --- Relations between the samplers ----------------------------------------------------


def same(one, other, rtol=0.0):
    return all(
        torch.allclose(one.draws[name], other.draws[name], rtol=rtol, atol=rtol)
        for name in one.draws
    )


SHORT = {
    "chains": 3,
    "warmup": 5,
    "draws": 10,
    "batch_size": 4,
    "compile": False,
    "progress": False,
}


def short(name, **settings):
    return run(name, **SHORT | {"thin": 2} | settings)


def test_psgld_with_the_identity_for_preconditioner_is_sgld_bit_for_bit():
    one = mcmc.psgld(MODEL, (X, Y), step_size=1e-3, preconditioner=1.0, **SHORT)
    assert same(one, mcmc.sgld(MODEL, (X, Y), step_size=1e-3, **SHORT))


def test_sghmc_that_loses_all_momentum_is_sgld_of_twice_the_step():
    one = mcmc.sghmc(MODEL, (X, Y), step_size=1e-3, friction=1.0, **SHORT)
    assert same(one, mcmc.sgld(MODEL, (X, Y), step_size=2e-3, **SHORT), rtol=1e-12)


def test_at_temperature_zero_sgld_climbs_to_the_mode():
    posterior = short("sgld", temperature=0.0, batch_size=None, warmup=300)
    assert np.allclose(positions(posterior), MEAN, atol=1e-10)


def test_psgld_scales_every_coordinate_and_can_stop_after_the_warm_up():
    def stretched(x):
        with pyro.plate("each", 2):
            q = pyro.sample("q", dist.Normal(x.new_zeros(2), x.new_tensor([0.01, 1.0])))
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(q.sum(), 1e6), obs=x)

    def states(**settings):
        """The states after each step of a short run."""
        states = []

        def step(*arguments):
            state, info = original(*arguments)
            states.append(state)
            return state, info

        original = PSGLD.step
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PSGLD, "step", step)
            run = {"chains": 2, "warmup": 30, "draws": 5, "compile": False, "progress": False}
            mcmc.psgld(stretched, (torch.zeros(2),), step_size=1e-5, **run, **settings)
        return states

    moving = states()[-1].squares
    assert float((moving[:, 0] / moving[:, 1]).min()) > 100
    held = states(adapt_draws=False)
    assert not torch.equal(held[10].squares, held[20].squares)
    assert torch.equal(held[29].squares, held[-1].squares)


def test_the_statistic_lp_is_the_log_density_of_the_draw():
    posterior = short("sgld", batch_size=None)
    draw = {name: value[1, 3] for name, value in posterior.draws.items()}
    trace = pyro.poutine.trace(pyro.condition(MODEL, data=draw)).get_trace(X, Y)
    assert math.isclose(
        float(posterior.statistics["lp"][1, 3]), float(trace.log_prob_sum()), rel_tol=1e-12
    )


# --- Two modes --------------------------------------------------------------------------------


def two_modes(x):
    """The example of Welling & Teh (2011), section 5.1.

    The means are tied so that (0, 1) and (1, -1) explain the data equally well.
    """
    first = pyro.sample("first", dist.Normal(x.new_zeros(()), math.sqrt(10.0)))
    second = pyro.sample("second", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", 100, subsample=range(len(x))):
        means = torch.stack([first, first + second])
        pyro.sample(
            "x",
            dist.MixtureSameFamily(
                dist.Categorical(logits=x.new_zeros(2)), dist.Normal(means, 2**0.5)
            ),
            obs=x,
        )


def two_mode_data():
    generator = torch.Generator().manual_seed(3)
    component = torch.rand(100, generator=generator).round()
    return (component + 2**0.5 * torch.randn(100, generator=generator)).double()


def mass_on_a_grid(x):
    """The probability that ``second`` is above zero, by quadrature."""
    grids = torch.linspace(-2, 3, 301).double(), torch.linspace(-4, 4, 301).double()
    first, second = torch.meshgrid(*grids, indexing="ij")
    likelihood = torch.zeros_like(first)
    for one in x:
        parts = torch.stack([-((one - first) ** 2) / 4, -((one - first - second) ** 2) / 4])
        likelihood += parts.logsumexp(0)
    weights = (likelihood - first**2 / 20 - second**2 / 2).flatten().softmax(0)
    return float(weights[second.flatten() > 0].sum())


@pytest.mark.parametrize("batch_size", [pytest.param(None, marks=pytest.mark.slow), 10])
def test_sgld_finds_both_modes_and_their_masses(batch_size, traced_samplers):
    x = two_mode_data()
    step_size = 0.01 if batch_size is None else mcmc.polynomial_decay(0.2, b=231, gamma=0.55)
    run = {"chains": 256, "warmup": 200, "draws": 200, "thin": 8, "progress": False}
    posterior = mcmc.sgld(two_modes, (x,), step_size=step_size, batch_size=batch_size, **run)
    above = (posterior.draws["second"] > 0).double()
    weights = posterior.statistics["step_size"]
    each = (weights * above).sum(1) / weights.sum(1)
    assert 0.1 < mass_on_a_grid(x) < 0.9
    tolerance = SIGMAS * float(each.std()) / math.sqrt(256) + 0.01
    assert abs(float(each.mean()) - mass_on_a_grid(x)) < tolerance


# --- Wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_improper_priors_and_free_parameters_are_errors_of_every_sampler(name):
    x, y = torch.randn(6, 2), torch.randn(6)
    net = torch.nn.Linear(2, 1)
    improper = BayesianNet(net, {"*": priors.LogUniform()}, likelihoods.Gaussian(0.3), 6)
    with pytest.raises(ImproperPriorError, match=f"^{name}: site .*weight"):
        SAMPLERS[name](improper, (x, y), step_size=1e-3, progress=False)
    free = BayesianNet(net, priors.Normal(1.0), likelihoods.Gaussian(0.3), 6)
    with pytest.raises(ValueError, match=rf"^{name}: .*net\.bias.*free"):
        SAMPLERS[name](free, (x, y), step_size=1e-3, progress=False)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "wrong", [{"step_size": 0.0}, {"step_size": math.nan}, {"temperature": -1.0}]
)
def test_a_step_size_or_temperature_out_of_range_is_an_error_that_names_it(name, wrong):
    with pytest.raises(ValueError, match=f"^{name}: expected a {next(iter(wrong))}"):
        SAMPLERS[name](MODEL, (X, Y), **{"step_size": 1e-3, "progress": False} | wrong)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("psgld", {"decay": 1.5}),
        ("psgld", {"floor": 0.0}),
        ("psgld", {"preconditioner": -1.0}),
        ("psgld", {"preconditioner": torch.ones(2)}),
        ("sghmc", {"friction": 0.0}),
        ("sghmc", {"friction": 0.1, "noise_estimate": 0.2}),
        ("baoa", {"friction": 0.0}),
    ],
)
def test_a_setting_out_of_range_is_an_error_that_names_it(name, wrong):
    with pytest.raises(ValueError, match=f"^{name}: expected a.* {next(reversed(wrong))}"):
        SAMPLERS[name](MODEL, (X, Y), step_size=1e-3, progress=False, compile=False, **wrong)


# --- Compiled ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_compiled_draws_are_those_of_the_plain_program(name):
    plain = short(name, step_size=0.1 * STEPS[name])
    compiled = short(name, step_size=0.1 * STEPS[name], compile=True)
    assert same(compiled, plain, rtol=1e-9)
