r"""The stochastic-gradient samplers against their exact laws.

On a Gaussian posterior every one of them is a linear recursion :math:`s' = K s + L e + \text{noise}` with independent
:math:`K, e` at each step, so its stationary covariance, bias and minibatch noise included, solves a linear equation; so
do the standard errors of what is estimated from draws. Nothing is tested with a small step and a loose tolerance.

Statistical tests have fixed seeds and 4.5 standard errors: on a fresh seed each number would fail falsely with a
probability of 7e-6, or 2e-5 where the standard error is that between 256 chains (Student's t). The laws compare some
200 numbers, which is below 0.3 % for the whole file.
"""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from pyro_bnn import BayesianNet, likelihoods, mcmc, priors
from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.mcmc import chains as loop
from pyro_bnn.mcmc.langevin import SGLD
from pyro_bnn.mcmc.preconditioned_langevin import PSGLD
from pyro_bnn.mcmc.stochastic_hamiltonian import SGHMC
from pyro_bnn.mcmc.underdamped_langevin import BAOA
from pyro_bnn.models import linear_regression

pytestmark = pytest.mark.filterwarnings("ignore::pyro_bnn.mcmc.ConvergenceWarning")

N, NOISE, SIGMAS, CHAINS = 12, 0.5, 4.5, 256
VERBS = {"sgld": mcmc.sgld, "psgld": mcmc.psgld, "sghmc": mcmc.sghmc, "baoa": mcmc.baoa}


def regression_data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 2, generator=generator, dtype=torch.float64)
    return x, x @ torch.tensor([1.0, -0.5], dtype=torch.float64) + 0.3 + NOISE * torch.randn(
        N, generator=generator, dtype=torch.float64
    )


X, Y = regression_data()
MODEL = linear_regression(N, inputs=2, prior_scale=1.0, noise=NOISE)
DESIGN = np.column_stack([X.numpy(), np.ones(N)])
EACH = np.einsum("ni,nj->nij", DESIGN, DESIGN) / NOISE**2  # precision that each example adds
PRECISION = EACH.sum(0) + np.eye(3)
MEAN = np.linalg.solve(PRECISION, DESIGN.T @ Y.numpy() / NOISE**2)
RESIDUALS = (
    DESIGN * (Y.numpy() - DESIGN @ MEAN)[:, None] / NOISE**2
)  # each example's part of the gradient at the mean
STIFF = np.linalg.eigvalsh(PRECISION)[-1]
SCALES = np.array([0.5, 1.0, 2.0])  # a preconditioner


# --- The laws: q' = K q + L e + noise, as functions of the precision A that the gradient shows -----------------------


def sgld_law(A, step_size, temperature=1.0):
    identity = np.eye(3)
    return (
        identity - step_size / 2 * A,
        step_size / 2 * identity,
        step_size * temperature * identity,
    )


def psgld_law(A, step_size, temperature=1.0):
    G = np.diag(SCALES)
    return np.eye(3) - step_size / 2 * G @ A, step_size / 2 * G, step_size * temperature * G


def sghmc_law(A, step_size, temperature=1.0, friction=0.3, noise_estimate=0.0):
    I, kept = np.eye(3), 1 - friction
    noise = 2 * (friction - noise_estimate) * step_size * temperature
    K = np.block([[I - step_size * A, kept * I], [-step_size * A, kept * I]])
    return K, step_size * np.vstack([I, I]), noise * np.kron(np.ones((2, 2)), I)


def baoa_law(A, step_size, temperature=1.0, friction=4.0):
    I, h, c = np.eye(3), step_size, math.exp(-friction * step_size)
    K = np.block([[I - h**2 * (1 + c) / 2 * A, h * (1 + c) / 2 * I], [-h * c * A, c * I]])
    L = np.vstack([h**2 * (1 + c) / 2 * I, h * c * I])
    return K, L, temperature * (1 - c**2) * np.kron([[h**2 / 4, h / 2], [h / 2, 1]], I)


LAWS = {"sgld": sgld_law, "psgld": psgld_law, "sghmc": sghmc_law, "baoa": baoa_law}
OWN = {
    "sgld": {},
    "psgld": {"preconditioner": torch.tensor(SCALES)},
    "sghmc": {"friction": 0.3},
    "baoa": {"friction": 4.0},
}
# far from small: the bias of sgld is 33 % of the smallest variance
STEPS = {
    "sgld": 1 / STIFF,
    "psgld": 0.7 / STIFF,
    "sghmc": 0.5 / STIFF,
    "baoa": 1 / math.sqrt(STIFF),
}


def stationary(law, batch_size=None, **settings):
    """The exact stationary covariance of the recursion, by minibatches of iid examples or on all the data."""
    K, L, Q = law(PRECISION, **settings)
    if batch_size is None:
        return solve_discrete_lyapunov(K, Q)
    # E[K x K] = K x K + (1/B) mean_i of dK_i x dK_i, where dK_i is what example i, taken N times, changes in K
    changes = [law(PRECISION + N * EACH[i] - EACH.sum(0), **settings)[0] - K for i in range(N)]
    squares = np.kron(K, K) + sum(np.kron(d, d) for d in changes) / (N * batch_size)
    deviations = N * RESIDUALS - RESIDUALS.sum(0)
    Q = Q + L @ (deviations.T @ deviations / (N * batch_size)) @ L.T
    return np.linalg.solve(np.eye(squares.shape[0]) - squares, Q.reshape(-1)).reshape(Q.shape)


def standard_errors(K, P, draws, thin, chains):
    """Standard errors of mean and covariance of the positions, exact for a Gaussian recursion of known mean."""
    step, cross = np.linalg.matrix_power(K, thin), P
    variance_of_mean, variance = (
        draws * np.diag(P),
        draws * (np.outer(np.diag(P), np.diag(P)) + P**2),
    )
    for lag in range(1, draws):
        cross = step @ cross  # Cov(s_{t + lag}, s_t)
        d = np.diag(cross)
        variance_of_mean = variance_of_mean + 2 * (draws - lag) * d
        # Isserlis: Cov(a b, a' b') = Cov(a, a') Cov(b, b') + Cov(a, b') Cov(b, a')
        variance = variance + 2 * (draws - lag) * (np.outer(d, d) + cross * cross.T)
    return (np.sqrt(v[..., :3] / chains) / draws for v in (variance_of_mean, variance[:3]))


def positions(posterior):
    """Draws as one array (chain, draw, 3)."""
    draws = posterior.draws
    return torch.cat([draws["weight"], draws["bias"][..., None]], -1).numpy()


def run(name, model=MODEL, data=(X, Y), **settings):
    settings = {
        "step_size": STEPS[name],
        "chains": CHAINS,
        "warmup": 300,
        "draws": 40,
        "thin": 5,
    } | settings
    return VERBS[name](model, data, start=START, progress=False, **OWN[name], **settings)


START = {"weight": torch.tensor(MEAN[:2]), "bias": torch.tensor(MEAN[2])}


def deviation(posterior, law, batch_size=None, thin=5, **settings):
    """The largest deviation of mean and covariance from the exact law, in standard errors."""
    found = positions(posterior)
    P = stationary(law, batch_size, **settings)
    chains, draws, _ = found.shape
    centred = found - MEAN
    each = np.einsum("cti,ctj->cij", centred, centred) / draws
    if batch_size is None:
        errors = standard_errors(law(PRECISION, **settings)[0], P, draws, thin, chains)
    else:  # multiplicative noise is not Gaussian: the chains are independent, so they tell their own errors
        errors = (centred.mean(1).std(0) / math.sqrt(chains), each.std(0) / math.sqrt(chains))
    mean_error, error = errors
    return max(
        np.abs(centred.mean((0, 1)) / mean_error).max(),
        np.abs((each.mean(0) - P[:3, :3]) / error).max(),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("name", VERBS)
def test_on_all_the_data_the_draws_follow_the_exact_biased_law(name, temperature, traced_samplers):
    settings = {"step_size": STEPS[name], "temperature": temperature}
    assert deviation(run(name, **settings), LAWS[name], **settings) < SIGMAS


@pytest.mark.parametrize("name", VERBS)
def test_with_minibatches_the_draws_follow_the_exact_law_of_their_noise(name, traced_samplers):
    settings = {"step_size": (0.5 if "sgld" in name else 0.2) * STEPS[name]}
    posterior = run(name, batch_size=3, thin=20, **settings)
    assert deviation(posterior, LAWS[name], batch_size=3, thin=20, **settings) < SIGMAS
    # the noise of the minibatches is no small part of that law
    shares = np.diag(stationary(LAWS[name], 3, **settings)) / np.diag(
        stationary(LAWS[name], **settings)
    )
    assert shares[:3].mean() > 1.1


def test_sghmc_takes_out_the_noise_that_it_is_told_of(traced_samplers):
    settings = {"step_size": STEPS["sghmc"], "noise_estimate": 0.1}
    assert deviation(run("sghmc", **settings), sghmc_law, **settings) < SIGMAS


def test_a_location_model_has_the_variance_of_the_textbook(traced_samplers):
    """Additive minibatch noise of variance V: s^2 (1 + eps V / 4) / (1 - eps / (4 s^2)), by hand."""
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


def test_the_bias_grows_with_the_step_of_sgld_with_the_square_of_that_of_sghmc_and_not_at_all_for_baoa(
    traced_samplers,
):
    truth = np.linalg.inv(PRECISION)
    slopes = {}
    for name, power in (
        ("sgld", 1.0),
        ("sghmc", 0.5),
    ):  # the step of sghmc is the square of its time
        steps = np.array([0.25, 0.5, 1.0]) / STIFF
        # the trace of P A / 3 is one without bias
        biases = [
            np.einsum(
                "cti,ij,ctj->",
                z := positions(run(name, step_size=h, draws=100, thin=10)) - MEAN,
                PRECISION,
                z,
            )
            / (3 * CHAINS * 100)
            - 1
            for h in steps
        ]
        assert min(biases) > 0.01
        slopes[name] = np.polyfit(np.log(steps**power), np.log(biases), 1)[0]
    assert abs(slopes["sgld"] - 1) < 0.3
    assert abs(slopes["sghmc"] - 2) < 0.6
    for share in (0.3, 1.0, 1.7):
        assert np.allclose(
            stationary(baoa_law, step_size=share / math.sqrt(STIFF))[:3, :3], truth, rtol=1e-9
        )


# --- Bugs put in on purpose: the same statistic rejects every one of them --------------------------------------------

BUGS = [
    ("sgld", SGLD, "0.5 * step_size * slope", "step_size * slope"),  # a missing 1/2
    (
        "sgld",
        SGLD,
        "(step_size * temperature).sqrt()",
        "step_size * temperature.sqrt()",
    ),  # noise eps, not its root
    (
        "sgld",
        SGLD,
        "(step_size * temperature).sqrt()",
        "step_size.sqrt() * temperature",
    ),  # temperature squared
    ("sgld", SGLD, "(step_size * temperature).sqrt()", "(2 * step_size * temperature).sqrt()"),
    (
        "sgld",
        SGLD,
        "position + 0.5 * step_size * slope",
        "position + 0.5 * step_size * 2 * slope",
    ),  # U counted twice
    ("sgld", SGLD, "* normal", "* normal[:1]"),  # one noise for all chains
    ("psgld", PSGLD, "(scale * slope)", "slope"),  # noise preconditioned, drift not
    (
        "psgld",
        PSGLD,
        "(step_size * temperature * scale).sqrt()",
        "(step_size * temperature).sqrt() * scale",
    ),
    (
        "psgld",
        PSGLD,
        "(step_size * temperature * scale).sqrt()",
        "(step_size * temperature).sqrt()",
    ),
    ("sghmc", SGHMC, "(2 * (self.friction", "((self.friction"),  # half the noise
    ("sghmc", SGHMC, "(1 - self.friction) * velocity", "velocity"),  # no friction
    ("sghmc", SGHMC, "self.friction - self.noise_estimate", "self.friction**2"),
    ("sghmc", SGHMC, "position + velocity", "position + 0.5 * velocity"),
    (
        "baoa",
        BAOA,
        "position = position + 0.5 * step_size * momentum\n        kept",
        "kept",
    ),  # one half step missing
    ("baoa", BAOA, "(-friction * step_size).exp()", "1 - friction * step_size"),
    ("baoa", BAOA, "-2 * friction", "-friction"),  # 1 - c instead of 1 - c^2
    ("baoa", BAOA, "momentum + step_size * slope", "momentum + 0.5 * step_size * slope"),
    ("baoa", BAOA, "kept * momentum + noise * normal", "momentum + noise * normal"),
]


@pytest.mark.parametrize(("name", "settings", "right", "wrong"), BUGS)
def test_the_law_rejects(name, settings, right, wrong, seeded_bug, traced_samplers):
    seeded_bug(settings, "function", right, wrong)
    arguments = {"step_size": STEPS[name], "temperature": 0.25}
    assert deviation(run(name, **arguments), LAWS[name], **arguments) > 2 * SIGMAS


@pytest.mark.parametrize("settings", [SGLD, BAOA])
def test_a_gradient_of_the_wrong_sign_ends_in_an_error(settings, seeded_bug, traced_samplers):
    seeded_bug(settings, "function", "step_size * slope", "step_size * -slope")
    with pytest.raises(mcmc.SamplingError, match="left the finite numbers"):
        run(settings.name.lower(), warmup=3000)


def test_the_law_rejects_a_likelihood_that_is_not_scaled_to_all_the_data(traced_samplers):
    def unscaled(x, y):
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        bias = pyro.sample("bias", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("y", dist.Normal(x @ weight + bias, NOISE).to_event(1), obs=y)

    settings = {"step_size": 0.2 * STEPS["sgld"]}
    posterior = run("sgld", unscaled, batch_size=3, thin=20, **settings)
    assert deviation(posterior, sgld_law, batch_size=3, thin=20, **settings) > 2 * SIGMAS


def test_the_law_rejects_minibatches_without_replacement(traced_samplers, monkeypatch):
    def permuted(self):
        numbers = original(self)
        order = torch.rand(len(numbers.examples), N).argsort(1)
        return numbers._replace(examples=order[:, : self.batch_size])

    original = loop.Noise.next
    monkeypatch.setattr(loop.Noise, "next", permuted)
    settings = {"step_size": STEPS["sgld"]}
    posterior = run("sgld", batch_size=8, draws=100, **settings)
    assert deviation(posterior, sgld_law, batch_size=8, **settings) > SIGMAS


# --- What the algorithms are to each other ---------------------------------------------------------------------------


def same(one, other, rtol=0.0):
    return all(
        torch.allclose(one.draws[name], other.draws[name], rtol=rtol, atol=rtol)
        for name in one.draws
    )


short = partial(run, chains=3, warmup=5, draws=10, thin=2, batch_size=4, compile=False)


def test_psgld_with_the_identity_for_preconditioner_is_sgld_bit_for_bit():
    arguments = {
        "chains": 3,
        "warmup": 5,
        "draws": 10,
        "batch_size": 4,
        "compile": False,
        "progress": False,
    }
    one = mcmc.psgld(MODEL, (X, Y), step_size=1e-3, preconditioner=1.0, **arguments)
    assert same(one, mcmc.sgld(MODEL, (X, Y), step_size=1e-3, **arguments))


def test_sghmc_that_loses_all_momentum_is_sgld_of_twice_the_step():
    arguments = {
        "chains": 3,
        "warmup": 5,
        "draws": 10,
        "batch_size": 4,
        "compile": False,
        "progress": False,
    }
    one = mcmc.sghmc(MODEL, (X, Y), step_size=1e-3, friction=1.0, **arguments)
    assert same(one, mcmc.sgld(MODEL, (X, Y), step_size=2e-3, **arguments), rtol=1e-12)


def test_at_temperature_zero_sgld_climbs_to_the_mode():
    posterior = short("sgld", temperature=0.0, batch_size=None, warmup=300)
    assert np.allclose(positions(posterior), MEAN, atol=1e-10)


def test_psgld_adapts_its_scale_to_every_coordinate_and_can_stop():
    def stretched(x):
        with pyro.plate("each", 2):
            q = pyro.sample("q", dist.Normal(x.new_zeros(2), x.new_tensor([0.01, 1.0])))
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(q.sum(), 1e6), obs=x)

    def states(**settings):
        kept = []
        original = PSGLD.step
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PSGLD, "step", lambda *a: kept.append(result := original(*a)) or result)
            mcmc.psgld(stretched, (torch.zeros(2),), step_size=1e-5, chains=2, warmup=30, draws=5, progress=False,
                       compile=False, **settings)  # fmt: skip
        return [state for state, _ in kept]

    moving = states()[-1].squares
    assert float((moving[:, 0] / moving[:, 1]).min()) > 100
    held = states(adapt_draws=False)
    assert not torch.equal(held[10].squares, held[20].squares)
    assert torch.equal(held[29].squares, held[-1].squares)


def test_the_log_density_noted_is_that_of_the_draw():
    posterior = short("sgld", batch_size=None)
    draw = {name: value[1, 3] for name, value in posterior.draws.items()}
    trace = pyro.poutine.trace(pyro.condition(MODEL, data=draw)).get_trace(X, Y)
    assert math.isclose(
        float(posterior.statistics["lp"][1, 3]), float(trace.log_prob_sum()), rel_tol=1e-12
    )


# --- Two modes -------------------------------------------------------------------------------------------------------


def two_modes(x):
    """Welling & Teh (2011), section 5.1: means tied so that (0, 1) and (1, -1) explain the data equally well."""
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
    first, second = torch.meshgrid(
        *(torch.linspace(a, b, 301).double() for a, b in ((-2, 3), (-4, 4))), indexing="ij"
    )
    likelihood = torch.zeros_like(first)
    for one in x:
        parts = torch.stack([-((one - first) ** 2) / 4, -((one - first - second) ** 2) / 4])
        likelihood += parts.logsumexp(0)
    weights = (likelihood - first**2 / 20 - second**2 / 2).flatten().softmax(0)
    return float(weights[second.flatten() > 0].sum())


@pytest.mark.parametrize("batch_size", [None, 10])
def test_sgld_finds_both_modes_and_their_masses(batch_size, traced_samplers):
    x = two_mode_data()
    step_size = 0.01 if batch_size is None else mcmc.polynomial_decay(0.2, b=231, gamma=0.55)
    posterior = mcmc.sgld(two_modes, (x,), step_size=step_size, chains=256, warmup=200, draws=200, thin=8,
                          batch_size=batch_size, progress=False)  # fmt: skip
    above = (posterior.draws["second"] > 0).double()
    weights = posterior.statistics["step_size"]
    each = (weights * above).sum(1) / weights.sum(1)
    assert 0.1 < mass_on_a_grid(x) < 0.9
    assert (
        abs(float(each.mean()) - mass_on_a_grid(x))
        < SIGMAS * float(each.std()) / math.sqrt(256) + 0.01
    )


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERBS)
def test_every_sampler_refuses_improper_priors_and_free_parameters(name):
    x, y = torch.randn(6, 2), torch.randn(6)
    net = torch.nn.Linear(2, 1)
    improper = BayesianNet(net, {"*": priors.LogUniform()}, likelihoods.Gaussian(0.3), 6)
    with pytest.raises(ImproperPriorError, match="weight"):
        VERBS[name](improper, (x, y), step_size=1e-3, progress=False)
    free = BayesianNet(net, priors.Normal(1.0), likelihoods.Gaussian(0.3), 6)
    with pytest.raises(ValueError, match=r"net\.bias.*free"):
        VERBS[name](free, (x, y), step_size=1e-3, progress=False)


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize(
    "wrong", [{"step_size": 0.0}, {"step_size": math.nan}, {"temperature": -1.0}]
)
def test_every_sampler_refuses_a_pace_that_makes_no_sense(name, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VERBS[name](MODEL, (X, Y), **{"step_size": 1e-3, "progress": False} | wrong)


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
def test_settings_that_make_no_sense_are_refused_by_name(name, wrong):
    with pytest.raises(ValueError, match=f"{name}: expected a.* {next(reversed(wrong))}"):
        VERBS[name](MODEL, (X, Y), step_size=1e-3, progress=False, compile=False, **wrong)


# --- Compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERBS)
def test_compiled_draws_are_those_of_the_plain_program(name):
    compiled, plain = (
        short(name, step_size=0.1 * STEPS[name], compile=compile) for compile in (True, False)
    )
    assert same(compiled, plain, rtol=1e-9)
