"""One normal form for feed-forward networks: the same few operations, however they were written.

``F.relu(x)``, ``x.relu_()`` and ``nn.ReLU()`` are one operation; so are ``x.view(len, -1)``,
``x.flatten(1)`` and ``nn.Flatten()``. Shrinking, the file format and the export to ONNX read graphs
in normal form only.
"""

from __future__ import annotations

import copy

from torch import fx, nn

from .normal_form import Step, normal_call, normal_layer

__all__ = ["UnsupportedLayerError", "graph_of"]


class UnsupportedLayerError(ValueError):
    """Raised for a network, or a node of its graph, that does not have the required form."""


def graph_of(net: nn.Module) -> fx.GraphModule:
    """Return a copy of a network, in evaluation mode, as a graph in normal form.

    Submodules, and so parameters, keep their names. The first axis of every tensor is the batch.
    The nodes are:

    * one placeholder and one output, a tensor;
    * ``call_module`` of ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, ``nn.BatchNorm1d`` and
      ``nn.BatchNorm2d``;
    * ``call_function`` of ``torch.relu(x)``, ``torch.tanh(x)``, ``torch.sigmoid(x)``,
      ``F.silu(x)``, ``F.gelu(x, approximate=)``, ``F.leaky_relu(x, slope)``, ``F.elu(x, alpha=)``
      and ``F.softplus(x, beta=, threshold=)``;
    * ``F.max_pool2d(x, kernel_size=, stride=, padding=, dilation=, ceil_mode=)``,
      ``F.avg_pool2d(x, kernel_size=, stride=, padding=, ceil_mode=, count_include_pad=,
      divisor_override=)``, and the same in one dimension (without ``divisor_override``), all with
      tuples; ``F.adaptive_avg_pool1d(x, size)`` and ``F.adaptive_avg_pool2d(x, size)``;
    * ``torch.flatten(x, start, end)``, ``torch.reshape(x, (-1, ...))`` and
      ``torch.mean(x, dims, keepdim=)``;
    * ``torch.add(a, b)``, and ``torch.index_select(x, 1, buffer)`` with a ``get_attr`` node that
      reads the buffer.

    Dropout and identities are removed. Any other operation stays in the graph as it was, and runs.

    Args:
        net: A module with one input whose control flow does not depend on data.

    Raises:
        UnsupportedLayerError: If the network cannot be traced, has several inputs, or does not
            return a tensor.
    """
    root = copy.deepcopy(net).eval()
    name = type(net).__name__
    tracer = fx.Tracer()
    try:
        graph = tracer.trace(root)
    except Exception as error:
        raise UnsupportedLayerError(
            f"{name}: expected a network that torch.fx can trace, got {type(error).__name__}: "
            f"{error}; write it without control flow that depends on data (x.shape[0] instead of "
            "len(x), nn.Sequential ...)"
        ) from error
    sizes: set[fx.Node] = set()
    for node in list(graph.nodes):
        if _is_size(node, sizes):
            sizes.add(node)
        else:
            _rewrite(graph, node, tracer.root, sizes)
    # Only sizes that no node reads are removed: an operation in place may have no reader at all.
    graph.eliminate_dead_code(lambda node: node not in sizes)
    _require_one_input(graph, name)
    _require_one_output(graph, name)
    return fx.GraphModule(tracer.root, graph, name).eval()


def _is_size(node: fx.Node, sizes: set[fx.Node]) -> bool:
    """Return whether a node is a number such as ``x.size(0)``, or computed from one."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel"):
        return True
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    sources = node.all_input_nodes
    return len(sources) > 0 and sources[0] in sizes


def _require_one_input(graph: fx.Graph, name: str) -> None:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for extra in inputs[1:]:
        is_unused_option = bool(extra.args) and not extra.users
        if is_unused_option:
            graph.erase_node(extra)
            inputs.remove(extra)
    if len(inputs) != 1:
        raise UnsupportedLayerError(
            f"{name}: expected a network with one input, got {len(inputs)}; wrap it in a "
            "module with one input"
        )


def _require_one_output(graph: fx.Graph, name: str) -> None:
    result = graph.output_node().args[0]
    if not isinstance(result, fx.Node):
        raise UnsupportedLayerError(
            f"{name}: expected a network that returns one tensor, got {result!r}; wrap it in a "
            "module that returns one tensor"
        )


# --- rewriting ---


def _rewrite(graph: fx.Graph, node: fx.Node, root: nn.Module, sizes: set[fx.Node]) -> None:
    """Replace a node by its normal form, if it has one."""
    if not node.args:
        return
    x = node.args[0]
    if not isinstance(x, fx.Node) or x in sizes:
        return
    step = _step(root, node)
    if step is None:
        return
    if step.in_place:
        _read_result_instead(x, node)
    if step.function is None:
        node.replace_all_uses_with(x)
    else:
        with graph.inserting_before(node):
            new = graph.call_function(step.function, (x, *step.args), step.kwargs)
        node.replace_all_uses_with(new)
    graph.erase_node(node)


def _step(root: nn.Module, node: fx.Node) -> Step | None:
    if node.op == "call_module":
        return normal_layer(root.get_submodule(str(node.target)))
    if node.op in ("call_function", "call_method"):
        return normal_call(node)
    return None


def _read_result_instead(x: fx.Node, node: fx.Node) -> None:
    """Let all later nodes that read x, which a node overwrites, read the result of that node."""
    nodes = list(node.graph.nodes)
    later = set(nodes[nodes.index(node) + 1 :])
    x.replace_all_uses_with(node, delete_user_cb=lambda user: user in later)
