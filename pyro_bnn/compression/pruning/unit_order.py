r"""Hidden units have no order: n of them in an order of our choice save up to :math:`\log_2 n!` bits of a file.

Sorted by bias, the biases become small steps upwards, which cost a bit or two each instead of a whole number.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .graph import graph_of

__all__ = ["sorted_units"]

# what treats all units alike
_ELEMENTWISE = {
    torch.relu,
    torch.tanh,
    torch.sigmoid,
    F.silu,
    F.gelu,
    F.leaky_relu,
    F.elu,
    F.softplus,
}
_POOLS = {
    F.max_pool1d,
    F.max_pool2d,
    F.avg_pool1d,
    F.avg_pool2d,
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def sorted_units(net: nn.Module) -> fx.GraphModule:
    """Return the same network with the units of its hidden layers sorted: by bias, then by how many inputs they have.

    The outputs are the same up to rounding: sums are taken in another order, and zeros lose their signs. Sorted are
    dense layers that one dense layer reads and convolutions that one convolution reads, with activations, batch norms
    and pools between, and convolutions that a dense layer reads through a flattening; other layers stay as they are.

    Args:
        net: it stays as it is.

    Raises:
        UnsupportedLayerError: the network cannot be traced.
    """
    module = graph_of(net)
    calls = [node for node in module.graph.nodes if node.op == "call_module"]
    layers = [module.get_submodule(str(node.target)) for node in calls]
    for node, layer in zip(calls, layers, strict=True):
        if layers.count(layer) == 1 and isinstance(layer, (nn.Linear, *_CONVOLUTIONS)):
            path = _path(module, node, layers)
            if path is not None:
                _sort(layer, *path)
    for parameter in module.parameters():
        parameter[parameter == 0] = 0  # a mask makes minus zeros of negative numbers
    return module


def _path(
    module: fx.GraphModule, node: fx.Node, layers: list[nn.Module]
) -> tuple[list[Any], Any] | None:
    """Return the batch norms behind a layer and the one layer that reads its units, if all is simple."""
    first: Any = module.get_submodule(str(node.target))
    norms: list[Any] = []
    flat = isinstance(first, nn.Linear)
    while len(node.users) == 1:
        (node,) = node.users
        if node.op == "call_module":
            layer: Any = module.get_submodule(str(node.target))
            if layers.count(layer) > 1:
                return None
            if isinstance(layer, _NORMS):
                norms.append(layer)
                continue
            fits = (
                isinstance(layer, nn.Linear)
                if flat
                else isinstance(layer, _CONVOLUTIONS) and layer.groups == 1
            )
            return (norms, layer) if fits and getattr(first, "groups", 1) == 1 else None
        if node.target is torch.flatten and node.args[1:] == (1, -1) and not flat:
            flat = True
        elif node.target not in _ELEMENTWISE and (flat or node.target not in _POOLS):
            return None
    return None


def _sort(layer: Any, norms: list[Any], reader: Any) -> None:
    """Sort the units of a layer, and what is behind it with them."""
    inputs = (layer.weight != 0).flatten(1).sum(1)
    order = inputs.argsort(stable=True)
    if layer.bias is not None:
        order = order[layer.bias[order].argsort(stable=True)]
    units = len(order)
    if reader.weight.shape[1] % units or any(norm.num_features != units for norm in norms):
        return
    vectors: list[Tensor | None] = [layer.weight, layer.bias]
    for norm in norms:
        vectors += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    for vector in vectors:
        if vector is not None:
            vector.copy_(vector[order])
    # a flattened channel c is the features c * S ... c * S + S - 1
    grouped = reader.weight.unflatten(1, (units, -1))
    reader.weight.copy_(grouped[:, order].flatten(1, 2))
