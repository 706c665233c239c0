r"""The order of hidden units: it does not change the function, and sorted units take fewer bits.

A file need not record which of the :math:`n!` orders n units had, which saves up to
:math:`\log_2 n!` bits. Units sorted by bias have biases that increase in small steps, and a small
step costs one or two bits instead of a whole number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from .graph import graph_of
from .layers import Affine, BatchNorm
from .nodes import ADAPTIVE_POOLS, AVG_POOLS, ELEMENTWISE, MAX_POOLS, layer_of

__all__ = ["sorted_units"]

_POOLS = (*MAX_POOLS, *AVG_POOLS, *ADAPTIVE_POOLS)


@torch.no_grad()
def sorted_units(net: nn.Module) -> fx.GraphModule:
    """Return the same network with the units of its hidden layers sorted.

    Units are sorted by bias, those of equal bias by their number of nonzero weights. The outputs
    are the same up to rounding: sums are taken in another order, and zeros lose their signs.

    Dense layers are sorted if one dense layer reads them, and convolutions if one convolution
    reads them, or one dense layer through a flattening. Activations, batch norms and pools may lie
    between the two. Other layers stay as they are.

    Args:
        net: A network, which is not changed.

    Raises:
        UnsupportedLayerError: If the network cannot be traced.
    """
    module = graph_of(net)
    nodes, layers = [], []
    for node in module.graph.nodes:
        layer = layer_of(module, node)
        if layer is not None:
            nodes.append(node)
            layers.append(layer)
    for node, layer in zip(nodes, layers, strict=True):
        if layers.count(layer) == 1 and isinstance(layer, Affine):
            readers = _readers(module, node, layer, layers)
            if readers is not None:
                _sort(layer, readers)
    for parameter in module.parameters():
        parameter[parameter == 0] = 0  # a mask turns negative numbers into minus zeros
    return module


@dataclass(frozen=True)
class _Readers:
    """The layers that follow a layer: batch norms, and the one layer that reads its units."""

    norms: list[BatchNorm]
    layer: Affine


def _readers(
    module: fx.GraphModule, node: fx.Node, first: Affine, layers: list[nn.Module]
) -> _Readers | None:
    """Return the layers that follow a layer, ``None`` if its units cannot be sorted."""
    norms: list[BatchNorm] = []
    flat = isinstance(first, nn.Linear)
    while len(node.users) == 1:
        (node,) = node.users
        layer = layer_of(module, node)
        if layer is not None:
            if layers.count(layer) > 1:
                return None
            if isinstance(layer, BatchNorm):
                norms.append(layer)
                continue
            if isinstance(layer, Affine) and _can_follow(first, layer, flat):
                return _Readers(norms, layer)
            return None
        if node.target is torch.flatten and node.args[1:] == (1, -1) and not flat:
            flat = True
        elif node.target not in ELEMENTWISE and (flat or node.target not in _POOLS):
            return None
    return None


def _can_follow(first: Affine, reader: Affine, flat: bool) -> bool:
    """Return whether a layer reads all units of another: features, if these are flat."""
    if _in_groups(first) or _in_groups(reader):
        return False
    return isinstance(reader, nn.Linear) == flat


def _in_groups(layer: Affine) -> bool:
    return not isinstance(layer, nn.Linear) and layer.groups > 1


def _sort(layer: Affine, readers: _Readers) -> None:
    """Sort the units of a layer, in its own tensors and in those of its readers."""
    nonzero = (layer.weight != 0).flatten(1).sum(1)
    order = nonzero.argsort(stable=True)
    if layer.bias is not None:
        order = order[layer.bias[order].argsort(stable=True)]
    units = len(order)
    if readers.layer.weight.shape[1] % units:
        return
    vectors: list[Tensor | None] = [layer.weight, layer.bias]
    for norm in readers.norms:
        if norm.num_features != units:
            return
        vectors += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    for vector in vectors:
        if vector is not None:
            vector.copy_(vector[order])
    # the features of a flattened channel c are c S ... c S + S - 1
    weight = readers.layer.weight
    blocks = weight.reshape(len(weight), units, -1)
    weight.copy_(blocks[:, order].reshape(weight.shape))
