"""The multilayer perceptrons for classes and for real numbers."""

import pyro.distributions as dist
import torch
from torch import nn

from pyro_bnn import ELBO, local_reparameterization
from pyro_bnn.guides import MeanField
from pyro_bnn.models import MLP, mlp_classifier, mlp_regressor


def test_sizes_and_activation_are_arguments():
    net = MLP(inputs=5, hidden=(7, 6), outputs=2, activation=nn.Tanh)
    kinds = [type(layer).__name__ for layer in net]
    assert kinds == ["Flatten", "Linear", "Tanh", "Linear", "Tanh", "Linear"]
    assert MLP(inputs=5, hidden=(), outputs=2)(torch.randn(3, 5)).shape == (3, 2)


def test_the_classifier_has_uncertain_weights_and_learned_biases():
    model = mlp_classifier(20, inputs=4, hidden=(8,), outputs=3)
    assert model.names == ["1.weight", "3.weight"]
    assert list(model.free_parameters()) == ["net.1.bias", "net.3.bias"]
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    assert ELBO(model, local_reparameterization(MeanField(model)))(x, y).isfinite()


def test_the_regressor_has_uncertain_weights_and_biases():
    x, y = torch.randn(20, 4), torch.randn(20)
    model = mlp_regressor(20, inputs=4, noise=dist.HalfNormal(1.0))
    assert model.names == ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert not model.free_parameters()
    assert model(x).shape == (20, 1)
    assert ELBO(model, local_reparameterization(MeanField(model)))(x, y).isfinite()


def test_the_noise_of_the_regressor_is_learned_by_default():
    assert list(mlp_regressor(20, inputs=4).free_parameters()) == ["likelihood.log_scale"]
