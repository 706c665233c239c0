"""The VGG-like network of the compression literature, for CIFAR-10."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyro_bnn import likelihoods, priors
from pyro_bnn.network import BayesianNet

__all__ = ["VGG", "vgg"]

_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Thirteen convolutions of 3 x 3 in five blocks, each followed by pooling of 2, and two dense layers; batch
    normalisation and a ReLU after every layer but the last. 14,977,728 weights for CIFAR-10.

    x (batch, channels, size, size) -> logits (batch, outputs).

    Args:
        width: k, the factor of all widths (64 to 512 filters, 512 hidden units).
        size: of the square images, a multiple of 32.
        channels: of the images.
        outputs: classes.

    Raises:
        ValueError: images of another size; a width that leaves a layer without filters.

    Source: Zagoruyko (2015), http://torch.ch/blog/2015/07/30/cifar.html; widths k as in Molchanov, Ashukha & Vetrov
    (2017), section 5.3.
    """

    def __init__(
        self, width: float = 1.0, size: int = 32, channels: int = 3, outputs: int = 10
    ) -> None:
        super().__init__()
        if size < 32 or size % 32:
            raise ValueError(
                f"VGG: five poolings of 2 need images of 32 x 32 (or a multiple), got {size} x {size}"
            )
        if not round(64 * width) >= 1:
            raise ValueError(
                f"VGG: a width of {width} leaves no filters in the first layer; use at least 1/64"
            )
        layers: list[nn.Module] = []
        for block in _BLOCKS:
            for filters in block:
                scaled = round(filters * width)
                # no bias: batch normalisation would take it off again
                layers += [
                    nn.Conv2d(channels, scaled, 3, padding=1, bias=False),
                    _norm(nn.BatchNorm2d, scaled),
                ]
                layers.append(nn.ReLU())
                channels = scaled
            layers.append(nn.MaxPool2d(2))
        hidden = round(512 * width)
        self.features = nn.Sequential(*layers)
        self.fc1 = nn.Linear(channels * (size // 32) ** 2, hidden, bias=False)
        self.norm = _norm(nn.BatchNorm1d, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        h = self.features(x).flatten(1)
        return self.fc2(self.norm(self.fc1(h)).relu())


def _norm(kind: type[nn.Module], width: int) -> nn.Module:
    return kind(width, eps=1e-3)


def vgg(
    num_data: int, prior: Any = None, net: nn.Module | None = None, **sizes: Any
) -> BayesianNet:
    """Return the VGG-like network as a Pyro model: a group normal-Jeffreys prior (or another) on kernels and weights,
    batch normalisation and the last bias learned, categorical likelihood.

    Group posteriors of a network this deep need a trained one to start from: train :class:`VGG` as usual, with weight
    decay, and hand it over as ``net``.

    Args:
        num_data: the number of examples in the data set.
        prior: of the weights; a mapping chooses per layer, ``{nn.Conv2d: ..., "fc1.weight": ...}``.
        net: a trained :class:`VGG`; it is copied.
        sizes: those of :class:`VGG`, if there is no ``net``.

    Raises:
        ValueError: sizes as well as a network that has its own.
    """
    if net is not None and sizes:
        raise ValueError(
            f"vgg: the network has its sizes already; leave out {', '.join(sizes)}, or net"
        )
    chosen = priors.NormalJeffreys() if prior is None else prior
    return BayesianNet(
        VGG(**sizes) if net is None else net, chosen, likelihoods.Categorical(), num_data
    )
