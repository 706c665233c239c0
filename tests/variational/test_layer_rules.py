"""Outputs of layers with deferred Gaussian weights, against their exact distribution."""

import math

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bnn import (
    ELBO,
    BayesianNet,
    flipout,
    guides,
    likelihoods,
    local_reparameterization,
    priors,
)
from pyro_bnn.distributions import BernoulliDropout, GaussianDropout, LogUniform
from tests.variational.deferred_weights import (
    DRAWS,
    LAYERS,
    assert_moments,
    channels,
    deferred,
    linear_moments,
    moments,
    normal,
    positions,
    randn,
    sample,
)


@positions
@pytest.mark.parametrize("bias", ["none", "tensor", "deferred"])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_of_every_layer_have_the_exact_marginal_distribution(name, bias):
    function, x_shape, w_shape, options = LAYERS[name]
    x, q = randn(2, *x_shape), normal(*w_shape)
    bias_distribution = normal(channels(name, w_shape, options))
    b = None
    if bias == "tensor":
        b = bias_distribution.mean
    elif bias == "deferred":
        b = sample({"b": bias_distribution})["b"]
    plain = None if bias == "none" else bias_distribution.mean
    out = function(x.repeat(5000, *[1] * len(x_shape)), deferred(q), b, **options)
    mean, variance, _ = linear_moments(lambda w: function(x, w, plain, **options), q)
    if bias == "deferred":
        axis = -1 if name.startswith("linear") else 1
        variance = variance + bias_distribution.variance.reshape(
            [-1 if i == axis % mean.dim() else 1 for i in range(mean.dim())]
        )
    assert_moments(out.reshape(5000, *mean.shape), mean, variance)


@pytest.mark.parametrize("name", ["linear", "conv2d"])
@positions
def test_outputs_have_the_moments_of_layers_with_drawn_weights(name):
    function, x_shape, w_shape, options = LAYERS[name]
    x, q, n = randn(1, *x_shape), normal(*w_shape), 100_000
    local = function(x.expand(n, *x_shape), deferred(q), **options)
    # the convolution of a draw of the weight is that of a weight with all draws as channels
    weights = q.sample((n,)).flatten(0, 1)
    drawn = function(x, weights, **options).reshape(n, *local.shape[1:])
    first, second = moments(local), moments(drawn)
    error = (first.mean_error.square() + second.mean_error.square()).sqrt()
    assert ((first.mean - second.mean).abs() < 5 * error).all()
    error = (first.variance_error.square() + second.variance_error.square()).sqrt()
    assert ((first.variance - second.variance).abs() < 5 * error).all()


@positions
def test_positions_of_a_convolution_are_uncorrelated_unlike_with_drawn_weights():
    x, q = randn(1, 2, 5, 6), normal(2, 2, 3, 5)
    call = lambda w: F.conv2d(x, w, padding=1).flatten()  # noqa: E731
    _, _, expected = linear_moments(call, q)
    scale = expected.diagonal().sqrt()
    assert (
        expected / scale / scale[:, None] - torch.eye(len(scale))
    ).abs().max() > 0.2  # the surrogate drops this
    local = F.conv2d(x.expand(DRAWS, -1, -1, -1), deferred(q), padding=1).flatten(1)
    correlation = torch.corrcoef(local.T) - torch.eye(len(scale))
    assert correlation.abs().max() < 5 / math.sqrt(DRAWS)
    # drawn weights have it; a standard error of a correlation is at most sqrt(2 / n)
    drawn = torch.func.vmap(call)(q.sample((DRAWS,)))
    assert ((torch.cov(drawn.T) - expected) / scale / scale[:, None]).abs().max() < 5 * math.sqrt(
        2 / DRAWS
    )


@positions
@pytest.mark.parametrize("name", LAYERS)
def test_an_input_without_a_batch_is_one_example(name):
    function, x_shape, w_shape, options = LAYERS[name]
    x, q = randn(*x_shape), normal(*w_shape)
    draws = torch.stack([function(x, deferred(q), **options) for _ in range(400)])
    mean, variance, _ = linear_moments(lambda w: function(x, w, **options), q)
    assert_moments(draws, mean, variance)
    assert function(x, deferred(q, flipout), **options).shape == mean.shape


def test_the_noise_has_the_exact_scale_in_double_precision():
    # two passes with the same noise and different scales: the ratio of their noise is known exactly
    x, q = randn(5, 3), normal(4, 3)
    outputs = []
    for factor in (1.0, 2.0):
        torch.manual_seed(1)
        outputs.append(F.linear(x, deferred(dist.Normal(q.mean, q.stddev * factor))))
    mean, variance, _ = linear_moments(lambda w: F.linear(x, w), q)
    first, second = (out - mean for out in outputs)
    assert first.dtype == torch.float64
    # the number inside the root, 1e-8, is all that keeps the ratio from being 2
    expected = ((4 * variance + 1e-8) / (variance + 1e-8)).sqrt()
    torch.testing.assert_close(second / first, expected, rtol=1e-9, atol=0)


def test_a_bias_never_enters_the_variance():
    q, x = normal(4, 3), randn(3).expand(DRAWS, 3)
    for bias in (-1e6, 0.0, 1e6):
        out = F.linear(x, deferred(q), torch.full((4,), bias, dtype=torch.float64))
        assert_moments(out - bias, q.mean @ x[0], q.variance @ x[0].square())


def test_gaussian_dropout_keeps_the_noise_of_masked_means():
    theta, log_alpha, keep = randn(4, 3), randn(4, 3), torch.rand(4, 3) < 0.5
    q = GaussianDropout(theta, log_alpha, keep)
    x = randn(2, 3)
    out = F.linear(x.repeat(DRAWS, 1), deferred(q)).reshape(DRAWS, 2, 4)
    assert_moments(out, x @ (theta * keep).T, x.square() @ (log_alpha.exp() * theta.square()).T)


def test_gaussian_dropout_may_share_one_alpha():
    theta, log_alpha = randn(4, 3), torch.tensor([[-0.5]]).double()
    x = randn(2, 3)
    q = GaussianDropout(theta, log_alpha)
    out = (x.repeat(DRAWS, 1) @ deferred(q).T).reshape(DRAWS, 2, 4)
    assert_moments(out, x @ theta.T, x.square() @ (math.exp(-0.5) * theta.square()).T)


def test_a_distribution_without_a_rule_is_an_error():
    from pyro_bnn.variational.reparameterization import draw_output

    with pytest.raises(NotImplementedError, match="got LogUniform, which has no rule"):
        draw_output(LogUniform((2, 2)), None, torch.zeros(1))


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
def test_masks_have_the_dtype_of_half_precision_weights(dtype):
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
