"""Shrinking: from a network with zeros in it to a smaller network that is the same function.

A unit is removed if no weight leads into it: it is a constant, which is folded into the biases of
the next layer. It is removed as well if no weight leads out of it. Both are followed through
activations, batch norms, pools, flattening and additions, as the picture in
:mod:`~pyro_bnn.compression.pruning.channels` shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, fx, nn

from .channels import ChannelFlow, Channels, folded_constants
from .constants import find_constants, require_varying_output
from .graph import graph_of
from .layers import Affine, BatchNorm, Convolution, is_affine, is_depthwise, is_norm, weight_blocks
from .needed import mark_needed
from .nodes import features_per_channel, input_node, layer_of, selected_features

__all__ = ["KeptIndices", "Shrunk", "all_indices", "shrink"]

# for each tensor and each of its axes, the remaining indices of the original
KeptIndices: TypeAlias = dict[str, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Shrunk:
    """A smaller network.

    Attributes:
        module: A graph module in evaluation mode, with the parameter names of the original.
        kept: The remaining indices of the original, for every parameter and buffer of ``module``
            and each of its axes. The values of biases differ from the original's where constants
            were folded into them.
        notes: A sentence for each layer that is not cut, and for each constant channel that stays.
    """

    module: nn.Module
    kept: KeptIndices
    notes: tuple[str, ...]


@torch.no_grad()
def shrink(net: nn.Module, keep_inputs: bool = False) -> Shrunk:
    r"""Return the physically smaller network that computes the same function.

    A constant input c of a layer is folded into its bias, :math:`b_j + \sum_k W_{jck}\, c`, where k
    runs over the positions of a kernel or of a flattened channel. Under zero padding this would be
    wrong at the border, so such a channel stays unless its constant is zero. Input features that
    no unit reads are removed where dense layers read the input. Outputs are never removed.

    A layer keeps its size, as do the channels that it reads, and is named in ``notes`` if it is not
    in the normal form of :func:`~pyro_bnn.compression.graph_of`, is called twice, or is a
    convolution in groups other than a depthwise one.

    Args:
        net: A network with zeros in its weights, which is not changed. Dense layers read
            (batch, features).
        keep_inputs: Whether the smaller network reads all inputs, as before.

    Returns:
        The smaller network, and which parts of the original it has.

    Raises:
        UnsupportedLayerError: If the network cannot be traced.
        EmptyNetworkError: If its outputs do not depend on its inputs.
    """
    module = graph_of(net)
    flow = find_constants(module)
    require_varying_output(flow)
    mark_needed(flow, keep_inputs)
    kept = all_indices(module)
    reshapes = _reshapes(flow)
    for step in _steps(flow):
        if step.node in flow.inputs or step.node.target is torch.index_select:
            kept |= _select_inputs(module, step)
        else:
            kept |= _cut_layer(module, step)
    for node in reshapes:
        keep = flow.channels[node].space.keep
        features = int(keep.sum()) * features_per_channel(node, len(keep))
        node.args = (node.args[0], (-1, features))
    module.recompile()
    kept = {name: kept[name] for name in module.state_dict()}
    return Shrunk(module, kept, tuple(flow.notes))


def all_indices(module: nn.Module) -> KeptIndices:
    """Return the indices of every parameter and buffer of a network, axis by axis."""
    indices = {}
    for name, value in module.state_dict().items():
        indices[name] = tuple(map(torch.arange, value.shape))
    return indices


@dataclass(frozen=True)
class _Step:
    """A node to cut, its channels, and the channels that it read before any node was changed."""

    node: fx.Node
    channels: Channels
    source: Channels | None


def _steps(flow: ChannelFlow) -> list[_Step]:
    steps = []
    for node, channels in flow.channels.items():
        steps.append(_Step(node, channels, flow.source(node)))
    return steps


def _reshapes(flow: ChannelFlow) -> list[fx.Node]:
    """Return the nodes with a written-out number of features, which changes."""
    reshapes = []
    for node in flow.channels:
        if node.target is torch.reshape and node not in flow.inputs:
            reshapes.append(node)
    return reshapes


# --- layers ---


def _cut_layer(module: fx.GraphModule, step: _Step) -> KeptIndices:
    """Cut the layer of a node, if it has one, to the channels that stay."""
    layer = layer_of(module, step.node)
    if layer is None:
        return {}
    if is_norm(layer):
        cut = _cut_norm(layer, step.channels)
    else:
        assert is_affine(layer)
        cut = _cut_affine(layer, step.channels, step.source)
    kept = {f"{step.node.target}.{name}": indices for name, indices in cut.items()}
    if isinstance(layer, nn.Linear) and _reads_blocks(layer, step.source):
        kept |= _select_features(module, step.node, layer, *cut["weight"])
    return kept


def _reads_blocks(layer: nn.Linear, source: Channels | None) -> bool:
    """Return whether a dense layer, cut, reads several features of each channel."""
    return source is not None and layer.in_features > int(source.space.keep.sum())


def _cut_norm(layer: BatchNorm, channels: Channels) -> KeptIndices:
    """Cut a batch norm to the channels that stay."""
    keep = channels.space.keep
    rows = keep.nonzero().flatten()
    names = ("weight", "bias", "running_mean", "running_var")
    for name in names:
        value = getattr(layer, name)
        if value is not None:
            _assign(layer, name, value[keep])
    layer.num_features = len(rows)
    return dict.fromkeys(names, (rows.cpu(),))


def _cut_affine(layer: Affine, channels: Channels, source: Channels | None) -> KeptIndices:
    """Cut a dense layer or a convolution to the channels that stay."""
    folded = folded_constants(layer, source)
    blocks = weight_blocks(layer, len(folded))
    _fold_constants(layer, blocks, folded, channels)
    blocks = _without_dead_weights(layer, blocks, folded, channels)[channels.space.keep]
    units = _true_indices(channels.space.keep)
    inputs = torch.arange(len(folded))
    if source is not None:
        inputs = _true_indices(source.space.keep)
    if isinstance(layer, nn.Linear):
        return _resize_dense(layer, blocks, units, inputs)
    return _resize_convolution(layer, blocks, units, inputs)


def _fold_constants(layer: Affine, blocks: Tensor, folded: Tensor, channels: Channels) -> None:
    """Fold constant inputs into the bias, and cut it to the channels that stay."""
    # b_j + sum_ck W_jck c
    sums, values = blocks.sum(-1), folded.nan_to_num(0.0)
    shift = sums[:, 0] * values if is_depthwise(layer) else sums @ values
    if layer.bias is None and bool(shift[channels.needed].any()):
        layer.register_parameter("bias", nn.Parameter(layer.weight.new_zeros(len(blocks))))
    if layer.bias is not None:
        bias = (layer.bias.double() + shift) * channels.needed
        _assign(layer, "bias", bias[channels.space.keep])


def _without_dead_weights(
    layer: Affine, blocks: Tensor, folded: Tensor, channels: Channels
) -> Tensor:
    """Return the weight with zeros for units that are not needed and for folded channels."""
    blocks = blocks * channels.needed[:, None, None]
    varies = folded.isnan()
    if is_depthwise(layer):
        return blocks * varies[:, None, None]
    return blocks * varies[:, None]


def _resize_dense(layer: nn.Linear, blocks: Tensor, units: Tensor, inputs: Tensor) -> KeptIndices:
    """Cut a dense layer to some units and some blocks of inputs, the features of one channel."""
    features = torch.arange(layer.in_features).view(blocks.shape[1], -1)
    columns = features[inputs].flatten()
    _assign(layer, "weight", blocks[:, inputs].flatten(1))
    layer.in_features, layer.out_features = len(columns), len(units)
    return {"weight": (units, columns), "bias": (units,)}


def _resize_convolution(
    layer: Convolution, blocks: Tensor, units: Tensor, inputs: Tensor
) -> KeptIndices:
    """Cut a convolution to some filters and some input channels."""
    kernel = layer.weight.shape[2:]
    depthwise = is_depthwise(layer)
    layer.in_channels, layer.out_channels = len(inputs), len(units)
    if depthwise:
        layer.groups = len(units)
        inputs = torch.zeros(1, dtype=torch.long)  # a filter reads one channel, its own
    else:
        blocks = blocks[:, inputs]
    _assign(layer, "weight", blocks.reshape(*blocks.shape[:2], *kernel))
    return {"weight": (units, inputs, *map(torch.arange, kernel)), "bias": (units,)}


def _true_indices(mask: Tensor) -> Tensor:
    return mask.nonzero().flatten().cpu()


def _assign(layer: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer by one of another size."""
    before = getattr(layer, name)
    value = value.to(before.dtype).contiguous()
    if isinstance(before, nn.Parameter):
        value = nn.Parameter(value, before.requires_grad)
    setattr(layer, name, value)


# --- features of the input, and of flattened channels ---


def _select_features(
    module: fx.GraphModule, node: fx.Node, layer: nn.Linear, rows: Tensor, columns: Tensor
) -> KeptIndices:
    """Let a dense layer read only those features of flattened channels on which it has a weight.

    They are selected by a new ``index_select`` node.

    Args:
        module: The graph.
        node: The node that calls the layer.
        layer: The layer, already cut to the channels that stay.
        rows: Its units, as indices of the original.
        columns: Its features, as indices of the original.

    Returns:
        The remaining indices of its weight, and of the buffer of the new node.
    """
    index = (layer.weight != 0).any(0).nonzero().flatten()
    if len(index) == 0:
        index = torch.zeros(1, dtype=torch.long, device=layer.weight.device)
    if len(index) == layer.in_features:
        return {}
    flat = input_node(node)
    if flat.target is torch.flatten:
        # a reshape states the number of features, from which that of each channel follows
        flat.target, flat.args = torch.reshape, (flat.args[0], (-1, layer.in_features))
    name = _free_name(module, f"{str(node.target).replace('.', '_')}_inputs")
    module.register_buffer(name, index)
    with module.graph.inserting_before(node):
        buffer = module.graph.get_attr(name)
        selection = module.graph.call_function(torch.index_select, (flat, 1, buffer))
    node.args = (selection,)
    _assign(layer, "weight", layer.weight[:, index])
    layer.in_features = len(index)
    columns = columns[index.cpu()]
    return {f"{node.target}.weight": (rows, columns), name: (columns,)}


def _select_inputs(module: fx.GraphModule, step: _Step) -> KeptIndices:
    """Cut a selection of features, or select those features of the input that are needed."""
    if step.node.target is torch.index_select:
        return _cut_selection(module, step)
    keep = step.channels.space.keep
    index = keep.nonzero().flatten()
    if len(index) == len(keep):
        return {}
    name = _free_name(module, "inputs")
    module.register_buffer(name, index)
    with module.graph.inserting_after(step.node):
        buffer = module.graph.get_attr(name)
    with module.graph.inserting_after(buffer):
        selection = module.graph.call_function(torch.index_select, (step.node, 1, buffer))
    step.node.replace_all_uses_with(selection, delete_user_cb=lambda user: user is not selection)
    return {name: (index.cpu(),)}


def _cut_selection(module: fx.GraphModule, step: _Step) -> KeptIndices:
    """Cut the buffer of an ``index_select`` node to the features that stay."""
    keep = step.channels.space.keep
    index = selected_features(module, step.node)[keep]
    if step.source is not None:
        # feature k of channel c is c S + k, and c decreases by the removed channels before it
        size = features_per_channel(input_node(step.node), len(step.source))
        new_channel = step.source.space.keep.cumsum(0) - 1
        index = new_channel[index // size] * size + index % size
    name = str(input_node(step.node, 2).target)
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, index)
    return {name: (_true_indices(keep),)}


def _free_name(module: nn.Module, name: str) -> str:
    while hasattr(module, name):
        name = f"{name}_"
    return name
