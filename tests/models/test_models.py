"""The networks have the sizes of the literature, and every model runs through prior, loss and prediction."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from scipy import stats
from torch import nn

from pyro_bnn import ELBO, local_reparameterization, priors
from pyro_bnn.guides import MeanField
from pyro_bnn.models import (
    MLP,
    LeNet5,
    LeNet300100,
    lenet_5,
    lenet_300_100,
    linear_regression,
    mlp_classifier,
    mlp_regression,
    mlp_regressor,
)


def count(net):
    return sum(p.numel() for p in net.parameters() if p.dim() > 1)


@pytest.mark.parametrize(
    ("net", "weights"),
    [(LeNet300100(), [235_200, 30_000, 1_000]), (LeNet5(), [500, 25_000, 400_000, 5_000])],
)
def test_the_lenets_have_their_published_sizes(net, weights):
    assert [p.numel() for p in net.parameters() if p.dim() > 1] == weights
    assert sum(weights) == {3: 266_200, 4: 430_500}[len(weights)]


@pytest.mark.parametrize("net", [LeNet300100(), LeNet5(), MLP()])
@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (3, 28, 28), (3, 784)])
def test_images_come_in_any_shape(net, shape):
    x = torch.randn(3, 784)
    assert net(x.reshape(shape)).shape == (3, 10)
    assert torch.allclose(net(x.reshape(shape)), net(x))


def test_sizes_are_arguments():
    assert LeNet300100(inputs=64, hidden=(30, 20), outputs=3)(torch.randn(2, 8, 8)).shape == (2, 3)
    net = LeNet5(size=32, channels=3, filters=(6, 16), hidden=120, outputs=4)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 4)
    assert net.fc1.in_features == 16 * 5 * 5
    assert LeNet5(size=16)(torch.randn(2, 256)).shape == (2, 10)
    with pytest.raises(ValueError, match="15 x 15 pixels vanish"):
        LeNet5(size=15)
    net = MLP(inputs=5, hidden=(7, 6), outputs=2, activation=nn.Tanh)
    assert [type(layer).__name__ for layer in net] == [
        "Flatten",
        "Linear",
        "Tanh",
        "Linear",
        "Tanh",
        "Linear",
    ]
    assert MLP(inputs=5, hidden=(), outputs=2)(torch.randn(3, 5)).shape == (3, 2)


def test_the_lenets_are_the_sparse_variational_dropout_models():
    for model, inputs in ((lenet_300_100(num_data=60_000), 784), (lenet_5(num_data=60_000), 784)):
        weights = model.weights()
        assert all(isinstance(model.prior_of(name), priors.LogUniform) for name in weights)
        assert sum(w.numel() for w in weights.values()) in (266_200, 430_500)
        assert all("bias" in name for name in model.free_parameters())
        large = torch.cat([w.flatten() for w in weights.values()])
        assert abs(large.std().item() - 0.01) < 5 * 0.01 / math.sqrt(2 * large.numel())
        assert all(not p.any() for p in model.free_parameters().values())
        terms = ELBO(model, local_reparameterization(MeanField(model))).terms
        if len(weights) == 3:
            data = terms(torch.randn(4, inputs), torch.tensor([0, 1, 2, 3])).data
            assert data.item() == pytest.approx(60_000 * math.log(10), rel=0.2)


def test_priors_are_chosen_for_all_layers_or_one_by_one():
    model = lenet_300_100(10, prior=priors.Horseshoe(), inputs=64)
    assert all(isinstance(model.prior_of(name), priors.Horseshoe) for name in model.names)
    assert model.weights()["fc1.weight"].shape == (300, 64)
    model = lenet_5(
        10, prior={"fc1.weight": priors.Normal(), "conv*": priors.LogUniform()}, size=16
    )
    assert set(model.names) == {
        "conv1.weight",
        "conv1.bias",
        "conv2.weight",
        "conv2.bias",
        "fc1.weight",
    }


def test_mlp_models():
    model = mlp_classifier(20, inputs=4, hidden=(8,), outputs=3)
    assert model.names == ["1.weight", "3.weight"]
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    assert ELBO(model, local_reparameterization(MeanField(model)))(x, y).isfinite()
    model = mlp_regressor(20, inputs=4, noise=dist.HalfNormal(1.0))
    assert model.names == ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert not model.free_parameters()
    assert model(x).shape == (20, 1)
    assert ELBO(model, local_reparameterization(MeanField(model)))(x, torch.randn(20)).isfinite()
    assert list(mlp_regressor(20, inputs=4).free_parameters()) == ["likelihood.log_scale"]


REGRESSIONS = {
    "linear": linear_regression(num_data=12, inputs=2),
    "mlp": mlp_regression(num_data=12, inputs=2),
    "mlp with known noise": mlp_regression(num_data=12, inputs=2, noise=0.1),
}


@pytest.mark.parametrize("model", REGRESSIONS.values(), ids=REGRESSIONS)
def test_regression_programs_run_with_and_without_data(model):
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
    # y = w x + b + noise: variance s^2 (|x|^2 + 1) + noise^2. The Kolmogorov-Smirnov test fails falsely once in 1e4,
    # the test of the variance (5 standard errors, the variance of a sample variance being 2 v^2 / n) once in 2e6.
    model = linear_regression(num_data=1, inputs=2, prior_scale=1.5, noise=0.3)
    w, b = torch.tensor([0.5, 2.0]), torch.tensor(-1.0)
    for x in (torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -2.0]])):
        given = poutine.condition(model, {"weight": w, "bias": b})(x)
        assert torch.allclose(given, x @ w + b)
        draws = torch.stack(
            [poutine.trace(model).get_trace(x).nodes["y"]["value"] for _ in range(400)]
        ).flatten()
        variance = 1.5**2 * (float((x**2).sum()) + 1) + 0.3**2
        assert abs(float((draws**2).mean()) / variance - 1) < 5 * math.sqrt(2 / 400)
        assert stats.kstest(draws.numpy(), stats.norm(0, math.sqrt(variance)).cdf).pvalue > 1e-4


@pytest.mark.parametrize("hidden", [4, 64])
def test_the_functions_of_mlp_regression_have_one_scale_whatever_the_width(hidden):
    model = mlp_regression(num_data=1, hidden=hidden, noise=1e-3)
    x = torch.zeros(1, 1)
    f = torch.stack([model(x) for _ in range(600)]).flatten()
    # Var f(0) = H (4 / H) E max(0, b)^2 + 1 with b ~ N(0, 1), whose positive half has the second moment 1/2
    expected = 4 * 0.5 + 1
    assert f.mean().abs() < 5 * f.std() / math.sqrt(600)
    square = f.double() ** 2
    assert abs(float(square.mean()) - expected) < 5 * float(square.std()) / math.sqrt(600)
