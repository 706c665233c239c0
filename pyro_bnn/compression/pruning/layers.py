"""Single layers: which channels they read, and which constants they make of constants."""

from __future__ import annotations

from typing import TypeAlias, TypeGuard, cast

import torch
from torch import Tensor, nn

__all__ = [
    "CONVOLUTION_RANKS",
    "NORM_RANKS",
    "Affine",
    "BatchNorm",
    "Convolution",
    "channels_in",
    "direct_tensors",
    "foldable_constants",
    "is_affine",
    "is_depthwise",
    "is_norm",
    "norm_constants",
    "norm_scale",
    "output_constants",
    "pads_zeros",
    "reads",
    "weight_blocks",
]

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d
Affine: TypeAlias = nn.Linear | Convolution
BatchNorm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d

# the number of axes of the input, batch included
CONVOLUTION_RANKS: dict[type[nn.Module], int] = {nn.Conv1d: 3, nn.Conv2d: 4}
NORM_RANKS: dict[type[nn.Module], tuple[int, ...]] = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,)}


def is_affine(layer: nn.Module) -> TypeGuard[Affine]:
    """Return whether a layer is a dense layer or a convolution; subclasses may do anything."""
    return type(layer) is nn.Linear or type(layer) in CONVOLUTION_RANKS


def is_norm(layer: nn.Module) -> TypeGuard[BatchNorm]:
    """Return whether a layer is a batch norm; subclasses may do anything."""
    return type(layer) in NORM_RANKS


def direct_tensors(layer: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a layer, without those of its submodules."""
    tensors: list[Tensor] = list(layer.parameters(recurse=False))
    tensors += layer.buffers(recurse=False)
    return tensors


# --- dense layers and convolutions ---


def channels_in(layer: Affine) -> int:
    """Return the number of channels, or features, that a layer reads."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    return layer.in_channels


def is_depthwise(layer: Affine) -> bool:
    """Return whether unit ``c`` of a convolution reads channel ``c`` and no other."""
    if isinstance(layer, nn.Linear):
        return False
    return layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels


def pads_zeros(layer: Affine) -> bool:
    """Return whether a layer pads its input with zeros."""
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros":
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same" and max(layer.kernel_size) > 1
    return any(layer.padding)


def weight_blocks(layer: Affine, channels: int) -> Tensor:
    """Return the weight with one axis per channel, in float64.

    Args:
        layer: A dense layer or a convolution.
        channels: The number of channels in its input. A dense layer after a flattening reads
            several features of each channel.

    Returns:
        (units, channels, positions); for a depthwise convolution (units, 1, positions).
    """
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        return weight.view(len(weight), channels, -1)
    return weight.flatten(2)


def reads(layer: Affine, channels: int) -> Tensor:
    """Return whether each unit has a nonzero weight on each channel, (units, channels)."""
    nonzero = (weight_blocks(layer, channels) != 0).any(-1)
    if not is_depthwise(layer):
        return nonzero
    same_channel = torch.eye(channels, dtype=torch.bool, device=nonzero.device)
    return nonzero.expand(-1, channels) & same_channel


def foldable_constants(layer: Affine, constant: Tensor) -> Tensor:
    """Return the constants that can be folded into the bias of a layer, NaN for other channels.

    Under zero padding, a constant channel has another value at the border, so only the constant
    zero can be folded.

    Args:
        layer: A dense layer or a convolution.
        constant: The constants that it reads, NaN for channels that vary, (channels,).
    """
    if not pads_zeros(layer):
        return constant
    return torch.where(constant == 0, constant, torch.nan)


def output_constants(layer: Affine, folded: Tensor) -> Tensor:
    r"""Return the units that are constants, :math:`b_j + \sum_{ck} W_{jck} c`, NaN for others.

    Args:
        layer: A dense layer or a convolution.
        folded: The result of :func:`foldable_constants`, (channels,).
    """
    matrix = weight_blocks(layer, len(folded)).sum(-1)
    values = folded.nan_to_num(0.0)
    total = matrix[:, 0] * values if is_depthwise(layer) else matrix @ values
    if layer.bias is not None:
        total = total + layer.bias.detach().double()
    varies = reads(layer, len(folded))[:, folded.isnan()].any(1)
    return torch.where(varies, torch.nan, total)


# --- batch norms in evaluation mode ---


def norm_scale(layer: BatchNorm) -> Tensor:
    r"""Return the factor of each channel, :math:`\gamma / \sqrt{\sigma^2 + \epsilon}`."""
    variance = cast(Tensor, layer.running_var).double()
    deviation = (variance + layer.eps).sqrt()
    if layer.weight is None:
        return deviation.reciprocal()
    return layer.weight.detach().double() / deviation


def norm_constants(layer: BatchNorm, constant: Tensor) -> Tensor:
    """Return the constants after a batch norm; where its factor is zero, all are constants."""
    mean = cast(Tensor, layer.running_mean).double()
    factor = norm_scale(layer)
    shift = torch.zeros_like(factor)
    if layer.bias is not None:
        shift = layer.bias.detach().double()
    return torch.where(factor == 0, shift, (constant - mean) * factor + shift)
