"""Single nodes of a graph in normal form: their inputs, their names and their options.

The normal form is described at :func:`~pyro_bnn.compression.pruning.graph.graph_of`.
"""

from __future__ import annotations

import operator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

__all__ = [
    "ADAPTIVE_POOLS",
    "AVG_POOLS",
    "ELEMENTWISE",
    "MAX_POOLS",
    "features_per_channel",
    "function_name",
    "input_node",
    "layer_before",
    "layer_of",
    "node_name",
    "overwrites_input",
    "pool_keeps_constants",
    "selected_features",
]

# the functions that treat all numbers alike
ELEMENTWISE = (
    torch.relu,
    torch.tanh,
    torch.sigmoid,
    F.silu,
    F.gelu,
    F.leaky_relu,
    F.elu,
    F.softplus,
)
MAX_POOLS = (F.max_pool1d, F.max_pool2d)
AVG_POOLS = (F.avg_pool1d, F.avg_pool2d)
ADAPTIVE_POOLS = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)


def layer_of(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the layer that a node calls, ``None`` for a node that calls no layer."""
    if node.op != "call_module":
        return None
    return module.get_submodule(str(node.target))


def input_node(node: fx.Node, position: int = 0) -> fx.Node:
    """Return the node that a node reads as a positional argument."""
    return cast(fx.Node, node.args[position])


def function_name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls."""
    if isinstance(node.target, str):
        return node.target
    return str(getattr(node.target, "__name__", node.name))


def node_name(node: fx.Node) -> str:
    """Return the name under which a message speaks of a node: that of its layer, if it has one."""
    if node.op == "call_module":
        return str(node.target)
    return node.name


def layer_before(node: fx.Node) -> str:
    """Return the name of the layer from which a node has its channels."""
    while node.op not in ("call_module", "placeholder"):
        node = node.all_input_nodes[0]
    if node.op == "placeholder":
        return "the input"
    return str(node.target)


def overwrites_input(module: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether an operation outside the normal form writes into its input."""
    layer = layer_of(module, node)
    if layer is not None:
        return bool(getattr(layer, "inplace", False))
    name = function_name(node)
    in_place_name = name.endswith("_") and not name.endswith("__")
    return bool(node.kwargs.get("inplace")) or in_place_name


def pool_keeps_constants(node: fx.Node) -> bool:
    """Return whether the pool of a constant channel is that constant, at the border too."""
    padded = any(cast(tuple[int, ...], node.kwargs["padding"]))
    if node.target in MAX_POOLS:
        # a window spread out by dilation may see nothing but padding
        dilation = cast(tuple[int, ...], node.kwargs["dilation"])
        return not (padded and max(dilation) > 1)
    if node.kwargs.get("divisor_override") is not None:
        return False
    return not (padded and node.kwargs["count_include_pad"])


def selected_features(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """Return the indices that an ``index_select`` node reads from its buffer."""
    attribute = operator.attrgetter(str(input_node(node, 2).target))
    return cast(Tensor, attribute(module))


def features_per_channel(node: fx.Node, channels: int) -> int:
    """Return the number of features of each channel after a reshape to (batch, features)."""
    shape = cast(tuple[int, int], node.args[1])
    return shape[1] // channels
