"""Layers that keep their size: the reasons for which the channels of a layer cannot be cut."""

from __future__ import annotations

from collections import Counter
from typing import cast

from torch import fx, nn

from .channels import Channels
from .layers import (
    CONVOLUTION_RANKS,
    NORM_RANKS,
    BatchNorm,
    Convolution,
    direct_tensors,
    is_affine,
    is_depthwise,
    is_norm,
)

__all__ = ["LayerUses"]


class LayerUses:
    """How often the layers of a graph are called, and by how many layers their weights are used."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._calls: Counter[str] = Counter()
        for node in module.graph.nodes:
            if node.op == "call_module":
                self._calls[str(node.target)] += 1
        self._owners: Counter[int] = Counter()
        for layer in module.modules():
            for tensor in direct_tensors(layer):
                self._owners[id(tensor)] += 1

    def reason_not_to_cut(self, name: str, layer: nn.Module, source: Channels | None) -> str:
        """Return why a layer cannot be cut, as the end of a sentence, or ``""`` if it can.

        Args:
            name: The name of the layer.
            layer: The layer that a node calls.
            source: The channels that it reads, ``None`` where these cannot be cut.
        """
        if not is_affine(layer) and not is_norm(layer):
            return f"a {type(layer).__name__} is not a layer that can be shrunk"
        if layer._forward_hooks or layer._forward_pre_hooks:
            return "it has hooks"
        if self._calls[name] > 1:
            return "it is called more than once"
        for tensor in direct_tensors(layer):
            if self._owners[id(tensor)] > 1:
                return "another layer has the same weights"
        if is_norm(layer):
            return _norm_reason(layer, source)
        if isinstance(layer, nn.Linear):
            return _dense_reason(layer, source)
        return _convolution_reason(cast(Convolution, layer), source)


_NO_SOURCE = "its input cannot be cut"
_NO_CHANNELS = "its input does not have the channels that it reads"


def _norm_reason(layer: BatchNorm, source: Channels | None) -> str:
    if source is None:
        return _NO_SOURCE
    if layer.running_mean is None:
        return "it has no running statistics"
    if layer.num_features != len(source) or source.rank not in NORM_RANKS[type(layer)]:
        return _NO_CHANNELS
    return ""


def _dense_reason(layer: nn.Linear, source: Channels | None) -> str:
    if source is None:
        return ""
    reads_features = source.rank is None and layer.in_features == len(source)
    reads_blocks = source.rank == 2 and layer.in_features % len(source) == 0
    if reads_features or reads_blocks:
        return ""
    return "it does not read flattened channels"


def _convolution_reason(layer: Convolution, source: Channels | None) -> str:
    if source is None:
        if layer.groups == 1:
            return ""
        return _NO_SOURCE
    if source.rank != CONVOLUTION_RANKS[type(layer)] or layer.in_channels != len(source):
        return _NO_CHANNELS
    if layer.groups == 1 or is_depthwise(layer):
        return ""
    return "its channels are in groups"
