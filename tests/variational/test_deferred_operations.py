"""The operations that leave a deferred weight undrawn, and the layers that draw their output."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import conv2d as conv2d_imported_early
from torch.nn.functional import linear as linear_imported_early

from pyro_bnn.variational.reparameterization import (
    DeferredSample,
    ReparameterizationWarning,
    WeightReuseError,
)
from tests.variational.deferred_weights import (
    DRAWS,
    assert_moments,
    covariance,
    deferred,
    drawn_and_expected,
    linear_moments,
    log_normal,
    moments,
    normal,
    positions,
    randn,
    sample,
)

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
def test_modules_draw_their_output_from_deferred_weights_and_biases(name):
    make, x_shape = MODULES[name]
    module = make().double()
    x = randn(2, *x_shape)
    weight, bias = normal(*module.weight.shape), normal(*module.bias.shape)

    def output(inputs, w, b):
        return torch.func.functional_call(module, {"weight": w, "bias": b}, (inputs,))

    sites = sample({"weight": weight, "bias": bias})
    repeated = x.repeat(DRAWS // 4, *[1] * len(x_shape))
    out = output(repeated, sites["weight"], sites["bias"])
    mean, from_weight, _ = linear_moments(lambda w: output(x, w, bias.mean), weight)
    _, from_bias, _ = linear_moments(lambda b: output(x, weight.mean, b), bias)
    assert_moments(out.reshape(-1, *mean.shape), mean, from_weight + from_bias)


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
def test_every_way_to_write_a_dense_layer_draws_its_output(name):
    call, w_shape = CALLS[name]
    draws, mean, variance = drawn_and_expected(call, randn(2, 3), normal(*w_shape))
    assert_moments(draws, mean, variance)
    value, error = covariance(draws[:, 0], draws[:, 1])  # the examples have independent noise
    assert (value.abs() < 5 * error).all()


@positions
@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: torch.conv2d(x, w, None, 1, (1, 2)),
        lambda x, w: conv2d_imported_early(x, w, None, 1, (1, 2)),
        lambda x, w: torch.conv2d(input=x, weight=w, padding=(1, 2)),
    ],
    ids=["torch.conv2d", "imported early", "by keyword"],
)
def test_every_way_to_call_a_convolution_draws_its_output(call):
    draws, mean, variance = drawn_and_expected(
        call, randn(2, 2, 4, 5), normal(3, 2, 3, 5), draws=4000
    )
    assert_moments(draws, mean, variance)


def test_a_deferred_matrix_times_a_vector_draws_the_output():
    x, q = randn(3), normal(4, 3)
    draws = torch.stack([deferred(q) @ x for _ in range(2000)])
    mean, variance, _ = linear_moments(lambda w: w @ x, q)
    assert_moments(draws, mean, variance)


def test_a_bias_added_to_the_outputs_of_a_layer_is_drawn_for_each_example():
    q, z = normal(3), randn(4, 3)
    draws = (z.repeat(DRAWS, 1) + deferred(q)).reshape(DRAWS, 4, 3)
    assert_moments(draws, z + q.mean, q.variance.expand(4, 3))
    correlation = torch.corrcoef(draws.flatten(1).T) - torch.eye(12)
    assert correlation.abs().max() < 5 / math.sqrt(DRAWS)
    # one draw for all positions of an example
    single = (torch.zeros(1, 2, 3).double() + deferred(q))[0]
    assert (single[0] == single[1]).all()
    b = deferred(q)
    z + b
    with pytest.raises(WeightReuseError, match="'w'"):
        z + b


def test_a_shifted_weight_stays_deferred():
    q, shift = normal(2, 3), randn(2, 3)
    w = shift + deferred(q)
    assert isinstance(w, DeferredSample)
    torch.testing.assert_close(w.distribution.mean, q.loc + shift)
    torch.testing.assert_close(w.materialize() - shift, w.draw.value)


def test_the_square_root_of_a_log_normal_scale_stays_deferred():
    q = log_normal(1, 3)
    z = deferred(q, per_example_scales=True).sqrt()
    assert isinstance(z, DeferredSample)
    draws = z.distribution.sample((DRAWS,))
    expected = q.sample((DRAWS,)).sqrt()
    first, second = moments(draws), moments(expected)
    error = (first.mean_error.square() + second.mean_error.square()).sqrt()
    assert ((first.mean - second.mean).abs() < 5 * error).all()
    assert ((first.variance / second.variance).log().abs() < 0.2).all()
    torch.testing.assert_close(z.materialize(), z.draw.value.sqrt())


def test_scaled_and_transposed_samples_share_one_draw():
    w = deferred(normal(4, 3))
    derived = (w.T * -2 / 3).t()
    assert isinstance(derived, DeferredSample)
    torch.testing.assert_close(derived.distribution.stddev, w.distribution.stddev * 2 / 3)
    torch.testing.assert_close(derived.materialize(), w.materialize() * -2 / 3)


def test_scaling_to_a_larger_shape_materializes_the_weight():
    u = deferred(normal(4, 1))
    v = randn(1, 50)
    with pytest.warns(ReparameterizationWarning, match="mul needs the weight itself"):
        product = u * v
    assert not isinstance(product, DeferredSample)
    torch.testing.assert_close(product, u.materialize() * v)


def test_a_product_of_two_weights_materializes_both():
    # the rows of the input are weights here, not examples: they must not have noise of their own
    a, b = deferred(normal(4, 3)), sample({"v": normal(3)})["v"]
    with pytest.warns(ReparameterizationWarning, match="needs the weight itself"):
        product = a @ b
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(product, a.materialize() @ b.materialize())
    a, b = deferred(normal(4, 3)), sample({"v": normal(5, 3)})["v"]
    with pytest.warns(ReparameterizationWarning, match="weight alone is not deferred needs"):
        product = F.linear(a, b)
    torch.testing.assert_close(product, a.materialize() @ b.materialize().T)


def test_a_deferred_bias_beside_a_plain_weight_is_materialized():
    b = deferred(normal(4))
    x, w = randn(2, 3), randn(4, 3)
    with pytest.warns(ReparameterizationWarning, match="site 'w'"):
        out = F.linear(x, w, b)
    torch.testing.assert_close(out, F.linear(x, w, b.materialize()))
