"""The backward pass: which channels are needed, from the output to the input.

The picture in :mod:`~pyro_bnn.compression.pruning.channels` follows it through a residual block.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from .channels import ChannelFlow, Channels
from .layers import Affine, foldable_constants, is_affine, is_norm, norm_scale, pads_zeros, reads
from .nodes import (
    AVG_POOLS,
    features_per_channel,
    input_node,
    layer_of,
    node_name,
    selected_features,
)

__all__ = ["mark_needed"]


def mark_needed(flow: ChannelFlow, keep_inputs: bool = False) -> None:
    """Mark the channels that change the output of the network, and note which constants stay.

    Args:
        flow: The channels of every node, with their constants.
        keep_inputs: Whether all input features are needed.
    """
    nodes = list(flow.module.graph.nodes)
    for node in flow.inputs:
        flow.channels[node].needed[:] = keep_inputs
    for node in reversed(nodes):
        _mark_sources(flow, node)
    for node in nodes:
        _keep_one_channel(flow, node)
        _note_kept_constants(flow, node)


def _mark_sources(flow: ChannelFlow, node: fx.Node) -> None:
    """Mark the channels that a node reads to compute its needed channels."""
    channels = flow.channels.get(node)
    if channels is None:
        for source in flow.sources(node):
            source.needed[:] = True
        return
    if node in flow.inputs:
        return
    for source in flow.sources(node):
        source.needed |= _needed_by(flow, node, channels, source)


def _needed_by(flow: ChannelFlow, node: fx.Node, channels: Channels, source: Channels) -> Tensor:
    """Return the channels of a source that the needed channels of a node read."""
    if node.target is torch.index_select:
        index = selected_features(flow.module, node)[channels.needed]
        size = features_per_channel(input_node(node), len(source))
        needed = torch.zeros_like(source.needed)
        needed[index // size] = True
        return needed
    layer = layer_of(flow.module, node)
    if layer is None:
        return channels.needed
    if is_norm(layer):
        return channels.needed & (norm_scale(layer) != 0)
    assert is_affine(layer)
    return _read_by(layer, channels, source) & _unfoldable(layer, source)


def _read_by(layer: Affine, channels: Channels, source: Channels) -> Tensor:
    """Return the channels of a source on which a needed unit of a layer has a weight."""
    return reads(layer, len(source))[channels.needed].any(0)


def _unfoldable(layer: Affine, source: Channels) -> Tensor:
    """Return the channels of a source that cannot be folded into the bias of a layer."""
    return foldable_constants(layer, source.constant).isnan()


def _keep_one_channel(flow: ChannelFlow, node: fx.Node) -> None:
    """Keep one channel of a space of which none is needed: a layer without channels cannot run."""
    channels = flow.channels.get(node)
    if channels is None or channels.space.keep.any():
        return
    channels.space.spare = 0
    flow.notes.append(
        f"{node_name(node)} keeps one channel, although none is needed: the network has "
        "another path around it"
    )


def _note_kept_constants(flow: ChannelFlow, node: fx.Node) -> None:
    """Note which constant channels stay because a node cannot do without them."""
    channels, source = flow.channels.get(node), flow.source(node)
    if channels is None or source is None:
        return
    layer = layer_of(flow.module, node)
    if layer is not None and is_affine(layer) and pads_zeros(layer):
        constant = source.is_constant
        constant &= _unfoldable(layer, source) & _read_by(layer, channels, source)
        reason = "its zero padding would change a constant at the border"
    elif node.target in AVG_POOLS:
        constant = source.is_constant & ~channels.is_constant
        reason = "it counts the zeros of its padding, which changes a constant at the border"
    elif node.target is torch.add:
        constant = _constant_on_one_side(flow, node)
        reason = "a constant is added to a channel that varies"
    else:
        return
    kept = (constant & source.needed).nonzero().flatten().tolist()
    if kept:
        numbers = ", ".join(map(str, kept))
        flow.notes.append(
            f"{node_name(node)} keeps constant channels of its input ({numbers}): {reason}"
        )


def _constant_on_one_side(flow: ChannelFlow, node: fx.Node) -> Tensor:
    """Return the channels of an addition that are constants in one summand and vary in another."""
    sources = flow.sources(node)
    anywhere = sources[0].is_constant
    everywhere = sources[0].is_constant
    for source in sources[1:]:
        anywhere = anywhere | source.is_constant
        everywhere = everywhere & source.is_constant
    return anywhere & ~everywhere
