"""Flipout: one draw of the weight, with random signs for each example."""

import math

import pytest
import torch
import torch.nn.functional as F

from pyro_bnn import (
    flipout,
)
from tests.variational.deferred_weights import (
    LAYERS,
    assert_moments,
    covariance,
    deferred,
    linear_moments,
    normal,
    randn,
)


def test_flipout_has_the_moments_of_weights_drawn_for_each_example():
    x, q, bias = randn(2, 3), normal(4, 3), randn(4)
    draws = torch.stack([F.linear(x, deferred(q, flipout), bias) for _ in range(2500)])
    mean, variance, _ = linear_moments(lambda w: F.linear(x, w, bias), q)
    assert_moments(draws, mean, variance)
    # a shared draw would have cov(y, y') = sum_i x_i x'_i s_oi^2; random signs take it away
    shared = (x[0] * x[1]) @ q.variance.T
    value, error = covariance(draws[:, 0], draws[:, 1])
    assert (value.abs() < 5 * error).all()
    assert (shared.abs() > 5 * error).any()


def test_flipout_flips_signs_of_inputs_and_of_outputs():
    # given the one draw D, noise_o = s_o sum_i x_i r_i D_oi has 2^(inputs - 1) absolute values ...
    x, q = randn(3).expand(400, 3), normal(4, 3)
    noise = F.linear(x, deferred(q, flipout)) - F.linear(x, q.mean)
    sizes, which = noise[:, 0].abs().mul(1e6).round().unique(return_inverse=True)
    assert len(sizes) == 4
    # ... and given the signs of the inputs, those of the outputs are independent coins
    for r in range(4):
        alike = (noise[which == r, 0] * noise[which == r, 1] > 0).double()
        assert (alike.mean() - 0.5).abs() < 5 * 0.5 / math.sqrt(len(alike))


@pytest.mark.parametrize("name", ["conv2d", "conv2d groups", "conv_transpose2d"])
def test_flipout_keeps_the_covariances_between_positions(name):
    function, x_shape, w_shape, options = LAYERS[name]
    x, q, n = randn(1, *x_shape), normal(*w_shape), 1500
    draws = torch.stack([function(x, deferred(q, flipout), **options).flatten() for _ in range(n)])
    _, _, expected = linear_moments(lambda w: function(x, w, **options).flatten(), q)
    scale = expected.diagonal().sqrt().clamp_min(1e-6)
    difference = (torch.cov(draws.T) - expected) / scale / scale[:, None]
    # given |noise|, only the signs of an example are random: the error is below sqrt(3 / n)
    assert difference.abs().max() < 5 * math.sqrt(3 / n)


def test_flipout_draws_the_output_of_a_vector_of_weights():
    x, q = randn(2, 3), normal(3)
    draws = torch.stack([x @ deferred(q, flipout) for _ in range(1500)])
    mean, variance, _ = linear_moments(lambda w: x @ w, q)
    assert_moments(draws, mean, variance)
    assert (x[0] @ deferred(q, flipout)).shape == ()
