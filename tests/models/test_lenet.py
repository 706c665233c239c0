"""The LeNets have their published sizes, priors and initial weights."""

import math

import pytest
import torch

from pyro_bnn import ELBO, local_reparameterization, priors
from pyro_bnn.guides import MeanField
from pyro_bnn.models import (
    MLP,
    LeNet5,
    LeNet300100,
    lenet_5,
    lenet_300_100,
)


@pytest.mark.parametrize(
    ("net", "weights"),
    [(LeNet300100(), [235_200, 30_000, 1_000]), (LeNet5(), [500, 25_000, 400_000, 5_000])],
)
def test_the_lenets_have_their_published_sizes(net, weights):
    assert [p.numel() for p in net.parameters() if p.dim() > 1] == weights
    assert sum(weights) == {3: 266_200, 4: 430_500}[len(weights)]


@pytest.mark.parametrize("net", [LeNet300100(), LeNet5(), MLP()])
@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (3, 28, 28), (3, 784)])
def test_images_may_have_any_shape(net, shape):
    x = torch.randn(3, 784)
    assert net(x.reshape(shape)).shape == (3, 10)
    assert torch.allclose(net(x.reshape(shape)), net(x))


def test_sizes_of_lenets_are_arguments():
    assert LeNet300100(inputs=64, hidden=(30, 20), outputs=3)(torch.randn(2, 8, 8)).shape == (2, 3)
    net = LeNet5(size=32, channels=3, filters=(6, 16), hidden=120, outputs=4)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 4)
    assert net.fc1.in_features == 16 * 5 * 5
    assert LeNet5(size=16)(torch.randn(2, 256)).shape == (2, 10)
    with pytest.raises(ValueError, match="15 x 15 pixels vanish"):
        LeNet5(size=15)


def test_the_lenets_start_as_in_sparse_variational_dropout():
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


def test_a_prior_is_for_all_layers_and_a_mapping_for_each():
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
