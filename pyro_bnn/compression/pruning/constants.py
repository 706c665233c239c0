"""The forward pass: which channels are constants, from the input to the output.

The picture in :mod:`~pyro_bnn.compression.pruning.channels` follows it through a residual block.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx, nn

from .channels import ChannelFlow, Channels, EmptyNetworkError, Space, folded_constants
from .layers import (
    CONVOLUTION_RANKS,
    Affine,
    channels_in,
    direct_tensors,
    is_affine,
    is_depthwise,
    is_norm,
    norm_constants,
    norm_scale,
    output_constants,
    reads,
)
from .nodes import (
    ADAPTIVE_POOLS,
    AVG_POOLS,
    ELEMENTWISE,
    MAX_POOLS,
    features_per_channel,
    function_name,
    input_node,
    layer_before,
    layer_of,
    overwrites_input,
    pool_keeps_constants,
    selected_features,
)
from .uncut_layers import LayerUses

__all__ = ["find_constants", "require_varying_output"]


def find_constants(module: fx.GraphModule) -> ChannelFlow:
    """Return the channels of every node that can be shrunk, and the values of the constants.

    Args:
        module: A graph in normal form.
    """
    flow = ChannelFlow(module)
    uses = LayerUses(module)
    for node in module.graph.nodes:
        channels = _output(flow, uses, node)
        if channels is None:
            continue
        for user in node.users:
            if overwrites_input(module, user):
                channels.constant = torch.full_like(channels.constant, torch.nan)
        flow.add(node, channels)
    return flow


def _output(flow: ChannelFlow, uses: LayerUses, node: fx.Node) -> Channels | None:
    """Return the channels of the output of a node, ``None`` where the node is not cut."""
    if _is_view_of_input(flow, node):
        return _input_channels(flow, node, _features_read(flow.module, node))
    layer = layer_of(flow.module, node)
    if layer is not None:
        return _layer_output(flow, uses, node, layer)
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target is torch.index_select and _is_selection(flow, node):
        return _selection_output(flow, node)
    source = flow.source(node)
    channels = None
    if source is not None:
        channels = _function_output(flow, node, source)
    if channels is None:
        _note_uncut(flow, node)
    return channels


def _note_uncut(flow: ChannelFlow, node: fx.Node) -> None:
    """Note which channels stay because a function outside the normal form reads them."""
    names = []
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            names.append(str(source.target))
    for source in node.all_input_nodes:
        if source in flow.channels:
            names.append(layer_before(source))
    if names:
        step = f"{function_name(node)}() is not a step that can be shrunk"
        flow.notes.append(f"{', '.join(names)} cannot be cut: {step}")


# --- the input ---


def _is_view_of_input(flow: ChannelFlow, node: fx.Node) -> bool:
    """Return whether a node is the input of the network, or the input in another shape."""
    if node.op == "placeholder":
        return True
    flattens = node.target is torch.flatten and node.args[1:] == (1, -1)
    if not flattens and node.target is not torch.reshape:
        return False
    before = input_node(node)
    return before not in flow.channels and _is_view_of_input(flow, before)


def _features_read(module: fx.GraphModule, node: fx.Node) -> int | None:
    """Return the number of features that all readers of a view of the input expect.

    ``None`` where the readers are not dense layers and batch norms, or disagree.
    """
    widths: set[int | None] = set()
    for user in node.users:
        layer = layer_of(module, user)
        if isinstance(layer, nn.Linear):
            widths.add(layer.in_features)
        elif isinstance(layer, nn.BatchNorm1d):
            widths.add(layer.num_features)
        elif user.target is torch.add or user.target in ELEMENTWISE:
            widths.add(_features_read(module, user))
        else:
            widths.add(None)
    if len(widths) != 1:
        return None
    return widths.pop()


def _input_channels(flow: ChannelFlow, node: fx.Node, width: int | None) -> Channels | None:
    """Return one varying channel per feature of the input."""
    if width is None:
        return None
    flow.inputs.append(node)
    constant = torch.full((width,), torch.nan, dtype=torch.float64, device=_device(flow.module))
    return Channels(constant, 2, Space())


def _device(module: nn.Module) -> torch.device:
    for layer in module.modules():
        for tensor in direct_tensors(layer):
            return tensor.device
    return torch.device("cpu")


def _is_selection(flow: ChannelFlow, node: fx.Node) -> bool:
    """Return whether a node selects features of the input, or of flattened channels.

    The indices are in a buffer that no other node reads, so that they may be changed.
    """
    features, index = input_node(node), input_node(node, 2)
    if node.args[1] != 1 or index.op != "get_attr" or len(index.users) != 1:
        return False
    if features in flow.channels:
        return features.target is torch.reshape
    return _is_view_of_input(flow, features)


def _selection_output(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    index = selected_features(flow.module, node)
    source = flow.source(node)
    if source is None:
        return _input_channels(flow, node, len(index))
    size = features_per_channel(input_node(node), len(source))
    return Channels(source.constant[index // size], 2, Space())


# --- layers ---


def _layer_output(
    flow: ChannelFlow, uses: LayerUses, node: fx.Node, layer: nn.Module
) -> Channels | None:
    source = flow.source(node)
    reason = uses.reason_not_to_cut(str(node.target), layer, source)
    if reason:
        if source is not None or direct_tensors(layer):
            flow.notes.append(f"{node.target} cannot be cut: {reason}")
        return None
    if is_affine(layer):
        return _affine_output(layer, source)
    # for any other layer there is a reason not to cut it
    assert is_norm(layer)
    assert source is not None
    return Channels(norm_constants(layer, source.constant), source.rank, source.space)


def _affine_output(layer: Affine, source: Channels | None) -> Channels:
    constant = output_constants(layer, folded_constants(layer, source))
    space = Space()
    if source is not None and is_depthwise(layer):
        space = source.space
    if isinstance(layer, nn.Linear):
        rank = None
        if source is not None:
            rank = source.rank
    else:
        rank = CONVOLUTION_RANKS[type(layer)]
    return Channels(constant, rank, space)


# --- functions ---


def _function_output(flow: ChannelFlow, node: fx.Node, source: Channels) -> Channels | None:
    if node.target in ELEMENTWISE:
        return _elementwise_output(node, source)
    if node.target is torch.add:
        return _addition_output(flow, node, source)
    if source.rank is None:
        return None
    if node.target in MAX_POOLS or node.target in AVG_POOLS:
        return _pool_output(node, source)
    if node.target in ADAPTIVE_POOLS:
        return Channels(source.constant, source.rank, source.space)
    if node.target is torch.mean:
        return _mean_output(node, source, source.rank)
    if node.target is torch.flatten:
        return _flatten_output(node, source, source.rank)
    if node.target is torch.reshape:
        return _reshape_output(node, source)
    return None


def _elementwise_output(node: fx.Node, source: Channels) -> Channels:
    assert callable(node.target)
    constant = node.target(source.constant, *node.args[1:], **node.kwargs)
    return Channels(constant, source.rank, source.space)


def _addition_output(flow: ChannelFlow, node: fx.Node, first: Channels) -> Channels | None:
    second = flow.channels.get(input_node(node, 1))
    if second is None or second.rank != first.rank or len(second) != len(first):
        return None
    first.space.merge(second.space)
    return Channels(first.constant + second.constant, first.rank, first.space)


def _pool_output(node: fx.Node, source: Channels) -> Channels:
    constant = source.constant
    if not pool_keeps_constants(node):
        constant = torch.where(constant == 0, constant, torch.nan)
    return Channels(constant, source.rank, source.space)


def _mean_output(node: fx.Node, source: Channels, rank: int) -> Channels | None:
    axes = set()
    for axis in cast(tuple[int, ...], node.args[1]):
        axes.add(axis % rank)
    if min(axes) < 2:
        return None
    if not node.kwargs.get("keepdim"):
        rank -= len(axes)
    return Channels(source.constant, rank, source.space)


def _flatten_output(node: fx.Node, source: Channels, rank: int) -> Channels | None:
    first_axis, last_axis = cast(tuple[int, int], node.args[1:])
    start, end = first_axis % rank, last_axis % rank
    after_channels = start > 1
    into_features = start == 1 and end == rank - 1
    if not after_channels and not into_features:
        return None
    return Channels(source.constant, rank - (end - start), source.space)


def _reshape_output(node: fx.Node, source: Channels) -> Channels | None:
    shape = cast(tuple[int, ...], node.args[1])
    if len(shape) != 2 or shape[1] % len(source) != 0:
        return None
    return Channels(source.constant, 2, source.space)


# --- does the output depend on the input? ---


def require_varying_output(flow: ChannelFlow) -> None:
    """Raise an error if the outputs of a network do not depend on its inputs.

    A channel that is not a constant need not depend on the input: under zero padding, it may
    differ by position. Dependence is therefore followed separately.

    Raises:
        EmptyNetworkError: If they do not. The message names the first layer without a unit that
            depends on the inputs.
    """
    depends: dict[fx.Node, Tensor] = {}
    emptied: str | None = None
    nodes = list(flow.module.graph.nodes)
    for node in nodes:
        depends[node] = _depends_on_input(flow, node, depends)
        lost = _any_depends(node, depends) and not depends[node].any()
        if lost and emptied is None:
            emptied = str(node.target)
    if not depends[nodes[-1]].any():
        raise EmptyNetworkError(
            f"{emptied}: no unit of this layer depends on the inputs any more, so the network is a "
            "constant; prune less (raise the threshold), or fit with a KL weight that rises later"
        )


def _any_depends(node: fx.Node, depends: dict[fx.Node, Tensor]) -> bool:
    return any(bool(depends[source].any()) for source in node.all_input_nodes)


def _depends_on_input(flow: ChannelFlow, node: fx.Node, depends: dict[fx.Node, Tensor]) -> Tensor:
    """Return which channels of a node depend on the input, a single value if they are unknown."""
    channels = flow.channels.get(node)
    if channels is None:
        return torch.tensor(node.op == "placeholder" or _any_depends(node, depends))
    if node in flow.inputs:
        return channels.constant.isnan()
    before = depends[node.all_input_nodes[0]]
    if node.target is torch.add:
        return before | depends[node.all_input_nodes[-1]]
    if node.target is torch.index_select:
        size = features_per_channel(input_node(node), len(before))
        return before[selected_features(flow.module, node) // size]
    layer = layer_of(flow.module, node)
    if layer is None:
        return before
    if is_norm(layer):
        return before & (norm_scale(layer) != 0)
    assert is_affine(layer)
    source = flow.source(node)
    width = channels_in(layer) if source is None else len(source)
    return (reads(layer, width) & before).any(1)
