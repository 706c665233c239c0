"""Shrinking: from a network with zeros in its weights to a smaller network that is the same function.

A unit goes when no weight leads into it: it is a constant then, which moves into the biases of the next layer. It goes
when no weight leads out of it. Both are followed through activations, batch norms, pools, flattening and additions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .channels import Analysis, Channels, EmptyNetworkError
from .graph import graph_of
from .layers import is_depthwise, is_norm, positions, selected, weight_blocks

__all__ = ["EmptyNetworkError", "Shrunk", "shrink"]


@dataclass(frozen=True)
class Shrunk:
    """A smaller network.

    Attributes:
        module: a graph module in evaluation mode, its parameters named as before.
        kept: for every parameter and buffer of ``module`` and each of its axes the indices that are left of the
            original; the values of biases differ from the original's where constants were moved into them.
        notes: a sentence for each layer left whole, and for each constant channel that had to stay.
    """

    module: nn.Module
    kept: dict[str, tuple[Tensor, ...]]
    notes: tuple[str, ...]


@torch.no_grad()
def shrink(net: nn.Module, keep_inputs: bool = False) -> Shrunk:
    r"""Return the physically smaller network that computes the same function.

    A constant input c of a layer moves into its bias, :math:`b_j + \sum_k W_{jck}\, c`, k over the positions of a
    kernel or of a flattened channel. Behind zero padding that would be wrong at the border, so there a channel of
    another constant than zero stays. Input features that nobody reads are taken out where dense layers read the input.
    Outputs are never removed. What is not in the normal form of :func:`~pyro_bnn.compression.pruning.graph.graph_of`, a layer
    that is called twice, a convolution in groups (other than depthwise), and what these read is left whole and named.

    Args:
        net: with zeros in its weights; it stays as it is. Dense layers read (batch, features).
        keep_inputs: whether the network reads all inputs as before.

    Raises:
        UnsupportedLayerError: the network cannot be traced.
        EmptyNetworkError: its outputs do not depend on its inputs.
    """
    module = graph_of(net)
    analysis = Analysis(module, keep_inputs)
    kept = {
        name: tuple(map(torch.arange, value.shape)) for name, value in module.state_dict().items()
    }
    flattened = [
        node
        for node in analysis.channels
        if node.target is torch.reshape and node not in analysis.inputs
    ]
    steps = [(node, own, analysis.source(node)) for node, own in analysis.channels.items()]
    for node, own, source in steps:
        if node in analysis.inputs or node.target is torch.index_select:
            kept |= _select(module, node, own, source)
        elif node.op == "call_module":
            kept |= _cut_layer(module, node, own, source, analysis)
    for node in flattened:
        keep = analysis.channels[node].space.keep
        node.args = (node.args[0], (-1, int(keep.sum()) * positions(node, len(keep))))
    module.recompile()
    state = module.state_dict()
    return Shrunk(module, {name: kept[name] for name in state}, tuple(analysis.notes))


_Indices = dict[str, tuple[Tensor, ...]]


def _cut_layer(
    module: fx.GraphModule,
    node: fx.Node,
    own: Channels,
    source: Channels | None,
    analysis: Analysis,
) -> _Indices:
    layer: Any = module.get_submodule(str(node.target))
    if is_norm(layer):
        cut = _cut_norm(layer, own)
    else:
        cut = _cut(layer, own, source, analysis)
        if (
            isinstance(layer, nn.Linear)
            and source is not None
            and layer.in_features > int(source.space.keep.sum())
        ):
            return _cut_features(module, node, layer, cut)
    return {f"{node.target}.{name}": indices for name, indices in cut.items()}


def _cut(layer: Any, own: Channels, source: Channels | None, analysis: Analysis) -> _Indices:
    """Cut a dense layer or a convolution to the channels that stay; return the indices of what is left."""
    known = analysis.folded(layer, source)
    matrix = weight_blocks(layer, len(known))
    constant, depthwise = ~known.isnan(), is_depthwise(layer)
    keep, keep_in = (
        own.space.keep,
        torch.ones_like(constant) if source is None else source.space.keep,
    )
    # b_j + sum_ck W_jck c: what is constant moves into the bias
    sums, values = matrix.sum(-1), known.nan_to_num(0.0)
    moved = sums[:, 0] * values if depthwise else sums @ values
    if layer.bias is None and bool(moved[own.needed].any()):
        layer.register_parameter("bias", nn.Parameter(layer.weight.new_zeros(len(matrix))))
    if layer.bias is not None:
        _assign(layer, "bias", ((layer.bias.double() + moved) * own.needed)[keep])
    matrix = (
        matrix
        * own.needed[:, None, None]
        * ~(constant[:, None, None] if depthwise else constant[:, None])
    )
    left = matrix[keep] if depthwise else matrix[keep][:, keep_in]
    rows = keep.nonzero().flatten().cpu()
    columns = torch.zeros(1, dtype=torch.long) if depthwise else keep_in.nonzero().flatten().cpu()
    shape = layer.weight.shape
    if isinstance(layer, nn.Linear):
        columns = torch.arange(shape[1]).view(len(keep_in), -1)[columns].flatten()
        _assign(layer, "weight", left.flatten(1))
        layer.in_features, layer.out_features = len(columns), len(rows)
    else:
        _assign(layer, "weight", left.unflatten(-1, shape[2:]))
        layer.in_channels, layer.out_channels = int(keep_in.sum()), len(rows)
        layer.groups = len(rows) if depthwise else 1
    return {"weight": (rows, columns, *map(torch.arange, shape[2:])), "bias": (rows,)}


def _cut_features(
    module: fx.GraphModule, node: fx.Node, layer: nn.Linear, cut: _Indices
) -> _Indices:
    """Take single features of flattened channels out of what a dense layer reads, where it does not look at them."""
    name = f"{node.target}.{{}}"
    rows, columns = cut["weight"]
    index = (layer.weight != 0).any(0).nonzero().flatten()
    if len(index) == 0:
        index = torch.zeros(1, dtype=torch.long, device=layer.weight.device)
    found = {name.format("weight"): (rows, columns[index.cpu()]), name.format("bias"): cut["bias"]}
    if len(index) == layer.in_features:
        return found
    flat: Any = node.args[0]
    if flat.target is torch.flatten:  # the shape tells how many features a channel is
        flat.target, flat.args = torch.reshape, (flat.args[0], (-1, layer.in_features))
    buffer = _free_name(module, f"{str(node.target).replace('.', '_')}_inputs")
    module.register_buffer(buffer, index)
    with module.graph.inserting_before(node):
        selected = module.graph.call_function(
            torch.index_select, (flat, 1, module.graph.get_attr(buffer))
        )
    node.args = (selected,)
    _assign(layer, "weight", layer.weight[:, index])
    layer.in_features = len(index)
    return found | {buffer: (columns[index.cpu()],)}


def _cut_norm(layer: Any, own: Channels) -> dict[str, tuple[Tensor, ...]]:
    """Cut a batch norm to the channels that stay."""
    keep = own.space.keep
    rows = keep.nonzero().flatten()
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(layer, name) is not None:
            _assign(layer, name, getattr(layer, name)[keep])
    layer.num_features = len(rows)
    return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (rows.cpu(),))


def _assign(layer: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer by one of another size."""
    before = getattr(layer, name)
    value = value.to(before.dtype).contiguous()
    setattr(
        layer,
        name,
        nn.Parameter(value, before.requires_grad) if name in layer._parameters else value,
    )


def _select(module: fx.GraphModule, node: Any, own: Channels, source: Channels | None) -> _Indices:
    """Take the features that nobody reads out of the input; return the buffer that tells which are left."""
    keep = own.space.keep
    left = keep.nonzero().flatten()
    if node.target is torch.index_select:
        name = str(node.args[2].target)
        index = selected(module, node)[keep]
        if source is not None:  # c S + k, and c moves up where channels before it go
            size = positions(node.args[0], len(source.constant))
            index = (source.space.keep.cumsum(0) - 1)[index // size] * size + index % size
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, index)
    elif len(left) == len(keep):
        return {}
    else:
        name = _free_name(module, "inputs")
        module.register_buffer(name, left)
        with module.graph.inserting_after(node):
            where = module.graph.get_attr(name)
        with module.graph.inserting_after(where):
            reader = module.graph.call_function(torch.index_select, (node, 1, where))
        node.replace_all_uses_with(reader, delete_user_cb=lambda user: user is not reader)
    return {name: (left.cpu(),)}


def _free_name(module: nn.Module, name: str) -> str:
    return name if not hasattr(module, name) else _free_name(module, f"{name}_")
