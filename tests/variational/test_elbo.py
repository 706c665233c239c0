"""The ELBO against conjugate posteriors, quadrature, exact enumeration, and Pyro's own estimators.

Statistical tests have fixed seeds, so they pass or fail for good; on a fresh seed each would fail falsely with a
probability of 6e-7 per compared number at 5 standard errors (two-sided), 6e-5 at 4.
"""

import copy
import functools
import math
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import init_to_value
from pyro.nn import PyroModule, PyroParam
from scipy import integrate, special
from torch import nn
from torch.distributions import constraints, kl_divergence

from pyro_bnn import ELBO, BayesianNet, likelihoods, local_reparameterization, priors
from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.guides import (
    BernoulliDropout,
    FactorizedGaussian,
    GaussianDropout,
    MeanField,
    PointEstimate,
)
from pyro_bnn.models import linear_regression

N, D, NOISE, PRIOR = 12, 3, 0.5, 1.5


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    pyro.clear_param_store()
    yield
    assert not list(pyro.get_param_store().keys())  # no test leaves anything there


def double(values):
    return torch.as_tensor(values, dtype=torch.float64)


def values(draw, draws):
    """Independent values of a random number, by one vectorised run of the program."""
    draw()  # validates, and declares parameters
    # vmap refuses tensor.normal_() where the tensor itself has no batch
    fresh = mock.patch.object(torch.Tensor, "normal_", lambda self: torch.randn_like(self))
    with pyro.validation_enabled(False), fresh:
        return torch.vmap(lambda _: draw(), randomness="different")(torch.arange(draws))


def estimate(draw, draws):
    """Mean and standard error of a random number."""
    with torch.no_grad():
        drawn = values(draw, draws).double()
    return float(drawn.mean()), float(drawn.std() / math.sqrt(draws))


def gradients(draw, parameters, draws, groups=50):
    """Mean and standard error of the gradient of a random number, from the means of independent groups."""
    parts = values(draw, draws).reshape(groups, -1).mean(1)
    rows = [torch.autograd.grad(part, parameters, retain_graph=True) for part in parts]
    rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    return rows.mean(0), rows.std(0) / math.sqrt(groups)


def agree(first, second, errors=5.0):
    (a, sa), (b, sb) = first, second
    assert abs(a - b) < errors * math.hypot(sa, sb) + 1e-5 * abs(a), (first, second)


def stock_loss(model, guide, *args):
    """The integrand of Pyro's Trace_ELBO, log q(w) - log p(y, w) at one draw."""
    guide_trace = poutine.trace(guide).get_trace(*args)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
    return guide_trace.log_prob_sum() - model_trace.log_prob_sum()


# --- the conjugate case ----------------------------------------------------------------------------------------------


@pytest.fixture
def conjugate():
    """Linear regression without bias: data, posterior precision and mean, log evidence."""
    x = torch.randn(N, D, dtype=torch.float64) @ double(
        [[1.0, 0.5, 0.0], [0.0, 1.0, -0.4], [0.0, 0.0, 0.7]]
    )
    y = x @ double([1.0, -2.0, 0.5]) + NOISE * torch.randn(N, dtype=torch.float64)
    precision = x.T @ x / NOISE**2 + torch.eye(D, dtype=torch.float64) / PRIOR**2
    mean = torch.linalg.solve(precision, x.T @ y / NOISE**2)
    covariance = NOISE**2 * torch.eye(N, dtype=torch.float64) + PRIOR**2 * x @ x.T
    evidence = float(
        torch.distributions.MultivariateNormal(double([0.0] * N), covariance).log_prob(y)
    )
    return x, y, precision, mean, evidence


def linear_model(**options):
    net = nn.Linear(D, 1, bias=False)
    likelihood = likelihoods.Gaussian(NOISE)
    return BayesianNet(net, priors.Normal(PRIOR), likelihood, num_data=N, **options).double()


def at_optimum(model, precision, mean):
    guide = MeanField(model)
    guide.sites.weight.loc.data = mean[None].clone()
    guide.sites.weight.log_scale.data = -0.5 * precision.diagonal().log()[None]
    return guide


@pytest.mark.parametrize("local", [False, True])
def test_the_gradient_vanishes_at_the_mean_field_optimum(conjugate, local):
    x, y, precision, mean, _ = conjugate
    guide = at_optimum(linear_model(), precision, mean)
    loss = ELBO(linear_model(), local_reparameterization(guide) if local else guide)
    gradient, error = gradients(lambda: loss(x, y), list(loss.parameters()), 20_000)
    assert (gradient.abs() < 5 * error).all()
    assert error.max() < 0.1
    guide.sites.weight.loc.data += 0.5 * precision.diagonal().rsqrt()  # and the test has power
    gradient, error = gradients(lambda: loss(x, y), list(loss.parameters()), 20_000)
    assert (gradient.abs() > 10 * error).any()


def test_optimisation_finds_ridge_and_its_variances(conjugate):
    x, y, precision, mean, _ = conjugate
    guide = MeanField(linear_model(), init_scale=0.3).double()
    loss = ELBO(linear_model(), local_reparameterization(guide))
    steps = 250
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / steps) ** 1.5)
    for _ in range(steps):
        optimizer.zero_grad()
        values(lambda: loss(x, y), 200).mean().backward()
        optimizer.step()
        schedule.step()
    stddev = precision.diagonal().rsqrt()
    assert ((guide.sites.weight.loc.detach()[0] - mean).abs() < 0.1 * stddev).all()
    assert torch.allclose(guide.sites.weight.log_scale.detach()[0].exp(), stddev, rtol=0.05)


@pytest.mark.parametrize("local", [False, True])
def test_the_elbo_misses_the_log_evidence_by_the_divergence_from_the_posterior(conjugate, local):
    x, y, precision, mean, evidence = conjugate
    guide = at_optimum(linear_model(), precision, mean)
    # KL(N(m, D^-1) || N(m, P^-1)) = (tr P D^-1 - d + log |D| - log |P|) / 2, where D = diag P
    gap = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
    assert gap > 0.1
    loss = ELBO(linear_model(), local_reparameterization(guide) if local else guide)
    value, error = estimate(lambda: loss(x, y), 200_000)
    agree((value, error), (gap - evidence, 0.0), errors=4)
    assert error < gap / 10
    assert value > -evidence


def test_the_full_covariance_guide_reaches_the_log_evidence(conjugate):
    x, y, precision, mean, evidence = conjugate

    def guide(x, y):
        q = dist.MultivariateNormal(mean[None], precision_matrix=precision).to_event(1)
        pyro.sample("weight", q)

    # at the exact posterior log p(y, w) - log q(w) is the same for every w: no standard error at all
    loss = ELBO(linear_model(), guide)
    assert torch.allclose(values(lambda: loss(x, y), 20), double(-evidence), rtol=1e-10)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_the_mean_over_disjoint_batches_is_the_full_batch_loss(conjugate, size):
    x, y, *_ = conjugate
    loss = ELBO(linear_model(), PointEstimate(linear_model()))
    batches = [loss(x[i : i + size], y[i : i + size]).item() for i in range(0, N, size)]
    assert np.mean(batches) == pytest.approx(loss(x, y).item(), rel=1e-12)


@pytest.mark.parametrize("size", [1, 4])
def test_the_optimum_is_the_same_for_every_batch_size(conjugate, size):
    x, y, precision, mean, _ = conjugate
    guide = at_optimum(linear_model(), precision, mean)
    loss = ELBO(linear_model(), local_reparameterization(guide))
    total, variance = 0.0, 0.0
    for i in range(0, N, size):
        batch = x[i : i + size], y[i : i + size]
        gradient, error = gradients(
            functools.partial(loss, *batch), list(loss.parameters()), 10_000
        )
        total, variance = total + gradient * size / N, variance + (error * size / N) ** 2
    assert (total.abs() < 5 * variance.sqrt()).all()
    assert variance.max() < 0.01


def test_the_plate_draws_the_minibatch_without_bias(conjugate):
    x, y, *_ = conjugate
    model = linear_model(subsample_size=4)
    loss = ELBO(model, PointEstimate(model))
    full = ELBO(linear_model(), PointEstimate(model))
    drawn = double(
        [loss(x, y).item() for _ in range(400)]
    )  # the indices of a plate cannot be vectorised
    agree((float(drawn.mean()), float(drawn.std() / 20)), (full(x, y).item(), 0.0), errors=4)
    assert drawn.std() > 1


def test_the_divergence_of_two_gaussians_is_exact(conjugate):
    x, y, *_ = conjugate
    model = linear_model()
    guide = MeanField(model, init_scale=0.2)
    q, p = dist.Normal(guide.sites.weight.loc, 0.2), dist.Normal(double(0.0), PRIOR)
    expected = (
        torch.log(p.scale / q.scale) + (q.scale**2 + q.loc**2) / (2 * p.scale**2) - 0.5
    ).sum()
    assert float(ELBO(model, guide).terms(x, y).kl["weight"].detach()) == pytest.approx(
        expected.item()
    )


def test_a_point_mass_has_the_deterministic_training_loss(conjugate):
    x, y, *_ = conjugate
    model = linear_model()
    guide = PointEstimate(model)
    w = guide.sites.weight.loc.detach()
    square = ((y - x @ w[0]) ** 2).sum() / (2 * NOISE**2) + N * math.log(
        NOISE * math.sqrt(2 * math.pi)
    )
    decay = (w**2).sum() / (2 * PRIOR**2) + D * math.log(PRIOR * math.sqrt(2 * math.pi))
    assert ELBO(model, guide)(x, y).item() == pytest.approx((square + decay).item(), rel=1e-12)


def test_hand_written_programs_are_first_class(conjugate):
    x, y, *_ = conjugate
    model = linear_regression(num_data=N, inputs=D, prior_scale=PRIOR, noise=NOISE)
    guide = MeanField(model, x, y, init_scale=0.2)
    ours = ELBO(model, guide)
    with pyro.get_param_store().scope():
        agree(
            estimate(lambda: ours(x, y), 20_000),
            estimate(lambda: stock_loss(model, guide, x, y), 20_000),
        )


# --- against Pyro's estimator ----------------------------------------------------------------------------------------

PRIORS = {
    "Normal": priors.Normal(0.7),
    "LearnedNormal": priors.LearnedNormal(0.7),
    "LogUniform": priors.LogUniform(),
    "NormalJeffreys": priors.NormalJeffreys(),
    "Horseshoe": priors.Horseshoe(0.5),
    "Horseshoe elementwise": priors.Horseshoe(0.5, group=None),
    "Horseshoe decomposed": priors.Horseshoe(0.5, decomposed=True),
    "Horseshoe slab": priors.Horseshoe(0.5, slab=1.0, decomposed=True),
    "GaussianMixture": priors.GaussianMixture([0.1, 1.0], [0.3, 0.7]),
    "StudentT": priors.Elementwise(dist.StudentT(3.0, 0.0, 0.5)),
}


@pytest.fixture(scope="module")
def toy():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(6, 3, generator=generator)
    return x, x[:, 0] - x[:, 1] + 0.3 * torch.randn(6, generator=generator)


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


def test_the_reference_is_the_loss_of_pyro(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.Horseshoe(), likelihoods.Gaussian(0.6), num_data=9)
    guide = MeanField(model)
    with pyro.get_param_store().scope():
        torch.manual_seed(3)
        reference = Trace_ELBO().loss(model, guide, *toy)
        torch.manual_seed(3)
        assert stock_loss(model, guide, *toy).item() == pytest.approx(reference, rel=1e-6)


# --- one weight under the log-uniform prior: the whole surface by quadrature -----------------------------------------


@pytest.mark.parametrize("theta", [-1.2, 0.05, 0.8])
@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.5])
def test_the_sparse_objective_of_one_weight_equals_quadrature(theta, sigma):
    x, y, s = np.array([0.5, -1.0, 2.0]), np.array([0.4, -0.9, 1.5]), 0.7
    model = BayesianNet(
        nn.Linear(1, 1, bias=False), priors.LogUniform(), likelihoods.Gaussian(s), num_data=3
    ).double()
    guide = MeanField(model)
    guide.sites.weight.loc.data.fill_(theta)
    guide.sites.weight.log_scale.data.fill_(math.log(sigma))
    terms = ELBO(model, guide).terms(double(x[:, None]), double(y))
    # E_q (y - w x)^2 = (y - theta x)^2 + sigma^2 x^2;  KL = 2 int_0^r D(t) dt, D Dawson's function, r = theta / sigma
    # sqrt 2
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


# --- stock SVI, and the parameter store ------------------------------------------------------------------------------


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


def test_a_store_with_the_users_own_content_stays_as_it_is(toy):
    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(1, 3))
        pyro.sample(
            "weight",
            dist.Normal(
                loc, pyro.param("scale", torch.ones(1, 3), constraint=constraints.positive)
            ).to_event(2),
        )

    model = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(0.5), num_data=6)
    store = pyro.get_param_store()
    with store.scope():
        pyro.param("loc", torch.tensor([7.0]))
        mine = store._params["loc"]
        loss = ELBO(model, guide)
        loss(*toy).backward()
        with pytest.raises(ValueError, match="has no site"):
            ELBO(model, lambda x, y: None)(*toy)
        assert list(store.keys()) == ["loc"]
        assert store._params["loc"] is mine
        assert mine.grad is None


@pytest.mark.parametrize("make", [MeanField, FactorizedGaussian, PointEstimate, BernoulliDropout])
def test_the_module_leaves_nothing_in_the_store(make, toy):
    model = BayesianNet(nn.Linear(3, 1), priors.LearnedNormal(), likelihoods.Gaussian(), num_data=6)
    loss = ELBO(model, make(model))
    loss(*toy).backward()
    loss.terms(*toy)
    loss.trace(*toy)
    assert not list(pyro.get_param_store().keys())
    assert all(p.grad is not None for p in loss.parameters())
    assert {n for n, _ in loss.named_parameters()} >= {
        "model.net.bias",
        "model.likelihood.log_scale",
    }


class WithPyroParam(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.full((1, 3), 0.5), constraint=constraints.positive)
        self.loc = nn.Parameter(torch.zeros(1, 3))

    def forward(self, x, y):
        pyro.sample("weight", dist.Normal(self.loc, self.scale).to_event(2))


def test_a_pyro_param_of_a_module_is_learned_where_it_stands(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(0.5), num_data=6)
    guide = WithPyroParam()
    loss = ELBO(model, guide)
    loss(*toy).backward()
    assert guide.scale_unconstrained.grad is not None
    assert {"guide.loc", "guide.scale_unconstrained"} <= {
        name for name, _ in loss.named_parameters()
    }


def test_parameter_statements_of_functions_become_parameters_of_the_loss(toy):
    encoder = nn.Linear(2, 3)

    def guide(x, y):
        pyro.module("encoder", encoder)
        loc = encoder(torch.ones(2))[None]
        scale = pyro.param(
            "q.scale", lambda: torch.full((1, 3), 0.2), constraint=constraints.positive
        )
        pyro.param("values", torch.zeros(()))  # the name of a method of the container
        assert torch.equal(pyro.param("q.scale"), scale)  # said again without its constraint
        pyro.sample("weight", dist.Normal(loc, scale).to_event(2))

    model = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(0.5), num_data=6)
    loss = ELBO(model, guide)
    assert len(list(loss.parameters())) == 1  # the bias
    loss(*toy).backward()
    parameters = dict(loss.named_parameters())
    assert any(p is encoder.weight for p in parameters.values())
    assert any(p is encoder.bias for p in parameters.values())
    raw = parameters["param_store.unconstrained.q/scale"]
    assert torch.allclose(raw.detach().exp(), torch.tensor(0.2))
    # and they are trained: the divergence alone pulls the scale to that of the prior
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    for _ in range(120):
        optimizer.zero_grad()
        loss.terms(*toy).kl["weight"].backward()
        optimizer.step()
    assert torch.allclose(raw.detach().exp(), torch.tensor(1.0), atol=0.05)


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
def test_double_precision_all_the_way(prior, toy):
    model = BayesianNet(
        nn.Linear(3, 1), prior, likelihoods.Gaussian(dist.HalfNormal(1.0)), num_data=9
    )
    loss = ELBO(model, local_reparameterization(MeanField(model))).double()
    terms = loss.terms(*(part.double() for part in toy))
    assert {value.dtype for value in (terms.data, *terms.kl.values(), terms.loss())} == {
        torch.float64
    }


# --- stock autoguides ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "autoguide", [AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoDelta]
)
@pytest.mark.parametrize("prior", ["Normal", "Horseshoe", "GaussianMixture"])
def test_stock_autoguides_agree_with_the_loss_of_pyro(autoguide, prior, toy):
    noise = dist.LogNormal(-0.5, 0.5)
    model = BayesianNet(nn.Linear(3, 1), PRIORS[prior], likelihoods.Gaussian(noise), num_data=9)
    options = {} if autoguide is AutoDelta else {"init_scale": 0.3}
    guide = autoguide(model, **options)
    loss = ELBO(model, guide)
    loss(*toy).backward()
    assert not list(pyro.get_param_store().keys())
    with pyro.get_param_store().scope():
        agree(
            estimate(lambda: loss(*toy), 20_000),
            estimate(lambda: stock_loss(model, guide, *toy), 20_000),
        )
    assert [name for name, _ in loss.named_parameters() if name.startswith("guide.")]
    assert not list(
        loss.param_store.parameters()
    )  # the guide was built in the first call, and keeps what it declared


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal, AutoDelta])
def test_the_jacobian_of_a_positive_site_counts(autoguide):
    def model():
        pyro.sample("z", dist.LogNormal(double(0.5), 0.8))

    guide = autoguide(model, init_loc_fn=init_to_value(values={"z": double(3.0)}))
    loss = ELBO(model, guide).double()
    if autoguide is AutoDelta:
        exact = -dist.LogNormal(double(0.5), 0.8).log_prob(double(3.0)).item()
    else:  # the divergence of two log-normals is that of their logarithms
        loss()
        loss.double()
        exact = kl_divergence(dist.Normal(math.log(3), 0.1), dist.Normal(0.5, 0.8)).item()
    value, error = estimate(loss, 100_000)
    agree((value, error), (exact, 0.0))
    assert error < 0.01  # where the logarithm of the Jacobian, log z, is 1.1


# --- the structure of programs ---------------------------------------------------------------------------------------


def test_the_terms_sum_to_the_loss(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.Horseshoe(), likelihoods.Gaussian(), num_data=9)
    loss = ELBO(model, MeanField(model))
    for weight in (1.0, 0.25, 0.0):
        loss.kl_weight = weight
        torch.manual_seed(3)
        value = loss(*toy).item()
        torch.manual_seed(3)
        terms = loss.terms(*toy)
        assert set(terms.kl) == {"weight.global_scale", "weight.scale", "weight.unit"}
        assert value == pytest.approx(
            (terms.data + weight * sum(terms.kl.values())).item(), rel=1e-6
        )


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


def test_the_guide_of_another_model_is_refused_by_name(toy):
    model = BayesianNet(
        nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(dist.HalfNormal(1.0)), num_data=6
    )
    known = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(1.0), num_data=6)
    with pytest.raises(ValueError, match="no site noise; its sites are weight"):
        ELBO(model, MeanField(known))(*toy)
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="no site noise"):
        ELBO(model, MeanField(known))(*toy)
    with pytest.raises(ValueError, match="no site y"):  # called without the data
        ELBO(known, MeanField(known))(toy[0])


def test_shapes_that_differ_are_refused(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(0.5), num_data=6)
    wide = BayesianNet(nn.Linear(3, 2), priors.Normal(), likelihoods.Gaussian(0.5), num_data=6)
    with pytest.raises(ValueError, match="shapes disagree at site 'weight'"):
        ELBO(model, MeanField(wide))(*toy)
    with pytest.raises(ValueError, match=r"site 'y' have the shape \(6, 1\).*y.squeeze"):
        ELBO(model, MeanField(model))(toy[0], toy[1][:, None])  # would broadcast to 6 x 6


def test_a_guide_that_samples_the_data_is_refused():
    x, y = torch.randn(6, 3), torch.randn(6)
    model = linear_regression(num_data=6, inputs=3)
    guide = MeanField(model, x)  # the y that was left out was taken for a latent site
    with pytest.raises(ValueError, match="samples 'y', which the model observes"):
        ELBO(model, guide)(x, y)


def test_a_model_without_a_guide_is_refused():
    model = linear_regression(num_data=6, inputs=3)
    with pytest.raises(ValueError, match="got one alone"):
        ELBO(model)
    with pytest.raises(ValueError, match="got one alone"):
        ELBO(guide=model)


def test_an_auxiliary_site_of_the_guide_adds_its_entropy():
    y = double(0.4)

    def model():
        z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    def guide():
        u = pyro.sample("u", dist.Normal(double(0.2), 0.6), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(0.5 * u, 0.7))

    # -E log p(y, z) + E log q(u) + E log q(z | u), by hand: z ~ N(0.1, 0.3^2 + 0.7^2)
    m, v = 0.1, 0.09 + 0.49
    normal = math.log(2 * math.pi) / 2
    energy = ((0.4 - m) ** 2 + v) / 0.5 + math.log(0.5) + normal + (m**2 + v) / 2 + normal
    entropy = math.log(0.6) + math.log(0.7) + 1 + 2 * normal
    loss = ELBO(model, guide)
    agree(estimate(loss, 200_000), (energy - entropy, 0.0), errors=4)
    assert set(loss.terms().kl) == {"u", "z"}


def test_factors_of_model_and_guide_count():
    def model():
        z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
        pyro.factor("potential", -0.5 * (z - 1) ** 2)

    def guide():
        # z = sinh(u), u ~ N(0, 1/4): the density of z is that of u less the logarithm of the Jacobian
        u = pyro.sample("u", dist.Normal(double(0.0), 0.5), infer={"is_auxiliary": True})
        z = torch.sinh(u)
        pyro.factor("jacobian", -torch.cosh(u).log(), has_rsample=True)
        pyro.sample("z", dist.Delta(z))

    def integrand(u):
        q = math.exp(-2 * u * u) / (0.5 * math.sqrt(2 * math.pi))
        z = math.sinh(u)
        log_p = -0.5 * z * z - 0.5 * math.log(2 * math.pi) - 0.5 * (z - 1) ** 2
        return q * (math.log(q) - math.log(math.cosh(u)) - log_p)

    exact = integrate.quad(integrand, -5, 5)[0]
    agree(estimate(ELBO(model, guide), 200_000), (exact, 0.0), errors=4)


def test_local_latents_carry_the_scale_and_the_mask_of_their_plate():
    n, batch = 12, 4
    mask = torch.tensor([True, True, False, True])
    loc = double([0.3, -0.5, 2.0, 1.0])

    def model(y):
        with pyro.plate("data", n, subsample=range(batch)), pyro.poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y):
        with pyro.plate("data", n, subsample=range(batch)), pyro.poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(loc, 0.5))

    y = double([0.0, 1.0, -3.0, 0.5])
    terms = ELBO(model, guide).terms(y)
    kl = (math.log(2) + (0.25 + loc**2) / 2 - 0.5)[mask].sum() * n / batch
    assert float(terms.kl["z"]) == pytest.approx(float(kl), rel=1e-12)
    data = (((y - loc) ** 2 + 0.25) / 2 + 0.5 * math.log(2 * math.pi))[mask].sum() * n / batch
    loss = ELBO(model, guide)
    agree(estimate(lambda: loss.terms(y).data, 100_000), (float(data), 0.0), errors=4)


def test_a_site_scaled_in_one_program_alone_is_weighted_as_pyro_weights_it():
    def model():
        with pyro.poutine.scale(scale=0.1):
            pyro.sample("z", dist.Normal(double(1.0), 2.0))

    def guide():
        pyro.sample("z", dist.Normal(double(0.0), 1.0))

    # E log q - E log p / 10
    exact = -0.5 * math.log(2 * math.pi * math.e) + 0.1 * (
        math.log(2) + 0.5 * math.log(2 * math.pi) + 2 / 8
    )
    agree(estimate(ELBO(model, guide), 200_000), (exact, 0.0), errors=4)


def test_hierarchies_in_another_order_fall_back_to_monte_carlo():
    # model: z -> w.  guide: w first, then z given w.  KL(q(w) || p(w | z)) at a z that was drawn given w would be no
    # divergence of anything: w is no longer distributed as q(w) once z is known.
    def model():
        z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
        pyro.sample("w", dist.Normal(z, 1.0))

    def guide():
        w = pyro.sample("w", dist.Normal(double(0.5), 0.8))
        pyro.sample("z", dist.Normal(0.9 * w, 0.3))

    # z ~ N(0.45, v), v = (0.9 * 0.8)^2 + 0.3^2; w - z ~ N(0.05, (0.1 * 0.8)^2 + 0.3^2)
    log_2_pi = math.log(2 * math.pi)
    z2, difference2 = 0.45**2 + 0.72**2 + 0.09, 0.05**2 + 0.08**2 + 0.09
    exact = log_2_pi + (z2 + difference2) / 2 - (log_2_pi + 1 + math.log(0.8) + math.log(0.3))
    naive = exact + 0.5 * (
        (0.5 - 0.45) ** 2 + 0.72**2 + 0.09 + 0.64 - difference2
    )  # w drawn again, independent of z
    assert naive - exact > 0.3
    agree(estimate(ELBO(model, guide), 200_000), (exact, 0.0), errors=4)


def test_hierarchies_in_the_order_of_the_model_are_exact():
    def model():
        z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
        pyro.sample("w", dist.Normal(z, 1.0))

    def guide():
        z = pyro.sample("z", dist.Normal(double(0.5), 0.8))
        pyro.sample("w", dist.Normal(0.9 * z, 0.3))

    log_2_pi = math.log(2 * math.pi)
    z2, difference2 = 0.25 + 0.64, 0.01 * (0.25 + 0.64) + 0.09
    exact = log_2_pi + (z2 + difference2) / 2 - (log_2_pi + 1 + math.log(0.8) + math.log(0.3))
    value, error = estimate(ELBO(model, guide), 100_000)
    agree((value, error), (exact, 0.0), errors=4)
    # given z both divergences are closed, so only (z - 0.9 z)^2 / 2 is random: far less than log q - log p
    assert error * math.sqrt(100_000) < 0.02


def test_a_deferred_weight_that_was_drawn_is_judged_by_its_draw():
    # the same hierarchy in the other order, with vectors that local reparameterization defers
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        pyro.sample("w", dist.Normal(z, 1.0).to_event(1))

    def guide():
        w = pyro.sample(
            "w", dist.Normal(torch.full((2,), 0.5, dtype=torch.float64), 0.8).to_event(1)
        )
        pyro.sample("z", dist.Normal(torch.tanh(w), 0.3).to_event(1))

    deferred = local_reparameterization(guide)
    with pytest.warns(UserWarning, match="drawn once"):
        ELBO(model, deferred)()
    agree(estimate(ELBO(model, deferred), 100_000), estimate(ELBO(model, guide), 100_000))


# --- sites without a reparameterized sampler -------------------------------------------------------------------------


def discrete_model(n=2, batch=2):
    def model():
        with pyro.plate("data", n, subsample=range(batch)):
            z = pyro.sample("z", dist.Bernoulli(double(0.3)))
            pyro.sample("y", dist.Normal(2 * z, 1.0), obs=double([1.5] * batch))

    return model


@pytest.mark.parametrize("kl_weight", [1.0, 0.5])
@pytest.mark.parametrize("n", [2, 10])
def test_the_gradient_of_a_discrete_site_equals_enumeration(n, kl_weight):
    batch = 2
    logits = nn.Parameter(double([0.2, -0.7]))

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = logits

        def forward(self):
            with pyro.plate("data", n, subsample=range(batch)):
                pyro.sample("z", dist.Bernoulli(logits=self.logits))

    q = torch.sigmoid(logits)
    cost = [((1.5 - 2 * z) ** 2) / 2 + 0.5 * math.log(2 * math.pi) for z in (0, 1)]
    kl = q * (q / 0.3).log() + (1 - q) * ((1 - q) / 0.7).log()
    exact = n / batch * ((1 - q) * cost[0] + q * cost[1] + kl_weight * kl).sum()
    (gradient,) = torch.autograd.grad(exact, logits)
    loss = ELBO(discrete_model(n, batch), Guide(), kl_weight=kl_weight)
    agree(estimate(loss, 100_000), (exact.item(), 0.0), errors=4)
    mean, error = gradients(loss, [logits], 100_000)
    assert ((mean - gradient).abs() < 5 * error).all()
    assert (gradient.abs() > 20 * error).any()  # zero would not pass


def test_a_discrete_site_estimated_without_closed_divergence_has_the_same_gradient():
    logits = nn.Parameter(double([0.2, -0.7]))

    def guide():
        # two factors of one density: a coin drawn by hand and declared by a factor
        with pyro.plate("data", 2, subsample=range(2)):
            z = torch.bernoulli(torch.sigmoid(logits)).detach()
            pyro.factor("coin", dist.Bernoulli(logits=logits).log_prob(z), has_rsample=False)
            pyro.sample("z", dist.Delta(z))

    q = torch.sigmoid(logits)
    cost = [((1.5 - 2 * z) ** 2) / 2 for z in (0, 1)]
    kl = q * (q / 0.3).log() + (1 - q) * ((1 - q) / 0.7).log()
    (gradient,) = torch.autograd.grad(((1 - q) * cost[0] + q * cost[1] + kl).sum(), logits)
    loss = ELBO(discrete_model(), guide)
    mean, error = gradients(loss, [logits], 100_000)
    assert ((mean - gradient).abs() < 5 * error).all()
    assert (gradient.abs() > 20 * error).any()


# --- what cannot be
# ----------------------------------------------------------------------------------------------------


def test_binary_dropout_under_a_prior_without_closed_divergence_says_so(toy):
    model = BayesianNet(
        nn.Linear(3, 1),
        priors.Elementwise(dist.Laplace(0.0, 1.0)),
        likelihoods.Gaussian(1.0),
        num_data=6,
    )
    with pytest.raises(NotImplementedError, match="no density"):
        ELBO(model, BernoulliDropout(model))(*toy)


def test_an_improper_prior_cannot_stand_in_for_a_missing_guide(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.LogUniform(), likelihoods.Gaussian(1.0), num_data=6)
    with pytest.raises(
        ValueError, match="no site for a weight under an improper prior; its sites are none"
    ) as caught:
        ELBO(model, lambda x, y: None)(*toy)
    assert isinstance(caught.value.__cause__, ImproperPriorError)


def test_fixed_noise_costs_no_gradient_through_the_divergence(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.LogUniform(), likelihoods.Gaussian(1.0), num_data=6)
    guide = GaussianDropout(model, alpha=0.5)
    kl = ELBO(model, guide).terms(*toy).kl["weight"]
    assert (
        not kl.requires_grad
        or float(torch.autograd.grad(kl, guide.sites.weight.loc)[0].abs().max()) == 0
    )
