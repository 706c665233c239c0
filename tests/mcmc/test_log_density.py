"""The log density and its gradient against plain Pyro."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import initialize_model
from torch import nn

from pyro_bnn import BayesianNet, likelihoods, mcmc, priors
from pyro_bnn.mcmc.log_density import LogDensity, NonFiniteDensityError
from pyro_bnn.models import LeNet5, hidden_layer_regression, linear_regression

N = 7
X = torch.randn(N, 3, dtype=torch.float64)
CLASSES = torch.arange(N) % 2
REAL = torch.randn(N, dtype=torch.float64)


def net(outputs=2):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def classifier(prior, network=None):
    return BayesianNet(network or net(), {"*": prior}, likelihoods.Categorical(), N).double()


def regressor(likelihood):
    return BayesianNet(net(1), {"*": priors.Normal(1.0)}, likelihood, N).double()


def several_plates(x, y):
    """Sites inside plates, on an interval and on a simplex; two likelihoods."""
    shares = pyro.sample("shares", dist.Dirichlet(x.new_ones(3)))
    bounded = pyro.sample("bounded", dist.Uniform(x.new_tensor(-1.0), 2.0))
    with pyro.plate("inputs", 3):
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(()), 1.0))
    root = pyro.sample("root", dist.LKJCholesky(2, x.new_tensor(2.0)))
    with pyro.plate("data", N, subsample=range(len(x))):
        pyro.sample("y", dist.Normal(x @ (weight * shares) + bounded, 0.5 + root[1, 1]), obs=y)
        pyro.sample("again", dist.StudentT(3.0, bounded, 1.0), obs=y)


normal = priors.Normal(0.7)
PROGRAMS = {
    "normal": lambda: (classifier(normal), (X, CLASSES)),
    "horseshoe": lambda: (classifier(priors.Horseshoe()), (X, CLASSES)),
    "horseshoe with slab": lambda: (classifier(priors.Horseshoe(slab=2.0)), (X, CLASSES)),
    "decomposed horseshoe": lambda: (classifier(priors.Horseshoe(decomposed=True)), (X, CLASSES)),
    "mixture": lambda: (classifier(priors.GaussianMixture([1.0, 0.1], [0.3, 0.7])), (X, CLASSES)),
    "student": lambda: (classifier(priors.Elementwise(dist.StudentT(3.0, 0.0, 0.5))), (X, CLASSES)),
    "bernoulli": lambda: (
        BayesianNet(net(1), {"*": normal}, likelihoods.Bernoulli(), N).double(),
        (X, CLASSES.double()),
    ),
    "known noise": lambda: (regressor(likelihoods.Gaussian(0.3)), (X, REAL)),
    "inferred noise": lambda: (regressor(likelihoods.Gaussian(dist.HalfNormal(1.0))), (X, REAL)),
    "linear regression": lambda: (linear_regression(N, inputs=3), (X, REAL)),
    "hidden layer regression": lambda: (hidden_layer_regression(N, inputs=3, hidden=4), (X, REAL)),
    "several plates": lambda: (several_plates, (X, REAL)),
}


def by_hand(density, position, *batch):
    """Plain Pyro at one position: the trace's log-density and the transforms' Jacobians."""
    values, jacobian, start = {}, 0.0, 0
    for name, site in density.trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or name not in density.sites:
            continue
        transform = torch.distributions.biject_to(site["fn"].support)
        shape = transform.inverse_shape(site["value"].shape)
        free = position[start : start + shape.numel()].reshape(shape)
        start += shape.numel()
        values[name] = transform(free)
        jacobian = jacobian + transform.log_abs_det_jacobian(free, values[name]).sum()
    trace = poutine.trace(poutine.condition(density.model, data=values)).get_trace(*batch)
    return trace.log_prob_sum() + jacobian


def points(density, count=3):
    torch.manual_seed(4)
    return 0.5 * torch.randn(count, density.size, dtype=torch.float64)


@pytest.mark.parametrize("name", PROGRAMS)
def test_value_and_gradient_are_those_of_plain_pyro(name):
    density = LogDensity(*PROGRAMS[name]())
    assert density.vectorized
    positions = points(density)
    values, gradients = density.value_and_grad(positions, *density.data)
    for position, value, gradient in zip(positions, values, gradients, strict=True):
        leaf = position.clone().requires_grad_()
        expected = by_hand(density, leaf, *density.data)
        (slope,) = torch.autograd.grad(expected, leaf)
        assert torch.allclose(value, expected, rtol=1e-10)
        assert torch.allclose(gradient, slope, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "name",
    ["inferred noise", "linear regression", "hidden layer regression", "horseshoe with slab"],
)
def test_value_and_gradient_are_those_of_the_potential_that_pyros_own_samplers_use(name):
    model, data = PROGRAMS[name]()
    density = LogDensity(model, data)
    _, potential, _, _ = initialize_model(density.model, model_args=data)
    for position in points(density):
        assert math.isclose(
            float(density(position, *data)),
            -float(potential(density.split(position))),
            rel_tol=1e-9,
        )


@pytest.mark.parametrize("name", ["normal", "inferred noise", "hidden layer regression"])
def test_the_mean_over_minibatches_is_the_log_density_on_all_the_data(name):
    model, (x, y) = PROGRAMS[name]()
    density = LogDensity(model, (x, y))
    position = points(density, 1)
    whole = density.value_and_grad(position, x, y)
    each = [density.value_and_grad(position, x[i : i + 1], y[i : i + 1]) for i in range(N)]
    for part in range(2):
        mean = torch.stack([result[part] for result in each]).mean(0)
        assert torch.allclose(mean, whole[part], rtol=1e-9)


def test_each_chain_has_the_log_density_of_its_own_minibatch():
    model, (x, y) = PROGRAMS["hidden layer regression"]()
    density = LogDensity(model, (x[:2], y[:2]))
    index = torch.tensor([[0, 1], [5, 5], [6, 2]])
    values, gradients = density.value_and_grad_each(points(density), x[index], y[index])
    for chain, position in enumerate(points(density)):
        value, gradient = density.value_and_grad(position[None], x[index[chain]], y[index[chain]])
        assert torch.allclose(values[chain], value)
        assert torch.allclose(gradients[chain], gradient)


def test_dropout_is_inactive_and_batch_norm_uses_its_running_moments():
    layers = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)
    ).double()
    layers[1].running_mean += 0.3
    model = classifier(priors.Normal(1.0), layers)
    density = LogDensity(model, (X, CLASSES))
    position = points(density, 2)
    first, again = (density.value_and_grad(position, X, CLASSES)[0] for _ in range(2))
    assert torch.equal(first, again)
    # examples do not see each other
    each = torch.stack(
        [density.value_and_grad(position, X[i : i + 1], CLASSES[i : i + 1])[0] for i in range(N)]
    )
    assert torch.allclose(each.mean(0), first)
    assert model.training  # the argument is unchanged


def test_a_convolutional_net_has_the_density_of_plain_pyro():
    network = LeNet5()
    x, y = torch.randn(2, 1, 28, 28), torch.tensor([3, 7])
    density = LogDensity(
        BayesianNet(network, {"*": priors.Normal(0.1)}, likelihoods.Categorical(), 2), (x, y)
    )
    position = 0.01 * torch.randn(1, density.size)
    value, gradient = density.value_and_grad(position, x, y)
    assert torch.allclose(value[0], by_hand(density, position[0], x, y), rtol=1e-5)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", PROGRAMS)
def test_constrain_and_unconstrain_are_inverse(name):
    density = LogDensity(*PROGRAMS[name]())
    positions = points(density, 6).reshape(2, 3, -1)
    values = density.constrain(positions)
    assert all(value.shape == (2, 3, *density.sites[site].shape) for site, value in values.items())
    assert torch.allclose(density.unconstrain(values), positions, atol=1e-8)


@pytest.mark.parametrize(
    "values",
    [{"weight": torch.zeros(3)}, {"weight": torch.zeros(2), "bias": torch.zeros(())}],
)
def test_a_missing_value_or_one_of_another_shape_is_an_error_that_names_its_site(values):
    density = LogDensity(linear_regression(N, inputs=3), (X, REAL))
    with pytest.raises(ValueError, match=r"^LogDensity: expected .* for site .(bias|weight)., got"):
        density.unconstrain(values)


# --- Fallbacks --------------------------------------------------------------------------------


@config_enumerate
def mixture(y):
    centre = pyro.sample("centre", dist.Normal(y.new_zeros(()), 2.0))
    with pyro.plate("data", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(y.new_tensor(0.3)))
        pyro.sample("y", dist.Normal(centre * (2 * kind - 1), 0.5), obs=y)


def test_discrete_sites_are_marginalised():
    y = torch.tensor([0.4, -1.3, 2.0], dtype=torch.float64)
    density = LogDensity(mixture, (y,))
    assert list(density.sites) == ["centre"]
    assert not density.vectorized
    for centre in torch.tensor([-0.7, 0.1, 1.5], dtype=torch.float64):
        first = math.log(0.3) + dist.Normal(centre, 0.5).log_prob(y)
        second = math.log(0.7) + dist.Normal(-centre, 0.5).log_prob(y)
        prior = dist.Normal(0.0, 2.0).log_prob(centre)
        expected = prior + torch.logaddexp(first, second).sum()
        value, gradient = density.value_and_grad(centre.reshape(1, 1), y)
        assert math.isclose(float(value), float(expected), rel_tol=1e-9)
        assert gradient.isfinite().all()


def branching(x, y):
    """A program with one likelihood below zero and another above it, chosen in Python."""
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(()), 1.0))
    scale = 0.5 if float(weight.detach()) > 0 else 2.0
    with pyro.plate("data", N, subsample=range(len(x))):
        pyro.sample("y", dist.Normal(x[:, 0] * weight, scale), obs=y)


def test_a_program_that_branches_on_values_is_computed_chain_by_chain():
    density = LogDensity(branching, (X, REAL))
    assert not density.vectorized
    positions = torch.tensor([[0.5], [-0.5]], dtype=torch.float64)
    values, _ = density.value_and_grad(positions, X, REAL)
    for position, value in zip(positions, values, strict=True):
        assert torch.allclose(value, by_hand(density, position, X, REAL))


# --- Starting points ----------------------------------------------------------------------------


def test_a_start_of_density_zero_is_an_error_that_names_its_site():
    model = linear_regression(N, inputs=3)
    density = LogDensity(model, (X, REAL))
    position = torch.tensor([math.inf, 0.0, 0.0, 0.0], dtype=torch.float64)
    with pytest.raises(NonFiniteDensityError, match=r"^LogDensity: .* at site weight"):
        density.require_finite(position)
    start = {"weight": torch.tensor([math.nan, 0.0, 0.0]), "bias": torch.tensor(0.0)}
    with pytest.raises(NonFiniteDensityError, match=r"^sgld: .* at site weight"):
        mcmc.sgld(model, (X, REAL), step_size=1e-3, start=start, progress=False)


# --- Seeded bugs -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("_values", "jacobian + log_det", "jacobian - log_det"),
        ("_values", "log_det.sum()", "0.0"),
        ("_values", "transform(unconstrained)\n", "transform(-unconstrained)\n"),
        ("__call__", "trace.log_prob_sum() + jacobian", "2 * trace.log_prob_sum() + jacobian"),
        ("__call__", "trace.log_prob_sum()", 'trace.log_prob_sum(lambda name, site: name != "y")'),
    ],
)
def test_the_comparison_with_plain_pyro_rejects(name, right, wrong, seeded_bug):
    seeded_bug(LogDensity, name, right, wrong)
    with pytest.raises(AssertionError):
        test_value_and_gradient_are_those_of_plain_pyro("horseshoe")
