"""The regression programs written by hand: data, minibatches and prior predictives."""

import math

import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from scipy import stats

from pyro_bnn import ELBO
from pyro_bnn.guides import MeanField
from pyro_bnn.models import (
    hidden_layer_regression,
    linear_regression,
)

REGRESSIONS = {
    "linear": linear_regression(num_data=12, inputs=2),
    "mlp": hidden_layer_regression(num_data=12, inputs=2),
    "mlp with known noise": hidden_layer_regression(num_data=12, inputs=2, noise=0.1),
}


@pytest.mark.parametrize("model", REGRESSIONS.values(), ids=REGRESSIONS)
def test_programs_run_with_and_without_data_and_scale_minibatches(model):
    x, y = torch.randn(6, 2), torch.randn(6)
    assert model(x, y).shape == (6,)
    assert poutine.trace(model).get_trace(x).nodes["y"]["value"].shape == (6,)
    assert Predictive(model, num_samples=4)(x)["y"].shape == (4, 6)
    site = poutine.trace(model).get_trace(x, y).nodes["y"]
    assert site["scale"] == 2.0  # N / B
    assert poutine.trace(model).get_trace(x).nodes["y"]["scale"] == 1.0
    loss = ELBO(model, MeanField(model, x, y))
    loss(x, y).backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_the_prior_predictive_of_linear_regression_is_gaussian():
    # y = w x + b + noise has the variance s^2 (|x|^2 + 1) + noise^2. The Kolmogorov-Smirnov test
    # fails falsely once in 1e4, the test of the variance (5 standard errors, where the variance of
    # a sample variance is 2 v^2 / n) once in 2e6.
    model = linear_regression(num_data=1, inputs=2, prior_scale=1.5, noise=0.3)
    w, b = torch.tensor([0.5, 2.0]), torch.tensor(-1.0)
    for x in (torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -2.0]])):
        mean = poutine.condition(model, {"weight": w, "bias": b})(x)
        assert torch.allclose(mean, x @ w + b)
        draws = torch.stack(
            [poutine.trace(model).get_trace(x).nodes["y"]["value"] for _ in range(400)]
        ).flatten()
        variance = 1.5**2 * (float((x**2).sum()) + 1) + 0.3**2
        assert abs(float((draws**2).mean()) / variance - 1) < 5 * math.sqrt(2 / 400)
        assert stats.kstest(draws.numpy(), stats.norm(0, math.sqrt(variance)).cdf).pvalue > 1e-4


@pytest.mark.parametrize("hidden", [4, 64])
def test_functions_under_the_prior_have_one_scale_whatever_the_width(hidden):
    model = hidden_layer_regression(num_data=1, hidden=hidden, noise=1e-3)
    x = torch.zeros(1, 1)
    f = torch.stack([model(x) for _ in range(600)]).flatten()
    # Var f(0) = H (4 / H) E max(0, b)^2 + 1 with b ~ N(0, 1), whose positive half has the second
    # moment 1/2
    expected = 4 * 0.5 + 1
    assert f.mean().abs() < 5 * f.std() / math.sqrt(600)
    square = f.double() ** 2
    assert abs(float(square.mean()) - expected) < 5 * float(square.std()) / math.sqrt(600)
