"""The VGG-like network of the compression literature, for CIFAR-10."""

from __future__ import annotations

from typing import TypedDict, Unpack

from torch import Tensor, nn

from pyro_bnn import likelihoods, priors
from pyro_bnn.network import BayesianNet
from pyro_bnn.priors import Prior, PriorMapping

__all__ = ["VGG", "VGGSizes", "vgg"]

# the filters of the convolutions in each block
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_HIDDEN = 512
_NORM_EPS = 1e-3  # of the original code, unlike torch's default


class VGGSizes(TypedDict, total=False):
    """The arguments of :class:`VGG`."""

    width: float
    size: int
    channels: int
    outputs: int


class VGG(nn.Module):
    """Thirteen convolutions of 3 x 3 in five blocks, then two dense layers.

    Pooling of 2 follows each block; batch normalization and a ReLU follow every layer but the last.
    The network has 14,977,728 weights for CIFAR-10.

    x (batch, channels, size, size) -> logits (batch, outputs).

    Args:
        width: The factor k of all widths (64 to 512 filters, 512 hidden units).
        size: The height and width of the images, in pixels; a multiple of 32.
        channels: The number of channels of the images.
        outputs: The number of classes.

    Raises:
        ValueError: If ``size`` is not a multiple of 32, or ``width`` leaves a layer no filters.

    References:
        Zagoruyko (2015), http://torch.ch/blog/2015/07/30/cifar.html; the factor k as in Molchanov,
        Ashukha & Vetrov (2017), section 5.3.
    """

    def __init__(
        self, width: float = 1.0, size: int = 32, channels: int = 3, outputs: int = 10
    ) -> None:
        super().__init__()
        if size < 32 or size % 32:
            raise ValueError(
                "VGG: five poolings of 2 need images of 32 x 32 (or a multiple), "
                f"got {size} x {size}"
            )
        if not round(64 * width) >= 1:
            raise ValueError(
                f"VGG: a width of {width} leaves no filters in the first layer; use at least 1/64"
            )
        layers: list[nn.Module] = []
        for block in _BLOCKS:
            for base_filters in block:
                filters = round(base_filters * width)
                layers += _convolution(channels, filters)
                channels = filters
            layers.append(nn.MaxPool2d(2))
        hidden = round(_HIDDEN * width)
        self.features = nn.Sequential(*layers)
        self.fc1 = nn.Linear(channels * (size // 32) ** 2, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden, eps=_NORM_EPS)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        h = self.features(x).flatten(1)
        logits: Tensor = self.fc2(self.norm(self.fc1(h)).relu())
        return logits


def _convolution(channels: int, filters: int) -> list[nn.Module]:
    """Return a convolution without bias, which batch normalization would remove, and the rest."""
    return [
        nn.Conv2d(channels, filters, 3, padding=1, bias=False),
        nn.BatchNorm2d(filters, eps=_NORM_EPS),
        nn.ReLU(),
    ]


def vgg(
    num_data: int,
    prior: Prior | PriorMapping | None = None,
    net: nn.Module | None = None,
    **sizes: Unpack[VGGSizes],
) -> BayesianNet:
    """Return the VGG-like network as a Pyro model with a categorical likelihood.

    Kernels and weights have a group normal-Jeffreys prior by default; batch normalization and the
    bias of the last layer are learned.

    Group posteriors of a network this deep must start from a trained one: train :class:`VGG` as
    usual, with weight decay, and pass it as ``net``.

    Args:
        num_data: The number of examples in the data set.
        prior: The prior of kernels and weights. A mapping chooses per layer,
            ``{nn.Conv2d: ..., "fc1.weight": ...}``.
        net: A trained :class:`VGG`; it is copied.
        sizes: The arguments of :class:`VGG`, if there is no ``net``.

    Raises:
        ValueError: If both ``net`` and ``sizes`` are given.
    """
    if net is not None and sizes:
        raise ValueError(
            f"vgg: the network has its sizes already; leave out {', '.join(sizes)}, or net"
        )
    if prior is None:
        prior = priors.NormalJeffreys()
    return BayesianNet(net or VGG(**sizes), prior, likelihoods.Categorical(), num_data)
