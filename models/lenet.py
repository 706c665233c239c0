"""The two LeNets of the compression literature."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_bnn import likelihoods, priors
from pyro_bnn.network import BayesianNet

__all__ = ["LeNet5", "LeNet300100", "lenet_5", "lenet_300_100"]


class LeNet300100(nn.Module):
    """Two dense hidden layers of 300 and 100 units: 266,200 weights for MNIST.

    x (batch, ...) -> logits (batch, outputs).

    Args:
        inputs: pixels of an image.
        hidden: the widths of the hidden layers.
        outputs: classes.
    """

    def __init__(
        self, inputs: int = 784, hidden: tuple[int, int] = (300, 100), outputs: int = 10
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        h = F.relu(self.fc1(x.flatten(1)))
        h = F.relu(self.fc2(h))
        return self.fc3(h)


class LeNet5(nn.Module):
    """LeNet-5 as in Caffe: convolutions of 20 and 50 filters, 500 hidden units, a ReLU after every layer; 430,500
    weights for MNIST.

    x (batch, channels, size, size) or flattened (batch, channels * size * size) -> logits (batch, outputs).

    Args:
        size: of the square images.
        channels: of the images.
        filters: of the two convolutions.
        hidden: units of the dense layer.
        outputs: classes.
    """

    def __init__(
        self,
        size: int = 28,
        channels: int = 1,
        filters: tuple[int, int] = (20, 50),
        hidden: int = 500,
        outputs: int = 10,
    ) -> None:
        super().__init__()
        self.image = (channels, size, size)
        left = (
            (size - 4) // 2 - 4
        ) // 2  # two convolutions of 5 without padding, each followed by pooling of 2
        if left < 1:
            raise ValueError(
                f"LeNet5: images of {size} x {size} pixels vanish in two convolutions of 5 x 5; use size >= 16"
            )
        self.conv1 = nn.Conv2d(channels, filters[0], 5)
        self.conv2 = nn.Conv2d(filters[0], filters[1], 5)
        self.fc1 = nn.Linear(filters[1] * left * left, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        h = F.max_pool2d(F.relu(self.conv1(x.reshape(-1, *self.image))), 2)
        h = F.max_pool2d(F.relu(self.conv2(h)), 2)
        h = F.relu(self.fc1(h.flatten(1)))
        return self.fc2(h)


def lenet_300_100(num_data: int, prior: Any = None, **sizes: Any) -> BayesianNet:
    """Return LeNet-300-100 as a Pyro model: a log-uniform prior (or another) on the weights, biases learned,
    categorical likelihood.

    The means start at N(0, 0.01^2), as in the original Sparse VD code.

    Args:
        num_data: the number of examples in the data set.
        prior: of the weights; a mapping chooses per layer, ``{"fc1.weight": ..., "fc2.weight": ..., "fc3.weight":
            ...}``.
        sizes: those of :class:`LeNet300100`.
    """
    chosen = priors.LogUniform() if prior is None else prior
    by_layer: dict[Any, Any] = {"fc1.weight": chosen, "fc2.weight": chosen, "fc3.weight": chosen}
    net = _small_weights(LeNet300100(**sizes))
    return BayesianNet(
        net, prior if isinstance(prior, dict) else by_layer, likelihoods.Categorical(), num_data
    )


def lenet_5(num_data: int, prior: Any = None, **sizes: Any) -> BayesianNet:
    """Return LeNet-5 as a Pyro model: a log-uniform prior (or another) on kernels and weights, biases learned,
    categorical likelihood.

    Args:
        num_data: the number of examples in the data set.
        prior: of the weights; a mapping chooses per layer.
        sizes: those of :class:`LeNet5`.
    """
    chosen = priors.LogUniform() if prior is None else prior
    by_layer: dict[Any, Any] = {
        "conv1.weight": chosen,
        "conv2.weight": chosen,
        "fc1.weight": chosen,
        "fc2.weight": chosen,
    }
    net = _small_weights(LeNet5(**sizes))
    return BayesianNet(
        net, prior if isinstance(prior, dict) else by_layer, likelihoods.Categorical(), num_data
    )


@torch.no_grad()
def _small_weights(net: nn.Module, scale: float = 0.01) -> nn.Module:
    """Start weights at N(0, scale^2) and biases at zero."""
    for parameter in net.parameters():
        parameter.normal_(0.0, scale) if parameter.dim() > 1 else parameter.zero_()
    return net
