"""Multilayer perceptrons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from pyro_bnn import likelihoods, priors
from pyro_bnn.network import BayesianNet

__all__ = ["MLP", "mlp_classifier", "mlp_regressor"]


class MLP(nn.Sequential):
    """Dense layers with an activation between them; inputs of any shape are flattened.

    x (batch, ...) -> (batch, outputs).

    Args:
        inputs: the number of inputs.
        hidden: the widths of the hidden layers.
        outputs: the number of outputs.
        activation: the module between the layers.
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
        super().__init__(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return super().forward(x)


def mlp_classifier(num_data: int, prior: Any = None, **sizes: Any) -> BayesianNet:
    """Return an MLP for classes: standard normal weights (or another prior), biases learned, categorical likelihood.

    Args:
        num_data: the number of examples in the data set.
        prior: of the weights.
        sizes: those of :class:`MLP`.
    """
    return BayesianNet(
        MLP(**sizes), prior or priors.Normal(1.0), likelihoods.Categorical(), num_data
    )


def mlp_regressor(num_data: int, prior: Any = None, noise: Any = None, **sizes: Any) -> BayesianNet:
    """Return an MLP for real numbers: standard normal weights and biases, tanh units, Gaussian likelihood.

    Args:
        num_data: the number of examples in the data set.
        prior: of weights and biases.
        noise: as the scale of ``likelihoods.Gaussian``: known, learned (``None``) or inferred.
        sizes: those of :class:`MLP`.
    """
    net = MLP(**{"hidden": (50,), "outputs": 1, "activation": nn.Tanh, **sizes})
    return BayesianNet(
        net, {"*": prior or priors.Normal(1.0)}, likelihoods.Gaussian(noise), num_data
    )
