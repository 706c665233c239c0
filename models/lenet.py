"""The two LeNets of the compression literature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_bnn import likelihoods, priors
from pyro_bnn.network import BayesianNet
from pyro_bnn.priors import Prior, PriorMapping

__all__ = ["LeNet5", "LeNet5Sizes", "LeNet300100", "LeNet300100Sizes", "lenet_5", "lenet_300_100"]


class LeNet300100Sizes(TypedDict, total=False):
    """The arguments of :class:`LeNet300100`."""

    inputs: int
    hidden: tuple[int, int]
    outputs: int


class LeNet5Sizes(TypedDict, total=False):
    """The arguments of :class:`LeNet5`."""

    size: int
    channels: int
    filters: tuple[int, int]
    hidden: int
    outputs: int


class LeNet300100(nn.Module):
    """LeNet-300-100: two dense hidden layers of 300 and 100 units; 266,200 weights for MNIST.

    x (batch, ...) -> logits (batch, outputs).

    Args:
        inputs: The number of pixels of an image.
        hidden: The widths of the hidden layers.
        outputs: The number of classes.
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
        logits: Tensor = self.fc3(h)
        return logits


class LeNet5(nn.Module):
    """LeNet-5 as in Caffe: convolutions of 20 and 50 filters, then 500 hidden units.

    A ReLU follows every layer but the last. The network has 430,500 weights for MNIST.

    x (batch, channels, size, size) or flattened (batch, channels * size * size) -> logits (batch,
    outputs).

    Args:
        size: The height and width of the images, in pixels; at least 16.
        channels: The number of channels of the images.
        filters: The numbers of filters of the two convolutions.
        hidden: The number of units of the dense hidden layer.
        outputs: The number of classes.

    Raises:
        ValueError: If the images are too small for two convolutions.
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
        # two convolutions of 5 without padding, each followed by pooling of 2
        final_size = ((size - 4) // 2 - 4) // 2
        if final_size < 1:
            raise ValueError(
                f"LeNet5: images of {size} x {size} pixels vanish in two convolutions of 5 x 5; "
                "use size >= 16"
            )
        self.image_shape = (channels, size, size)
        self.conv1 = nn.Conv2d(channels, filters[0], 5)
        self.conv2 = nn.Conv2d(filters[0], filters[1], 5)
        self.fc1 = nn.Linear(filters[1] * final_size**2, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        h = F.max_pool2d(F.relu(self.conv1(x.reshape(-1, *self.image_shape))), 2)
        h = F.max_pool2d(F.relu(self.conv2(h)), 2)
        h = F.relu(self.fc1(h.flatten(1)))
        logits: Tensor = self.fc2(h)
        return logits


def lenet_300_100(
    num_data: int, prior: Prior | PriorMapping | None = None, **sizes: Unpack[LeNet300100Sizes]
) -> BayesianNet:
    """Return LeNet-300-100 as a Pyro model with a categorical likelihood.

    The weights have a log-uniform prior by default; biases are learned. Posterior means start at
    draws from N(0, 0.01^2), as in the original code of Sparse Variational Dropout.

    Args:
        num_data: The number of examples in the data set.
        prior: The prior of the weights. A mapping chooses per layer,
            ``{"fc1.weight": ..., "fc2.weight": ..., "fc3.weight": ...}``.
        sizes: The arguments of :class:`LeNet300100`.
    """
    if prior is None:
        prior = priors.LogUniform()
    if not isinstance(prior, Mapping):
        prior = {"fc1.weight": prior, "fc2.weight": prior, "fc3.weight": prior}
    net = LeNet300100(**sizes)
    _start_small(net)
    return BayesianNet(net, prior, likelihoods.Categorical(), num_data)


def lenet_5(
    num_data: int, prior: Prior | PriorMapping | None = None, **sizes: Unpack[LeNet5Sizes]
) -> BayesianNet:
    """Return LeNet-5 as a Pyro model with a categorical likelihood.

    Kernels and weights have a log-uniform prior by default; biases are learned. Posterior means
    start as in :func:`lenet_300_100`.

    Args:
        num_data: The number of examples in the data set.
        prior: The prior of kernels and weights. A mapping chooses per layer.
        sizes: The arguments of :class:`LeNet5`.
    """
    if prior is None:
        prior = priors.LogUniform()
    if not isinstance(prior, Mapping):
        prior = {
            "conv1.weight": prior,
            "conv2.weight": prior,
            "fc1.weight": prior,
            "fc2.weight": prior,
        }
    net = LeNet5(**sizes)
    _start_small(net)
    return BayesianNet(net, prior, likelihoods.Categorical(), num_data)


@torch.no_grad()
def _start_small(net: nn.Module, scale: float = 0.01) -> None:
    """Draw the weights from N(0, scale^2) and set the biases to zero."""
    for parameter in net.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, scale)
        else:
            parameter.zero_()
