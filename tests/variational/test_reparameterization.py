"""Local reparameterization against brute force: the output of a layer is linear in its weight, so its law is known.

With J the Jacobian of the output with respect to the weight, found by differentiating the layer itself, a weight of
independent elements N(m, s^2) gives an output of mean J m, variance J^2 s^2 and covariance J diag(s^2) J^T.

Seeds are fixed, so a test passes or fails for good. On a fresh seed a comparison at 5 standard errors fails falsely
with a probability of 6e-7 for each number compared (6e-5 at 4).
"""

import copy
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import nn
from torch.nn.functional import conv2d as conv2d_imported_early
from torch.nn.functional import linear as linear_imported_early
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_bnn import (
    ELBO,
    BayesianNet,
    fit,
    flipout,
    guides,
    likelihoods,
    local_reparameterization,
    priors,
)
from pyro_bnn.distributions import BernoulliDropout, GaussianDropout, LogUniform, TruncatedLogNormal
from pyro_bnn.models import LeNet300100
from pyro_bnn.variational.reparameterization import (
    DeferredSample,
    ReparameterizationWarning,
    WeightReuseError,
)

DRAWS = 20_000
positions = pytest.mark.filterwarnings("ignore:.*covariances between positions")


def normal(*shape, scale=0.7, dtype=torch.float64):
    """Return a Normal over a weight, its means and standard deviations of the order of one and all different."""
    loc = torch.randn(shape, dtype=dtype)
    return dist.Normal(loc, scale * (0.3 + torch.rand(shape, dtype=dtype)))


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def sample(laws, wrap=local_reparameterization, **options):
    """Return one sample of every site, deferred; the laws are those of a guide of independent sites."""

    def guide():
        return {name: pyro.sample(name, q.to_event(len(q.batch_shape))) for name, q in laws.items()}

    return wrap(guide, **options)()


def deferred(law, wrap=local_reparameterization, **options):
    return sample({"w": law}, wrap, **options)["w"]


def moments(draws):
    """Return mean and variance along axis 0 and their standard errors; that of the variance from the fourth moment."""
    n, mean = len(draws), draws.mean(0)
    centred = draws - mean
    variance = centred.square().mean(0)
    fourth = centred.pow(4).mean(0)
    return (
        mean,
        variance,
        (variance / n).sqrt(),
        ((fourth - variance.square()).clamp_min(0) / n).sqrt(),
    )


def assert_moments(draws, mean, variance, errors=5.0):
    """Compare with the expected values at some standard errors, and a hair where there is no noise at all."""
    found_mean, found_variance, mean_error, variance_error = moments(draws)
    assert ((found_mean - mean).abs() <= errors * mean_error + 1e-6).all()
    assert ((found_variance - variance).abs() <= errors * variance_error + 1e-6).all()


def covariance(a, b):
    """Return the covariance of two columns of draws and its standard error."""
    product = (a - a.mean(0)) * (b - b.mean(0))
    return product.mean(0), product.std(0) / math.sqrt(len(product))


def linear_law(call, law):
    """Return mean, variance and covariance (flat) of ``call(weight)``, which is affine in the weight."""
    zero = call(torch.zeros_like(law.mean))
    jacobian = torch.func.jacrev(call)(torch.zeros_like(law.mean)).reshape(
        zero.numel(), law.mean.numel()
    )
    mean = (jacobian @ law.mean.flatten()).reshape(zero.shape) + zero
    covariance_matrix = jacobian @ torch.diag(law.variance.flatten()) @ jacobian.T
    return mean, covariance_matrix.diagonal().reshape(zero.shape), covariance_matrix


def drawn_and_expected(call, x, law, wrap=local_reparameterization, draws=DRAWS):
    """Return independent draws of ``call(x, deferred weight)``, examples along axis 1, and mean and variance by law."""
    out = call(x.repeat(draws, *[1] * (x.dim() - 1)), deferred(law, wrap))
    return out.reshape(draws, len(x), *out.shape[1:]), *linear_law(lambda w: call(x, w), law)[:2]


LAYERS = {
    "linear": (F.linear, (3,), (4, 3), {}),
    "linear, positions": (F.linear, (2, 3), (4, 3), {}),
    "conv1d": (F.conv1d, (2, 9), (3, 2, 3), {"stride": 2, "padding": 2, "dilation": 2}),
    "conv2d": (
        F.conv2d,
        (2, 6, 8),
        (3, 2, 3, 5),
        {"stride": (2, 1), "padding": (1, 2), "dilation": (2, 1)},
    ),
    "conv2d same": (F.conv2d, (2, 4, 6), (3, 2, 3, 5), {"padding": "same"}),
    "conv2d groups": (F.conv2d, (4, 4, 6), (6, 2, 3, 5), {"groups": 2, "padding": 1}),
    "conv3d": (F.conv3d, (2, 3, 3, 4), (2, 2, 2, 1, 3), {"stride": 2, "padding": 1}),
    "conv_transpose1d": (F.conv_transpose1d, (2, 4), (2, 3, 3), {"stride": 2, "output_padding": 1}),
    "conv_transpose2d": (
        F.conv_transpose2d,
        (2, 3, 2),
        (2, 3, 3, 5),
        {"stride": 2, "padding": 1, "dilation": (1, 2)},
    ),
    "conv_transpose2d groups": (
        F.conv_transpose2d,
        (4, 2, 3),
        (4, 2, 3, 5),
        {"groups": 2, "padding": (1, 2)},
    ),
    "conv_transpose3d": (F.conv_transpose3d, (2, 2, 2, 2), (2, 2, 2, 1, 3), {"padding": (1, 0, 1)}),
}


def channels(name, w_shape, options):
    return w_shape[1] * options.get("groups", 1) if "transpose" in name else w_shape[0]


# --- the law of a layer's output --------------------------------------------------------------------------------------


@positions
@pytest.mark.parametrize("bias", ["none", "tensor", "deferred"])
@pytest.mark.parametrize("name", LAYERS)
def test_output_of_every_layer_has_the_exact_marginals(name, bias):
    function, x_shape, w_shape, options = LAYERS[name]
    x, law = randn(2, *x_shape), normal(*w_shape)
    b_law = normal(channels(name, w_shape, options))
    b = {"none": None, "tensor": b_law.mean, "deferred": sample({"b": b_law})["b"]}[bias]
    plain = None if bias == "none" else b_law.mean
    out = function(x.repeat(5000, *[1] * len(x_shape)), deferred(law), b, **options)
    mean, variance, _ = linear_law(lambda w: function(x, w, plain, **options), law)
    if bias == "deferred":
        axis = -1 if name.startswith("linear") else 1
        variance = variance + b_law.variance.reshape(
            [-1 if i == axis % mean.dim() else 1 for i in range(mean.dim())]
        )
    assert_moments(out.reshape(5000, *mean.shape), mean, variance)


@pytest.mark.parametrize("name", ["linear", "conv2d"])
@positions
def test_it_agrees_with_a_hundred_thousand_draws_of_the_weight(name):
    function, x_shape, w_shape, options = LAYERS[name]
    x, law, n = randn(1, *x_shape), normal(*w_shape), 100_000
    local = function(x.expand(n, *x_shape), deferred(law), **options)
    # the convolution of a draw of the weight is that of a weight with all draws as channels
    weights = law.sample((n,)).flatten(0, 1)
    drawn = function(x, weights, **options).reshape(n, *local.shape[1:])
    mean, variance, mean_error, variance_error = moments(local)
    other_mean, other_variance, other_mean_error, other_variance_error = moments(drawn)
    assert (
        (mean - other_mean).abs() < 5 * (mean_error.square() + other_mean_error.square()).sqrt()
    ).all()
    spread = (variance_error.square() + other_variance_error.square()).sqrt()
    assert ((variance - other_variance).abs() < 5 * spread).all()


@positions
def test_positions_of_a_convolution_are_uncorrelated_here_and_correlated_under_draws_of_the_weight():
    x, law = randn(1, 2, 5, 6), normal(2, 2, 3, 5)
    call = lambda w: F.conv2d(x, w, padding=1).flatten()  # noqa: E731
    _, _, expected = linear_law(call, law)
    scale = expected.diagonal().sqrt()
    assert (
        expected / scale / scale[:, None] - torch.eye(len(scale))
    ).abs().max() > 0.2  # the surrogate drops this
    local = F.conv2d(x.expand(DRAWS, -1, -1, -1), deferred(law), padding=1).flatten(1)
    correlation = torch.corrcoef(local.T) - torch.eye(len(scale))
    assert correlation.abs().max() < 5 / math.sqrt(DRAWS)
    # drawn weights have it; a standard error of a correlation is at most sqrt(2 / n)
    drawn = torch.func.vmap(call)(law.sample((DRAWS,)))
    assert ((torch.cov(drawn.T) - expected) / scale / scale[:, None]).abs().max() < 5 * math.sqrt(
        2 / DRAWS
    )


@positions
@pytest.mark.parametrize("name", LAYERS)
def test_an_input_without_a_batch_is_one_example(name):
    function, x_shape, w_shape, options = LAYERS[name]
    x, law = randn(*x_shape), normal(*w_shape)
    draws = torch.stack([function(x, deferred(law), **options) for _ in range(400)])
    mean, variance, _ = linear_law(lambda w: function(x, w, **options), law)
    assert_moments(draws, mean, variance)
    assert function(x, deferred(law, flipout), **options).shape == mean.shape


MODULES = {
    "Linear": (lambda: nn.Linear(3, 4), (3,)),
    "Conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2), (2, 7)),
    "Conv2d": (lambda: nn.Conv2d(2, 3, (3, 5), padding=(1, 2), groups=1), (2, 4, 5)),
    "Conv2d circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 3, 3)),
    "Conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 2, 3, 3)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), (2, 2, 2)),
}


@positions
@pytest.mark.parametrize("name", MODULES)
def test_through_modules(name):
    make, x_shape = MODULES[name]
    module = make().double()
    x, law, b_law = randn(2, *x_shape), normal(*module.weight.shape), normal(*module.bias.shape)
    sites = sample({"weight": law, "bias": b_law})
    out = torch.func.functional_call(module, sites, (x.repeat(DRAWS // 4, *[1] * len(x_shape)),))
    by_weight = lambda w: torch.func.functional_call(
        module, {"weight": w, "bias": b_law.mean}, (x,)
    )  # noqa: E731
    by_bias = lambda b: torch.func.functional_call(module, {"weight": law.mean, "bias": b}, (x,))  # noqa: E731
    mean, variance, _ = linear_law(by_weight, law)
    variance = variance + linear_law(by_bias, b_law)[1]
    assert_moments(out.reshape(-1, *mean.shape), mean, variance)


CALLS = {
    "imported early": (lambda x, w: linear_imported_early(x, w), (4, 3)),
    "by keyword": (lambda x, w: F.linear(input=x, weight=w, bias=None), (4, 3)),
    "x @ w.T": (lambda x, w: x @ w.T, (4, 3)),
    "x @ w.mT": (lambda x, w: x @ w.mT, (4, 3)),
    "x @ w.t()": (lambda x, w: x @ w.t(), (4, 3)),
    "x @ w.transpose": (lambda x, w: x @ w.transpose(-1, -2), (4, 3)),
    "torch.transpose": (lambda x, w: x.matmul(torch.transpose(input=w, dim0=0, dim1=1)), (4, 3)),
    "x @ w": (lambda x, w: x @ w, (3, 4)),
    "mm": (lambda x, w: torch.mm(x, w), (3, 4)),
    "mm by keyword": (lambda x, w: torch.mm(input=x, mat2=w), (3, 4)),
    "matmul by keyword": (lambda x, w: torch.matmul(input=x, other=w), (3, 4)),
    "linear of a transpose": (lambda x, w: F.linear(x, w.T), (3, 4)),
    "vector": (lambda x, w: x @ w, (3,)),
    "mv": (lambda x, w: x.mv(w), (3,)),
    "scaled": (lambda x, w: x @ (w / 3**0.5), (3, 4)),
    "scaled by a tensor": (
        lambda x, w: F.linear(x, w * torch.tensor([[-2.0, 0.5, 1.5]]).double()),
        (4, 3),
    ),
    "multiplied by keyword": (lambda x, w: F.linear(x, torch.mul(input=w, other=-0.5)), (4, 3)),
    "scaled from the left": (lambda x, w: F.linear(x, 0.5 * w), (4, 3)),
    "scaled transpose": (lambda x, w: x @ (0.5 * w).T / 2, (4, 3)),
}


@pytest.mark.parametrize("name", CALLS)
def test_however_a_dense_layer_is_written(name):
    call, w_shape = CALLS[name]
    draws, mean, variance = drawn_and_expected(call, randn(2, 3), normal(*w_shape))
    assert_moments(draws, mean, variance)
    found, error = covariance(draws[:, 0], draws[:, 1])  # the examples have independent noise
    assert (found.abs() < 5 * error).all()


@positions
def test_a_convolution_however_it_is_called():
    x, law = randn(2, 2, 4, 5), normal(3, 2, 3, 5)
    for call in (
        torch.conv2d,
        conv2d_imported_early,
        lambda x, w, p: torch.conv2d(input=x, weight=w, padding=p),
    ):
        positional = call in (torch.conv2d, conv2d_imported_early)
        draw = (
            (lambda x, w: call(x, w, None, 1, (1, 2)))
            if positional
            else (lambda x, w: call(x, w, (1, 2)))
        )  # noqa: B023
        assert_moments(*drawn_and_expected(draw, x, law, draws=4000))


def test_a_matrix_times_a_vector_of_inputs():
    x, law = randn(3), normal(4, 3)
    draws = torch.stack([deferred(law) @ x for _ in range(2000)])
    mean, variance, _ = linear_law(lambda w: w @ x, law)
    assert_moments(draws, mean, variance)


def test_double_precision_is_exact():
    # two identical passes that differ in the variance only through s: their ratio shows it, whatever the noise was
    x, law = randn(5, 3), normal(4, 3)
    outputs = []
    for factor in (1.0, 2.0):
        torch.manual_seed(1)
        outputs.append(F.linear(x, deferred(dist.Normal(law.mean, law.stddev * factor))))
    mean, variance, _ = linear_law(lambda w: F.linear(x, w), law)
    first, second = (out - mean for out in outputs)
    assert first.dtype == torch.float64
    # the number inside the root, 1e-8, is all that keeps the ratio from being 2
    expected = ((4 * variance + 1e-8) / (variance + 1e-8)).sqrt()
    torch.testing.assert_close(second / first, expected, rtol=1e-9, atol=0)


# --- posteriors of dropout --------------------------------------------------------------------------------------------


def test_gaussian_dropout_with_a_mask_on_the_means():
    theta, log_alpha, keep = randn(4, 3), randn(4, 3), torch.rand(4, 3) < 0.5
    law = GaussianDropout(theta, log_alpha, keep)
    x = randn(2, 3)
    out = F.linear(x.repeat(DRAWS, 1), deferred(law)).reshape(DRAWS, 2, 4)
    assert_moments(out, x @ (theta * keep).T, x.square() @ (log_alpha.exp() * theta.square()).T)


def test_gaussian_dropout_with_one_alpha_for_all():
    theta, log_alpha = randn(4, 3), torch.tensor([[-0.5]]).double()
    x = randn(2, 3)
    law = GaussianDropout(theta, log_alpha)
    out = (x.repeat(DRAWS, 1) @ deferred(law).T).reshape(DRAWS, 2, 4)
    assert_moments(out, x @ theta.T, x.square() @ (math.exp(-0.5) * theta.square()).T)


def assert_masked(out, candidates, probabilities):
    """Every row of ``out`` is one of the candidates, each as often as it should be (5 standard errors)."""
    distances = torch.cdist(out.flatten(1), candidates.flatten(1))
    nearest, which = distances.min(1)
    assert nearest.max() < 1e-6
    found = torch.bincount(which, minlength=len(candidates)) / len(out)
    error = (probabilities * (1 - probabilities) / len(out)).sqrt()
    assert ((found - probabilities).abs() <= 5 * error).all()


def all_masks(k):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * k)


@pytest.mark.parametrize("group_dim", [1, -1])
@pytest.mark.parametrize(
    "rate", [0.3, torch.tensor([[0.2, 0.5, 0.9]]).double(), torch.tensor([0.2, 0.5, 0.9]).double()]
)
@pytest.mark.parametrize("form", ["linear", "x @ w.T", "x @ w", "scaled"])
def test_binary_dropout_masks_the_inputs_of_each_example(group_dim, rate, form):
    x, loc, bias = randn(1, 3), randn(4, 3), randn(4)
    law = BernoulliDropout(loc, rate, group_dim)
    if form == "x @ w":
        if isinstance(rate, torch.Tensor):
            rate = rate.reshape(3, 1)
        law = BernoulliDropout(loc.T, rate, 0 if group_dim == 1 else -2)
    w, rows = deferred(law), x.expand(5000, 3)
    calls = {
        "linear": lambda: F.linear(rows, w, bias),
        "x @ w.T": lambda: rows @ w.T + bias,
        "x @ w": lambda: rows @ w + bias,
        "scaled": lambda: F.linear(rows, w * 2, bias) / 2 + bias / 2,
    }
    rates = (
        torch.as_tensor(rate, dtype=torch.float64).expand(1, 3)
        if not isinstance(rate, torch.Tensor)
        else rate.reshape(1, 3)
    )
    masks = all_masks(3)
    probabilities = torch.where(masks > 0, 1 - rates, rates).prod(1)
    assert_masked(calls[form](), (x * masks) @ loc.T + bias, probabilities)


def test_binary_dropout_of_a_vector_of_weights():
    x, loc = randn(1, 3), randn(3)
    out = x.expand(5000, 3) @ deferred(BernoulliDropout(loc, 0.4, 0))
    masks = all_masks(3)
    assert_masked(
        out[:, None], ((x * masks) @ loc)[:, None], (0.6**masks * 0.4 ** (1 - masks)).prod(1)
    )


@pytest.mark.parametrize("rate", [0.3, torch.tensor([0.2, 0.7]).double().reshape(2, 1, 1, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_binary_dropout_masks_the_channels_of_a_convolution(rate, groups):
    x, loc, bias = randn(1, 2, 4, 5), randn(2, 2 // groups, 3, 5), randn(2)
    out = F.conv2d(
        x.expand(4000, -1, -1, -1),
        deferred(BernoulliDropout(loc, rate, 0)),
        bias,
        padding=1,
        groups=groups,
    )
    masks, rates = all_masks(2), torch.as_tensor(rate, dtype=torch.float64).flatten()
    plain = F.conv2d(x, loc, padding=1, groups=groups)
    candidates = plain * masks[:, :, None, None] + bias[:, None, None]
    assert_masked(out, candidates, torch.where(masks > 0, 1 - rates, rates).prod(1))


def test_binary_dropout_masks_the_channels_of_a_transposed_convolution():
    x, loc = randn(1, 2, 2, 2), randn(2, 3, 3, 5)
    for axis in (0, 1):  # the inputs, the outputs
        out = F.conv_transpose2d(
            x.expand(4000, -1, -1, -1), deferred(BernoulliDropout(loc, 0.4, axis))
        )
        masks = all_masks(loc.shape[axis])
        masked = [loc * m.reshape([-1 if i == axis else 1 for i in range(4)]) for m in masks]
        candidates = torch.cat([F.conv_transpose2d(x, w) for w in masked])
        assert_masked(out, candidates, (0.6**masks * 0.4 ** (1 - masks)).prod(1))


def test_binary_dropout_without_groups_is_left_alone():
    assert type(deferred(BernoulliDropout(randn(4, 3), 0.5))) is torch.Tensor


# --- scale mixtures ---------------------------------------------------------------------------------------------------


def composed(prior, shape, group_dim, laws, **options):
    """Return the weight that a prior makes of deferred sites."""

    def guide():
        for site, q in laws.items():
            pyro.sample(f"w.{site}", q.to_event(len(q.batch_shape)))

    trace = poutine.trace(local_reparameterization(guide, **options)).get_trace()
    return poutine.replay(prior, trace=trace)("w", torch.Size(shape), group_dim), trace


def log_normal(*shape, scale=0.4):
    return dist.LogNormal(
        0.5 * randn(*shape), scale * (0.5 + torch.rand(shape, dtype=torch.float64))
    )


def mixture(kind, shape, group_dim):
    """Return prior, laws of the sites, and E lambda, E lambda^2 of the product of the scales."""
    group = [size if axis == group_dim else 1 for axis, size in enumerate(shape)]
    one = [1] * len(shape)
    if kind == "jeffreys":
        laws = {"scale": normal(*group)}
        return (
            priors.NormalJeffreys(),
            laws,
            laws["scale"].mean,
            laws["scale"].variance + laws["scale"].mean.square(),
        )
    if kind == "truncated":
        z = TruncatedLogNormal(
            randn(*group) - 1, 0.5 + torch.rand(group, dtype=torch.float64), -20.0, 0.0
        )
        return (
            priors.TruncatedLogUniform(unit_scale=1.0).double(),
            {"scale": z},
            z.mean,
            z.variance + z.mean.square(),
        )
    # the scale of the whole layer is shared by all examples: no spread here, so that one pass shows the law
    sharp = dist.LogNormal(torch.full(one, 0.3).double(), torch.full(one, 1e-9).double())
    z, s = log_normal(*group), math.exp(0.3)
    if kind == "horseshoe":
        return (
            priors.Horseshoe().double(),
            {"global_scale": sharp, "scale": z},
            z.mean * s,
            (z.variance + z.mean**2) * s**2,
        )
    laws = {"global_scale.gamma": sharp, "global_scale.inverse_gamma": sharp}
    laws |= {"scale.gamma": z, "scale.inverse_gamma": log_normal(*group)}
    # log sqrt(ab) ~ N((m_a + m_b) / 2, (v_a + v_b) / 4)
    other = laws["scale.inverse_gamma"]
    z = dist.LogNormal(
        (z.loc + other.loc) / 2, (z.scale.square() + other.scale.square()).sqrt() / 2
    )
    return (
        priors.Horseshoe(decomposed=True).double(),
        laws,
        z.mean * s,
        (z.variance + z.mean**2) * s**2,
    )


KINDS = ["jeffreys", "horseshoe", "decomposed", "truncated"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["linear", "x @ w"])
def test_scales_per_example_on_the_inputs_of_a_dense_layer(kind, form):
    shape, group_dim = ((4, 3), 1) if form == "linear" else ((3, 4), 0)
    prior, laws, first, second = mixture(kind, shape, group_dim)
    unit = normal(*shape)
    w, _ = composed(prior, shape, group_dim, {**laws, "unit": unit}, per_example_scales=True)
    assert isinstance(w, DeferredSample)
    assert len(w.scales) == (2 if kind == "decomposed" else 1)
    x, bias = randn(2, 3), randn(4)
    rows = x.repeat(DRAWS, 1)
    out = F.linear(rows, w, bias) if form == "linear" else rows @ w + bias
    out = out.reshape(DRAWS, 2, 4)
    # y_o = sum_i x_i z_i u_oi:  E y = sum x E z mu,  Var y = sum x^2 (E z^2 (mu^2 + s^2) - (E z)^2 mu^2)
    mean, variance = (
        unit.mean * first,
        second * (unit.mean.square() + unit.variance) - (first * unit.mean).square(),
    )
    if form == "x @ w":
        mean, variance, first, second, unit_mean = (
            mean.T,
            variance.T,
            first.T,
            second.T,
            unit.mean.T,
        )
    else:
        unit_mean = unit.mean
    assert_moments(out, x @ mean.T + bias, x.square() @ variance.T)
    # the scales are the same for all outputs of an example, cov(y_o, y_p) = sum_i x_i^2 Var z_i mu_oi mu_pi ...
    expected = (x.square() * (second - first.square())) @ (unit_mean[0] * unit_mean[1])
    found, error = covariance(out[:, :, 0], out[:, :, 1])
    assert ((found - expected).abs() < 5 * error).all()
    # ... and independent for different examples
    found, error = covariance(out[:, 0], out[:, 1])
    assert (found.abs() < 5 * error).all()


@positions
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", ["none", "tensor"])
def test_scales_per_example_on_the_outputs_of_a_convolution(kind, bias):
    shape = (3, 2, 3, 5)
    prior, laws, first, second = mixture(kind, shape, 0)
    unit = normal(*shape)
    w, _ = composed(prior, shape, 0, {**laws, "unit": unit}, per_example_scales=True)
    x, b = randn(2, 2, 4, 5), None if bias == "none" else randn(3)
    out = F.conv2d(x.repeat(DRAWS // 4, 1, 1, 1), w, b, padding=1).reshape(DRAWS // 4, 2, 3, 4, 3)
    mean, variance, _ = linear_law(lambda u: F.conv2d(x, u, padding=1), unit)
    first, second = first.reshape(3, 1, 1), second.reshape(3, 1, 1)
    offset = 0 if b is None else b.reshape(3, 1, 1)  # not scaled: the bias is no part of w = u z
    assert_moments(
        out, first * mean + offset, second * (mean.square() + variance) - (first * mean).square()
    )
    # one z for all positions of a channel: cov = Var z E c E c'
    found, error = covariance(out[:, :, :, 0, 0], out[:, :, :, 1, 2])
    expected = (second - first.square()).flatten() * mean[:, :, 0, 0] * mean[:, :, 1, 2]
    assert ((found - expected).abs() < 5 * error).all()
    found, error = covariance(out[:, 0, 0], out[:, 0, 1])  # another channel, another z
    assert (found.abs() < 5 * error).all()
    found, error = covariance(out[:, 0], out[:, 1])
    assert (found.abs() < 5 * error).all()


@positions
def test_scales_of_transposed_convolutions_and_of_groups():
    x, unit = randn(2, 4, 2, 3), normal(4, 2, 3, 5)
    z = normal(1, 2, 1, 1)
    mean, variance, _ = linear_law(lambda u: F.conv_transpose2d(x, u), unit)
    w, _ = composed(
        priors.NormalJeffreys(),
        (4, 2, 3, 5),
        1,
        {"scale": z, "unit": unit},
        per_example_scales=True,
    )
    out = F.conv_transpose2d(x.repeat(3000, 1, 1, 1), w).reshape(3000, *mean.shape)
    first, second = z.mean.reshape(2, 1, 1), (z.mean.square() + z.variance).reshape(2, 1, 1)
    assert_moments(out, first * mean, second * (mean.square() + variance) - (first * mean).square())
    # with groups the inner axis runs over no channels: the scales are drawn once, and that is said
    w, trace = composed(
        priors.NormalJeffreys(),
        (4, 2, 3, 5),
        1,
        {"scale": z, "unit": unit},
        per_example_scales=True,
    )
    with pytest.warns(ReparameterizationWarning, match=r"'w\.scale'"):
        out = F.conv_transpose2d(x.repeat(3000, 1, 1, 1), w, groups=2)
    drawn = trace.nodes["w.scale"]["value"].materialize()
    mean, variance, _ = linear_law(lambda u: F.conv_transpose2d(x, u * drawn, groups=2), unit)
    assert_moments(out.reshape(3000, *mean.shape), mean, variance)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_scales_are_drawn_once_and_the_unit_stays_deferred(kind):
    prior, laws, _, _ = mixture(kind, (4, 3), 1)
    unit = normal(4, 3)
    with RandomShapes() as random:
        w, trace = composed(prior, (4, 3), 1, {**laws, "unit": unit})
        assert isinstance(w, DeferredSample)
        assert not w.scales
        x = randn(2, 3)
        random.shapes.clear()
        out = F.linear(x.repeat(DRAWS, 1), w)
        assert random.shapes == [(2 * DRAWS, 4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = {
            name: node["value"]
            for name, node in trace.iter_stochastic_nodes()
            if not name.endswith("unit")
        }
        values = {
            name: v.materialize() if isinstance(v, DeferredSample) else v
            for name, v in values.items()
        }
    root = 0.5 if kind == "decomposed" else 1.0
    scale = math.prod(value**root for value in values.values())
    mean, variance, _ = linear_law(lambda u: F.linear(x, u * scale), unit)
    assert_moments(out.reshape(DRAWS, 2, 4), mean, variance)


@pytest.mark.parametrize("decomposed", [False, True])
def test_the_slab_leaves_the_unit_deferred(decomposed):
    model = BayesianNet(
        nn.Linear(3, 4),
        priors.Horseshoe(slab=2.0, decomposed=decomposed),
        likelihoods.Gaussian(0.1),
        num_data=9,
    )
    guide = guides.MeanField(model, init_scale=0.2)
    trace = poutine.trace(local_reparameterization(guide)).get_trace()
    model_trace = poutine.trace(poutine.replay(model, trace=trace)).get_trace(torch.randn(5, 3))
    w = model_trace.nodes["weight"]["value"]
    assert isinstance(w, DeferredSample)
    plain = {name: node["value"] for name, node in trace.iter_stochastic_nodes()}
    assert [name for name, value in plain.items() if isinstance(value, DeferredSample)] == [
        "weight.unit"
    ]
    # per example: the slab is no product, so the scale is drawn once for all, and that is said
    loss = ELBO(model, local_reparameterization(guide, per_example_scales=True))
    with pytest.warns(ReparameterizationWarning, match=r"weight\.scale"):
        assert loss(torch.randn(5, 3), torch.randn(5, 4)).isfinite()


def test_scales_of_single_weights_are_shared_by_the_examples():
    # a bias under a scale mixture has one scale for each number: no group, so it is drawn once; its unit stays deferred
    laws = {"scale": normal(4), "unit": normal(4)}
    b, trace = composed(priors.NormalJeffreys(), (4,), None, laws, per_example_scales=True)
    law, x = normal(4, 3), randn(2, 3)
    out = F.linear(x.repeat(DRAWS, 1), deferred(law), b).reshape(DRAWS, 2, 4)
    z = trace.nodes["w.scale"]["value"].materialize()
    mean, variance, _ = linear_law(lambda w: F.linear(x, w), law)
    assert_moments(out, mean + laws["unit"].mean * z, variance + laws["unit"].variance * z.square())


def test_shared_scales_are_shared_by_the_examples():
    z, unit, x = normal(1, 3), normal(4, 3), randn(2, 3)
    draws = []
    for _ in range(1000):
        w, _ = composed(priors.NormalJeffreys(), (4, 3), 1, {"scale": z, "unit": unit})
        draws.append(F.linear(x, w))
    draws = torch.stack(draws)
    found, error = covariance(draws[:, 0], draws[:, 1])
    expected = (
        x[0] * x[1] * z.variance
    ) @ unit.mean.square().T  # cov = sum_i x_i x'_i Var z_i mu_oi^2
    assert ((found - expected[0]).abs() < 5 * error).all()


# --- a training step --------------------------------------------------------------------------------------------------


class RandomShapes(TorchDispatchMode):
    """Note the shape of everything that is drawn at random."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.shapes.append(tuple(result.shape))
        return result


def training_step(guide, model, wrap):
    loss = ELBO(model, wrap(guide))
    x, y = torch.randn(7, 64), torch.randint(10, (7,))
    with RandomShapes() as random:
        loss(x, y).backward()
    return set(random.shapes)


@pytest.mark.parametrize(
    ("prior", "make"),
    [
        (priors.LogUniform(), guides.SparseVariationalDropout),
        (priors.LogUniform(), guides.GaussianDropout),
        (priors.Normal(), guides.MeanField),
        (priors.Normal(), guides.BernoulliDropout),
        (priors.NormalJeffreys(), guides.GroupNormalJeffreys),
        (priors.Horseshoe(1e-2, decomposed=True), guides.GroupHorseshoe),
        (priors.Horseshoe(slab=1.0), guides.MeanField),
    ],
)
def test_a_training_step_draws_no_random_number_of_a_weights_shape(prior, make):
    torch.manual_seed(0)
    model = BayesianNet(LeNet300100(inputs=64), prior, likelihoods.Categorical(), num_data=100)
    guide = make(model)
    weights = {(300, 64), (100, 300), (10, 100)}
    for options in ({}, {"per_example_scales": True}):
        with warnings.catch_warnings():
            if (
                getattr(prior, "slab", None) is not None
            ):  # the slab's scales cannot be drawn per example
                warnings.simplefilter("ignore", ReparameterizationWarning)
            shapes = training_step(guide, model, lambda g: local_reparameterization(g, **options))  # noqa: B023
        assert not any(math.prod(shape) in {math.prod(w) for w in weights} for shape in shapes)
        outputs = (
            {(7, 64), (7, 300), (7, 100)}
            if make is guides.BernoulliDropout
            else {(7, 300), (7, 100), (7, 10)}
        )
        assert outputs <= shapes
    if make is not guides.BernoulliDropout:  # the recorder does see weights that are drawn
        assert weights <= training_step(guide, model, lambda g: g)


def gradients(loss, x, y, draws):
    rows = []
    parameters = [p for p in loss.parameters() if p.requires_grad]
    for _ in range(draws):
        gradient = torch.autograd.grad(loss(x, y), parameters)
        rows.append(torch.cat([g.flatten() for g in gradient]))
    return torch.stack(rows)


@pytest.mark.parametrize("wrap", [local_reparameterization, flipout])
def test_the_gradient_is_unbiased_and_less_noisy(wrap):
    # 5 standard errors on 107 numbers
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    model = BayesianNet(net, {"*": priors.Normal(1.0)}, likelihoods.Categorical(), num_data=40)
    guide = guides.MeanField(model, init_scale=0.3)
    x, y = torch.randn(40, 4), torch.randint(2, (40,))
    drawn = gradients(ELBO(model, guide), x, y, 250)
    local = gradients(ELBO(model, wrap(guide)), x, y, 250)
    spread = ((drawn.var(0) + local.var(0)) / 250).sqrt()
    z = (drawn.mean(0) - local.mean(0)) / spread.clamp_min(1e-12)
    assert z.abs().max() < 5
    assert local.var(0).sum() < 0.8 * drawn.var(0).sum()


def test_the_expected_loss_is_that_of_drawn_weights_with_scales_per_example():
    model = BayesianNet(
        nn.Linear(6, 3), priors.NormalJeffreys(), likelihoods.Categorical(), num_data=20
    )
    guide = guides.MeanField(model, init_scale=0.4)
    x, y = torch.randn(20, 6), torch.randint(3, (20,))
    with torch.no_grad():
        losses = [
            torch.stack([ELBO(model, g)(x, y) for _ in range(200)])
            for g in (
                guide,
                local_reparameterization(guide),
                local_reparameterization(guide, per_example_scales=True),
            )
        ]
    for a, b in ((0, 1), (0, 2)):
        error = ((losses[a].var() + losses[b].var()) / 200).sqrt()
        assert (losses[a].mean() - losses[b].mean()).abs() < 5 * error


# --- one use, one draw ------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(torch.tanh(self.fc(x)))


def test_a_shared_layer_called_twice_is_an_error_that_hide_cures():
    model = BayesianNet(Twice(), priors.Normal(), likelihoods.Gaussian(0.1), num_data=5)
    guide, x, y = guides.MeanField(model), torch.randn(5, 3), torch.randn(5, 3)
    for wrap in (local_reparameterization, flipout):
        with pytest.raises(
            WeightReuseError, match=r"'fc\.weight' is used twice.*hide=\['fc\.weight'\]"
        ):
            ELBO(model, wrap(guide))(x, y)
        assert ELBO(model, wrap(guide, hide=["fc.weight"]))(x, y).isfinite()


def test_a_shared_scale_is_part_of_the_weight_that_is_used_twice():
    w, _ = composed(
        priors.NormalJeffreys(),
        (3, 3),
        1,
        {"scale": normal(1, 3), "unit": normal(3, 3)},
        per_example_scales=True,
    )
    x = F.linear(randn(2, 3), w)
    with pytest.raises(WeightReuseError, match=r"w\.unit"):
        F.linear(x, w)


@pytest.mark.filterwarnings(
    "ignore::pyro_bnn.variational.reparameterization.ReparameterizationWarning"
)
def test_a_use_beside_a_read_is_an_error_in_either_order():
    x = randn(2, 3)
    w = deferred(normal(3, 3))
    F.linear(x, w)
    with pytest.raises(WeightReuseError, match="'w'"):
        w.exp()
    w = deferred(normal(3, 3))
    w.exp()
    with pytest.raises(WeightReuseError, match="'w'"):
        F.linear(x, w)
    w = deferred(normal(3, 3))
    x @ w.T
    with pytest.raises(WeightReuseError, match="'w'"):  # a derived sample is the same weight
        x @ (2 * w)
    w, b = deferred(normal(3, 3)), deferred(normal(3))
    F.linear(x, w, b)
    with pytest.raises(WeightReuseError, match="'w'"):  # and so is a bias
        b.exp()


def test_a_bias_added_to_the_outputs_of_a_layer_is_drawn_for_each_example():
    law, z = normal(3), randn(4, 3)
    draws = (z.repeat(DRAWS, 1) + deferred(law)).reshape(DRAWS, 4, 3)
    assert_moments(draws, z + law.mean, law.variance.expand(4, 3))
    correlation = torch.corrcoef(draws.flatten(1).T) - torch.eye(12)
    assert correlation.abs().max() < 5 / math.sqrt(DRAWS)
    single = (torch.zeros(1, 2, 3).double() + deferred(law))[
        0
    ]  # one draw for all positions of an example
    assert (single[0] == single[1]).all()
    b = deferred(law)
    z + b
    with pytest.raises(WeightReuseError, match="'w'"):
        z + b


def test_a_shifted_weight_stays_deferred():
    law, shift = normal(2, 3), randn(2, 3)
    w = shift + deferred(law)
    assert isinstance(w, DeferredSample)
    torch.testing.assert_close(w.distribution.mean, law.loc + shift)
    torch.testing.assert_close(w.materialize() - shift, w.draw.value)


def test_reads_share_one_draw_and_warn_once():
    w = deferred(normal(4, 3))
    with pytest.warns(
        ReparameterizationWarning, match="site 'w': exp needs the weight itself"
    ) as caught:
        first, second, third = w.exp().log(), torch.einsum("oi->io", w).T, (w * 2).cumsum(1) / 2
    assert len(caught) == 1
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first.cumsum(1), third)
    assert not isinstance(second, DeferredSample)


def test_a_read_with_scales_is_the_product():
    laws = {"scale": normal(1, 3), "unit": normal(4, 3)}
    w, trace = composed(priors.NormalJeffreys(), (4, 3), 1, laws, per_example_scales=True)
    with pytest.warns(ReparameterizationWarning, match=r"'w\.unit': cumsum"):
        read = (2 * w).cumsum(0)
    z, unit = (trace.nodes[f"w.{part}"]["value"].draw.value for part in ("scale", "unit"))
    torch.testing.assert_close(read, (2 * unit * z).cumsum(0))


def test_warnings_come_once_for_each_site_of_a_run():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.table = nn.Conv2d(1, 2, 3), nn.Embedding(3, 2)

        def forward(self, x):
            return self.conv(x).mean((2, 3)) @ self.table(torch.tensor([0, 1])).T

    model = BayesianNet(Net(), priors.Normal(), likelihoods.Categorical(), num_data=5)
    loss = ELBO(model, local_reparameterization(guides.MeanField(model)))
    x, y = torch.randn(5, 1, 4, 4), torch.randint(2, (5,))
    with pytest.warns(ReparameterizationWarning) as caught:
        losses = [loss(x, y) for _ in range(3)]
    assert all(value.isfinite() for value in losses)
    messages = sorted(str(w.message) for w in caught)
    assert len(messages) == 2
    assert "site 'conv.weight'" in messages[0]
    assert "covariances between positions" in messages[0]
    assert "site 'table.weight': embedding needs the weight itself" in messages[1]


def test_what_is_exact_for_positions_is_not_warned_about():
    x = randn(2, 2, 4, 5)
    F.conv2d(x, deferred(normal(3, 2, 3, 3), flipout))
    F.conv2d(x, deferred(BernoulliDropout(randn(3, 2, 3, 3), 0.5, 0)))
    F.linear(x, deferred(BernoulliDropout(randn(3, 5), 0.5, 1)))


def test_a_layer_of_two_weights_reads_both():
    # the rows of the input are weights here, not examples: noise of their own would be wrong in law
    a, b = deferred(normal(4, 3)), sample({"v": normal(3)})["v"]
    with pytest.warns(ReparameterizationWarning):
        product = a @ b
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(product, a.materialize() @ b.materialize())
    a, b = deferred(normal(4, 3)), sample({"v": normal(5, 3)})["v"]
    with pytest.warns(ReparameterizationWarning):
        product = F.linear(a, b)
    torch.testing.assert_close(product, a.materialize() @ b.materialize().T)


def test_a_deferred_bias_alone_is_drawn_once():
    b = deferred(normal(4))
    x, w = randn(2, 3), randn(4, 3)
    with pytest.warns(ReparameterizationWarning, match="site 'w'"):
        out = F.linear(x, w, b)
    torch.testing.assert_close(out, F.linear(x, w, b.materialize()))


def test_printing_and_asking_for_the_shape_draw_nothing():
    w = deferred(normal(4, 3))
    with RandomShapes() as random:
        assert repr(w) == str(w) == "DeferredSample('w', Normal, shape=(4, 3))"
        assert (w.shape, w.size(1), w.dim(), len(w), w.numel()) == ((4, 3), 3, 2, 4, 12)
        assert (w.dtype, w.device.type, w.is_floating_point()) == (torch.float64, "cpu", True)
    assert not random.shapes
    assert w.draw.value is None


def test_scaling_that_would_make_dependent_elements_draws():
    u = deferred(normal(4, 1))
    v = randn(1, 50)
    with pytest.warns(ReparameterizationWarning):
        product = u * v
    assert not isinstance(product, DeferredSample)
    torch.testing.assert_close(product, u.materialize() * v)


def test_square_root_of_a_log_normal_scale():
    law = log_normal(1, 3)
    z = deferred(law, per_example_scales=True).sqrt()
    assert isinstance(z, DeferredSample)
    draws = z.distribution.sample((DRAWS,))
    expected = law.sample((DRAWS,)).sqrt()
    mean, variance, mean_error, _ = moments(draws)
    other_mean, other_variance, other_error, _ = moments(expected)
    assert (
        (mean - other_mean).abs() < 5 * (mean_error.square() + other_error.square()).sqrt()
    ).all()
    assert ((variance / other_variance).log().abs() < 0.2).all()
    torch.testing.assert_close(z.materialize(), z.draw.value.sqrt())


def test_what_is_derived_and_then_read_is_the_same_draw():
    w = deferred(normal(4, 3))
    derived = (w.T * -2 / 3).t()
    assert isinstance(derived, DeferredSample)
    torch.testing.assert_close(derived.distribution.stddev, w.distribution.stddev * 2 / 3)
    torch.testing.assert_close(derived.materialize(), w.materialize() * -2 / 3)


def test_hide_names_sites_of_the_guide():
    laws = {"a": normal(2, 2), "b": normal(2, 2)}
    sites = sample(laws, hide=["a"])
    assert type(sites["a"]) is torch.Tensor
    assert isinstance(sites["b"], DeferredSample)
    with pytest.raises(ValueError, match="hide names 'c', which the guide does not sample"):
        sample(laws, hide=["a", "c"])
    with pytest.raises(ValueError, match="collection of names"):
        sample(laws, hide="weight")


def test_sites_that_are_no_weights_are_left_alone():
    def guide():
        scalar = pyro.sample("scalar", dist.Normal(0.0, 1.0))
        positive = pyro.sample("positive", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
        seen = pyro.sample("seen", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=torch.ones(3))
        with pyro.plate("data", 4):
            local = pyro.sample("local", dist.Normal(torch.zeros(4, 2), 1.0).to_event(1))
        return scalar, positive, seen, local

    assert all(type(value) is torch.Tensor for value in local_reparameterization(guide)())


def test_an_unknown_distribution_has_no_rule():
    from pyro_bnn.variational.reparameterization import draw_output

    with pytest.raises(NotImplementedError, match="got LogUniform, which has no rule"):
        draw_output(LogUniform((2, 2)), None, torch.zeros(1))


# --- numbers at the edge ----------------------------------------------------------------------------------------------


@positions
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrap", [local_reparameterization, flipout])
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_zero_inputs_and_zero_variances_are_finite_forward_and_backward(dtype, wrap, kind):
    function, shape, x_shape = (
        (F.linear, (4, 3), (2, 3)) if kind == "linear" else (F.conv2d, (3, 2, 2, 2), (2, 2, 4, 4))
    )
    for scale_value, x_value in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.5, 1.0)):
        loc = torch.zeros(shape, dtype=dtype, requires_grad=True)
        scale = torch.full(shape, scale_value, dtype=dtype, requires_grad=True)
        x = torch.full(x_shape, x_value, dtype=dtype, requires_grad=True)
        out = function(x, deferred(dist.Normal(loc, scale, validate_args=False), wrap))
        assert out.dtype == dtype
        out.sum().backward()
        assert all(tensor.isfinite().all() for tensor in (out, loc.grad, scale.grad, x.grad))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_in_half_precision(dtype):
    loc = torch.ones(4, 3, dtype=dtype, requires_grad=True)
    out = F.linear(torch.ones(5, 3, dtype=dtype), deferred(BernoulliDropout(loc, 0.5, 1)))
    out.sum().backward()
    assert out.dtype == dtype
    assert loc.grad.isfinite().all()


@pytest.mark.parametrize("log_variance", [-50.0, 50.0])
def test_extreme_variances_are_finite(log_variance):
    model = BayesianNet(nn.Linear(3, 2), priors.LogUniform(), likelihoods.Gaussian(1.0), num_data=4)
    for options in ({}, {"clip": None, "mask": None}):
        guide = guides.SparseVariationalDropout(model, init_log_variance=log_variance, **options)
        with torch.no_grad():
            guide.sites.weight.loc[0] = 0.0
        for x in (torch.zeros(4, 3), torch.randn(4, 3)):
            guide.zero_grad()
            loss = ELBO(model, local_reparameterization(guide))(x, torch.randn(4, 2))
            loss.backward()
            assert loss.isfinite()
            assert all(p.grad.isfinite().all() for p in guide.parameters())


def test_a_bias_never_enters_the_variance():
    law, x = normal(4, 3), randn(3).expand(DRAWS, 3)
    for bias in (-1e6, 0.0, 1e6):
        out = F.linear(x, deferred(law), torch.full((4,), bias, dtype=torch.float64))
        assert_moments(out - bias, law.mean @ x[0], law.variance @ x[0].square())


# --- flipout ----------------------------------------------------------------------------------------------------------


def test_flipout_has_the_law_of_a_drawn_weight_for_each_example():
    x, law, bias = randn(2, 3), normal(4, 3), randn(4)
    draws = torch.stack([F.linear(x, deferred(law, flipout), bias) for _ in range(2500)])
    mean, variance, _ = linear_law(lambda w: F.linear(x, w, bias), law)
    assert_moments(draws, mean, variance)
    # a shared draw would have cov(y, y') = sum_i x_i x'_i s_oi^2; random signs take it away
    shared = (x[0] * x[1]) @ law.variance.T
    found, error = covariance(draws[:, 0], draws[:, 1])
    assert (found.abs() < 5 * error).all()
    assert (shared.abs() > 5 * error).any()


def test_flipout_flips_signs_of_inputs_and_of_outputs():
    # given the one draw D, noise_o = s_o sum_i x_i r_i D_oi: up to its sign it has 2^(inputs - 1) values ...
    x, law = randn(3).expand(400, 3), normal(4, 3)
    noise = F.linear(x, deferred(law, flipout)) - F.linear(x, law.mean)
    sizes, which = noise[:, 0].abs().mul(1e6).round().unique(return_inverse=True)
    assert len(sizes) == 4
    # ... and given the signs of the inputs, those of the outputs are independent coins
    for r in range(4):
        alike = (noise[which == r, 0] * noise[which == r, 1] > 0).double()
        assert (alike.mean() - 0.5).abs() < 5 * 0.5 / math.sqrt(len(alike))


@pytest.mark.parametrize("name", ["conv2d", "conv2d groups", "conv_transpose2d"])
def test_flipout_keeps_the_covariances_between_positions(name):
    function, x_shape, w_shape, options = LAYERS[name]
    x, law, n = randn(1, *x_shape), normal(*w_shape), 1500
    draws = torch.stack(
        [function(x, deferred(law, flipout), **options).flatten() for _ in range(n)]
    )
    _, _, expected = linear_law(lambda w: function(x, w, **options).flatten(), law)
    scale = expected.diagonal().sqrt().clamp_min(1e-6)
    difference = (torch.cov(draws.T) - expected) / scale / scale[:, None]
    # given |noise| the signs are the only randomness of an example: the standard error is below sqrt(3 / n)
    assert difference.abs().max() < 5 * math.sqrt(3 / n)


def test_flipout_of_a_vector_of_weights():
    x, law = randn(2, 3), normal(3)
    draws = torch.stack([x @ deferred(law, flipout) for _ in range(1500)])
    mean, variance, _ = linear_law(lambda w: x @ w, law)
    assert_moments(draws, mean, variance)
    assert (x[0] @ deferred(law, flipout)).shape == ()


# --- nothing is left behind -------------------------------------------------------------------------------------------


def test_torch_is_the_same_before_inside_and_after():
    before = (torch.nn.functional.linear, torch.conv2d, torch.matmul, torch.Tensor.__matmul__)

    def guide():
        inside = (torch.nn.functional.linear, torch.conv2d, torch.matmul, torch.Tensor.__matmul__)
        assert all(a is b for a, b in zip(before, inside, strict=True))
        return pyro.sample("w", normal(4, 3).to_event(2))

    F.linear(randn(2, 3), local_reparameterization(guide)())
    after = (torch.nn.functional.linear, torch.conv2d, torch.matmul, torch.Tensor.__matmul__)
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_outside_the_handler_the_guide_samples_as_usual():
    model = BayesianNet(
        nn.Linear(3, 2), {"*": priors.NormalJeffreys()}, likelihoods.Gaussian(0.1), num_data=5
    )
    guide = guides.MeanField(model)
    wrapped = local_reparameterization(guide, per_example_scales=True)
    ELBO(model, wrapped)(torch.randn(5, 3), torch.randn(5, 2))
    values = [node["value"] for _, node in poutine.trace(guide).get_trace().iter_stochastic_nodes()]
    assert len(values) == 4
    assert all(type(value) is torch.Tensor for value in values)
    inside = [
        node["value"] for _, node in poutine.trace(wrapped).get_trace().iter_stochastic_nodes()
    ]
    assert all(isinstance(value, DeferredSample) for value in inside)


def test_an_error_in_the_guide_takes_the_handler_away():
    def guide():
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        local_reparameterization(guide)()
    assert type(pyro.sample("w", normal(4, 3).to_event(2))) is torch.Tensor


def test_predictions_never_defer(monkeypatch):
    model = BayesianNet(
        nn.Linear(3, 2), priors.NormalJeffreys(), likelihoods.Categorical(), num_data=20
    )
    data = (torch.randn(20, 3), torch.randint(2, (20,)))
    posterior = fit(
        model, guides.MeanField(model), data, epochs=1, batch_size=10, progress=False
    ).posterior

    def refuse(*args):
        raise AssertionError("a weight was deferred")

    monkeypatch.setattr(DeferredSample, "create", staticmethod(refuse))
    assert posterior.predict(data[0], draws=3).mean.isfinite().all()
    assert posterior.sample(2)["weight"].shape == (2, 2, 3)


def test_copies_and_state():
    model = BayesianNet(nn.Linear(3, 2), priors.Normal(), likelihoods.Gaussian(0.1), num_data=5)
    guide = guides.MeanField(model)
    wrapped = local_reparameterization(guide, hide=["weight"])
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in guide.parameters()}
    other = copy.deepcopy(wrapped)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    assert not {id(p) for p in other.parameters()} & {id(p) for p in guide.parameters()}
    assert type(other()["weight"]) is torch.Tensor  # it hides what the original hides
    wrapped.load_state_dict(other.state_dict())
    assert list(wrapped.state_dict()) == [f"guide.{name}" for name in guide.state_dict()]
    for p, q in zip(guide.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert wrapped.double()()["weight"].dtype == torch.float64
