"""Multilayer perceptrons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_bnn import likelihoods, priors
from pyro_bnn.network import BayesianNet
from pyro_bnn.priors import Prior, PriorMapping

__all__ = ["MLP", "MLPSizes", "mlp_classifier", "mlp_regressor"]


class MLPSizes(TypedDict, total=False):
    """The arguments of :class:`MLP`."""

    inputs: int
    hidden: Sequence[int]
    outputs: int
    activation: Callable[[], nn.Module]


class MLP(nn.Sequential):
    """Dense layers with an activation between them; inputs of any shape are flattened.

    x (batch, ...) -> (batch, outputs).

    Args:
        inputs: The number of inputs.
        hidden: The widths of the hidden layers.
        outputs: The number of outputs.
        activation: Makes the module between two layers.
    """

    def __init__(
        self,
        inputs: int = 784,
        hidden: Sequence[int] = (100,),
        outputs: int = 10,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        widths = [inputs, *hidden, outputs]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), activation()]
        super().__init__(*layers[:-1])  # no activation after the last layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        for layer in self:
            x = layer(x)
        return x


def mlp_classifier(
    num_data: int, prior: Prior | PriorMapping | None = None, **sizes: Unpack[MLPSizes]
) -> BayesianNet:
    """Return a multilayer perceptron for classes, as a Pyro model with a categorical likelihood.

    The weights are standard normal by default; biases are learned.

    Args:
        num_data: The number of examples in the data set.
        prior: The prior of the weights. A mapping chooses per layer.
        sizes: The arguments of :class:`MLP`.
    """
    if prior is None:
        prior = priors.Normal(1.0)
    return BayesianNet(MLP(**sizes), prior, likelihoods.Categorical(), num_data)


def mlp_regressor(
    num_data: int,
    prior: Prior | None = None,
    noise: float | dist.TorchDistribution | None = None,
    **sizes: Unpack[MLPSizes],
) -> BayesianNet:
    """Return a multilayer perceptron for real numbers, as a Pyro model with a Gaussian likelihood.

    Weights and biases are standard normal by default. Unless ``sizes`` says otherwise there is one
    hidden layer of 50 tanh units and one output.

    Args:
        num_data: The number of examples in the data set.
        prior: The prior of weights and biases.
        noise: The ``scale`` of :class:`~pyro_bnn.likelihoods.Gaussian`: known, learned (``None``)
            or inferred.
        sizes: The arguments of :class:`MLP`.
    """
    chosen: MLPSizes = {"hidden": (50,), "outputs": 1, "activation": nn.Tanh}
    chosen.update(sizes)
    if prior is None:
        prior = priors.Normal(1.0)
    return BayesianNet(MLP(**chosen), {"*": prior}, likelihoods.Gaussian(noise), num_data)
