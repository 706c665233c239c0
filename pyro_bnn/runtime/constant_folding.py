"""Constant folding: compute the constants of a traced graph once, before it is compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["draws_random_numbers", "fold_constants"]


def fold_constants(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Compute once every value that depends on constants alone, such as the log of a fixed scale.

    A constant tensor whose entries are all equal is written into the graph as a number: the
    compiler then sees, for instance, that a mean is zero or a scale is one.
    """
    constants = _constant_values(graph)
    if constants is None:
        return graph
    for node, value in constants.items():
        if isinstance(value, Tensor) and not constants.keys() >= node.users.keys():
            _replace_by_constant(graph, node, value)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _constant_values(graph: torch.fx.GraphModule) -> dict[torch.fx.Node, Any] | None:
    """Return the value of every node that depends on constants alone.

    ``None`` if the graph writes to one of them: it is then no constant.
    """
    constants: dict[torch.fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            constants[node] = getattr(graph, node.target)
        elif _is_constant_call(node, constants):
            if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
                return None
            arguments, options = torch.fx.node.map_arg(
                (node.args, node.kwargs), constants.__getitem__
            )
            constants[node] = node.target(*arguments, **options)
    return constants


def _is_constant_call(node: torch.fx.Node, constants: dict[torch.fx.Node, Any]) -> bool:
    """Return whether a node always computes the same value from known constants."""
    if node.op != "call_function" or not node.all_input_nodes or draws_random_numbers(node):
        return False
    return constants.keys() >= set(node.all_input_nodes)


def _replace_by_constant(graph: torch.fx.GraphModule, node: torch.fx.Node, value: Tensor) -> None:
    """Let the users of a node read a number, or a stored tensor, in its place."""
    with graph.graph.inserting_before(node):
        if _is_uniform(value):
            replacement = graph.graph.call_function(
                torch.ops.aten.full.default,
                (list(value.shape), float(value.flatten()[0])),
                {"dtype": value.dtype, "device": value.device},
            )
        elif node.op == "get_attr":
            return
        else:
            graph.register_buffer(f"folded_{node.name}", value.clone())
            replacement = graph.graph.get_attr(f"folded_{node.name}")
    node.replace_all_uses_with(replacement)


def _is_uniform(value: Tensor) -> bool:
    """Return whether all entries of a floating-point tensor are equal."""
    if not value.numel() or not value.is_floating_point():
        return False
    return bool((value == value.flatten()[0]).all())


def draws_random_numbers(node: torch.fx.Node) -> bool:
    """Return whether the operation of a node draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
