"""What single layers do to channels: their weights channel by channel, and what they make of a constant."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

__all__ = [
    "AVG_POOLS",
    "CONVOLUTIONS",
    "MAX_POOLS",
    "NORMALISATIONS",
    "channels_in",
    "constants_out",
    "foldable",
    "is_depthwise",
    "is_norm",
    "normalised",
    "pads_zeros",
    "pool_keeps_constants",
    "positions",
    "reads",
    "scale",
    "selected",
    "tensors",
    "weight_blocks",
]

MAX_POOLS, AVG_POOLS = (F.max_pool1d, F.max_pool2d), (F.avg_pool1d, F.avg_pool2d)
# layer type: the axes of what it reads, batch included
CONVOLUTIONS, NORMALISATIONS = (
    {nn.Conv1d: (3,), nn.Conv2d: (4,)},
    {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,)},
)


def weight_blocks(layer: Any, channels: int) -> Tensor:
    """Return a weight as (units, channels read, positions), in float64; of a depthwise convolution (units, 1, ...)."""
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        return weight.view(len(weight), channels, -1)
    return weight.flatten(2)


def is_depthwise(layer: Any) -> bool:
    """Return whether every channel of a convolution reads the channel of the same number only."""
    groups = getattr(layer, "groups", 1)
    return bool(groups > 1 and groups == layer.in_channels == layer.out_channels)


def reads(layer: Any, channels: int) -> Tensor:
    """Return whether each unit has a weight on each channel that it reads (units, channels); units of a depthwise
    convolution read one."""
    found = (weight_blocks(layer, channels) != 0).any(-1)
    return (
        found.expand(-1, channels) & torch.eye(channels, device=found.device).bool()
        if is_depthwise(layer)
        else found
    )


def foldable(layer: Any, constant: Tensor) -> Tensor:
    """Return the constants that a layer can take into its bias, nan for other channels.

    Behind zero padding a constant is another one at the border: only zero can be folded there.
    """
    return torch.where((constant == 0) | torch.tensor(not pads_zeros(layer)), constant, torch.nan)


def constants_out(layer: Any, known: Tensor) -> Tensor:
    r"""Return the units of a layer that are constants, :math:`b_j + \sum_{ck} W_{jck} c`, nan where they vary.

    Args:
        layer: dense or a convolution.
        known: what :func:`foldable` returns of the channels it reads.
    """
    matrix = weight_blocks(layer, len(known)).sum(-1)
    values = known.nan_to_num(0.0)
    total = matrix[:, 0] * values if is_depthwise(layer) else matrix @ values
    if layer.bias is not None:
        total = total + layer.bias.detach().double()
    return torch.where(reads(layer, len(known))[:, known.isnan()].any(1), torch.nan, total)


def tensors(layer: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a layer itself."""
    return [t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None]


def channels_in(layer: Any) -> int:
    """Return how many channels, or features, a layer reads."""
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)


def pads_zeros(layer: Any) -> bool:
    """Return whether a layer pads what it reads with zeros."""
    if (
        getattr(layer, "padding_mode", "") != "zeros"
    ):  # a dense layer, or one that pads with what is there
        return False
    if isinstance(layer.padding, str):
        return bool(layer.padding == "same" and max(layer.kernel_size) > 1)
    return any(layer.padding)


def is_norm(layer: Any) -> bool:
    """Return whether a layer is a batch norm."""
    return type(layer) in NORMALISATIONS


def scale(layer: Any) -> Tensor:
    """Return by what a batch norm in evaluation mode multiplies."""
    deviation = (layer.running_var.double() + layer.eps).sqrt()
    return (1.0 if layer.weight is None else layer.weight.detach().double()) / deviation


def normalised(layer: Any, constant: Tensor) -> Tensor:
    """Return what a batch norm in evaluation mode makes of constants; by a scale of zero everything is a constant."""
    factor = scale(layer)
    shift = torch.zeros_like(factor) if layer.bias is None else layer.bias.detach().double()
    return torch.where(
        factor == 0, shift, (constant - layer.running_mean.double()) * factor + shift
    )


def pool_keeps_constants(node: Any) -> bool:
    """Return whether the pool of a constant is that constant, at the border too."""
    padded = any(node.kwargs["padding"])
    if node.target in MAX_POOLS:  # a window spread out by dilation may see nothing but padding
        return not (padded and max(node.kwargs["dilation"]) > 1)
    if node.kwargs.get("divisor_override") is not None:
        return False
    return not (padded and node.kwargs["count_include_pad"])


def selected(module: fx.GraphModule, node: Any) -> Tensor:
    """Return the indices that an ``index_select`` node reads from its buffer."""
    index: Tensor = operator.attrgetter(node.args[2].target)(module)
    return index


def positions(node: Any, channels: int) -> int:
    """Return how many features each channel is after a reshape to (batch, features)."""
    return int(node.args[1][1]) // channels
