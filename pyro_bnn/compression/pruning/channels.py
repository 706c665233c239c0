"""What the zeros of a network mean for its channels: which are constant, and which does nobody read.

Every node of a graph in normal form has channels, its axis 1: units, filters, and after a flatten blocks of features.
One pass forward finds the channels that do not depend on the input, and their values; one pass backward the channels
whose value matters. Channels that must stay or go together, as on both sides of an addition, share a :class:`Space`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .layers import (
    AVG_POOLS,
    CONVOLUTIONS,
    MAX_POOLS,
    NORMALISATIONS,
    channels_in,
    constants_out,
    foldable,
    is_depthwise,
    is_norm,
    normalised,
    pads_zeros,
    pool_keeps_constants,
    positions,
    reads,
    scale,
    selected,
    tensors,
)

__all__ = ["Analysis", "Channels", "EmptyNetworkError", "Space"]

_POINTWISE = (
    torch.relu,
    torch.tanh,
    torch.sigmoid,
    F.silu,
    F.gelu,
    F.leaky_relu,
    F.elu,
    F.softplus,
)
_ADAPTIVE_POOLS = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)


class EmptyNetworkError(ValueError):
    """A network of which nothing is left: its outputs no longer depend on its inputs."""


@dataclass(eq=False)
class Channels:
    """The channels of the output of one node.

    Attributes:
        constant: the value of each channel where it is a constant, else nan; float64 (channels,).
        needed: whether the value of a channel matters to anyone (channels,).
        rank: the axes of the output, batch included; ``None`` where it is unknown and the channels are the last axis.
        space: the channels that stay and go with these.
    """

    constant: Tensor
    needed: Tensor
    rank: int | None
    space: Space


class Space:
    """Channels of several nodes that stay or go together."""

    def __init__(self) -> None:
        self.members: list[Channels] = []
        self.spare: int | None = None

    @property
    def keep(self) -> Tensor:
        """Whether each channel stays: someone needs it (channels,)."""
        keep = torch.stack([member.needed for member in self.members]).any(0)
        if self.spare is not None:
            keep[self.spare] = True
        return keep

    def merge(self, other: Space) -> None:
        """Take over the members of another space."""
        if other is not self:
            for member in other.members:
                member.space = self
            self.members += other.members


class Analysis:
    """What is constant and what is needed in a graph in normal form.

    Args:
        module: as :func:`~pyro_bnn.compression.pruning.graph.graph_of` returns it.
        keep_inputs: whether all input features stay.

    Attributes:
        channels: of every node that can be shrunk; a node without is left whole, and so is what it reads.
        inputs: the nodes whose channels are features of the input.
        notes: a sentence per layer left whole, and per channel that is kept although it is a constant.

    Raises:
        EmptyNetworkError: the outputs do not depend on the inputs.
    """

    def __init__(self, module: fx.GraphModule, keep_inputs: bool = False) -> None:
        self.module, self.notes = module, list[str]()
        self.channels: dict[fx.Node, Channels] = {}
        self.inputs: list[fx.Node] = []
        nodes = list(module.graph.nodes)
        self._calls = Counter(node.target for node in nodes if node.op == "call_module")
        self._owners = Counter(
            id(tensor) for layer in module.modules() for tensor in tensors(layer)
        )
        for node in nodes:
            self._forward(node)
        self._require_an_output_that_varies(nodes)
        for root in self.inputs:
            self.channels[root].needed[:] = keep_inputs
        for node in reversed(nodes):
            self._backward(node)
        for node in nodes:
            self._spare(node)
            self._note(node)

    def source(self, node: fx.Node) -> Channels | None:
        """Return the channels that a node reads first, where it is known what they are."""
        first = node.args[0] if node.args else None
        return self.channels.get(first) if isinstance(first, fx.Node) else None

    # --- forward: what is constant ------------------------------------------------------------------------------------

    def _forward(self, node: fx.Node) -> None:
        found = self._output(node)
        if found is None:
            return
        constant, rank, space = found
        if any(self._overwrites(user) for user in node.users):
            constant = torch.full_like(constant, torch.nan)
        own = Channels(constant, torch.zeros_like(constant, dtype=torch.bool), rank, space)
        space.members.append(own)
        self.channels[node] = own

    def _output(self, node: fx.Node) -> tuple[Tensor, int | None, Space] | None:
        """Return constants, rank and space of what a node puts out; nothing where it is left whole."""
        if node.op == "placeholder" or (
            node.op == "call_function" and self._is_view_of_input(node)
        ):
            return self._input(node, self._width(node))
        source = self.source(node)
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            reason = self._reason_to_leave(node, layer, source)
            if reason:
                self.notes += (
                    [f"{node.target} is left whole: {reason}"] if source or tensors(layer) else []
                )
                return None
            if source is not None and is_norm(layer):
                return normalised(layer, source.constant), source.rank, source.space
            return self._of_affine(layer, source)
        if node.op not in ("call_function", "call_method"):
            return None
        if node.target is torch.index_select and self._is_selection(node):
            index = selected(self.module, node)
            if source is None:
                return self._input(node, len(index))
            return (
                source.constant[index // positions(node.args[0], len(source.constant))],
                2,
                Space(),
            )
        found = self._of_function(node, source) if source else None
        if found is None:
            self._note_opaque(node)
        return found

    def _note_opaque(self, node: fx.Node) -> None:
        """Say what a function or a method that is not of the normal form keeps whole."""
        name = (
            node.target
            if isinstance(node.target, str)
            else getattr(node.target, "__name__", node.name)
        )
        parts = [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
        parts += [
            _layer_before(source) for source in node.all_input_nodes if source in self.channels
        ]
        if parts:
            self.notes.append(
                f"{', '.join(parts)} stays whole: {name}() is not a step that can be shrunk"
            )

    def _input(self, node: fx.Node, width: int | None) -> tuple[Tensor, int | None, Space] | None:
        if width is None:
            return None
        self.inputs.append(node)
        device = next(tensor.device for layer in self.module.modules() for tensor in tensors(layer))
        return torch.full((width,), torch.nan, dtype=torch.float64, device=device), 2, Space()

    def _of_affine(self, layer: Any, source: Channels | None) -> tuple[Tensor, int | None, Space]:
        constant = constants_out(layer, self.folded(layer, source))
        rank = (
            CONVOLUTIONS[type(layer)][0]
            if type(layer) in CONVOLUTIONS
            else source.rank
            if source
            else None
        )
        return constant, rank, source.space if source and is_depthwise(layer) else Space()

    def _of_function(self, node: Any, source: Channels) -> tuple[Tensor, int | None, Space] | None:
        constant, rank, space = source.constant, source.rank, source.space
        target = node.target
        if target in _POINTWISE:
            return target(constant, *node.args[1:], **node.kwargs), rank, space
        if target is torch.add:
            return self._of_addition(node, source)
        if rank is None:
            return None
        if target in MAX_POOLS or target in AVG_POOLS:
            exact = pool_keeps_constants(node)
            return torch.where((constant == 0) | exact, constant, torch.nan), rank, space
        if target is torch.mean:
            dims = {dim % rank for dim in node.args[1]}
            left = rank if node.kwargs.get("keepdim") else rank - len(dims)
            return (constant, left, space) if min(dims) >= 2 else None
        if target in _ADAPTIVE_POOLS:
            return constant, rank, space
        if target is torch.flatten:
            start, end = (dim % rank for dim in node.args[1:])
            return (
                (constant, rank - (end - start), space)
                if start >= 1 and (start > 1 or end == rank - 1)
                else None
            )
        if target is torch.reshape:
            shape = node.args[1]
            return (
                (constant, 2, space) if len(shape) == 2 and shape[1] % len(constant) == 0 else None
            )
        return None

    def _of_addition(self, node: Any, one: Channels) -> tuple[Tensor, int | None, Space] | None:
        other = self.channels.get(node.args[1])
        if other is None or other.rank != one.rank or len(other.constant) != len(one.constant):
            return None
        one.space.merge(other.space)
        return one.constant + other.constant, one.rank, one.space

    def _require_an_output_that_varies(self, nodes: list[fx.Node]) -> None:
        depends: dict[
            fx.Node, Tensor
        ] = {}  # which channels depend on the input; a constant may differ by position
        emptied = None
        for node in nodes:
            depends[node] = self._dependent(node, depends)
            if (
                any(bool(depends[source].any()) for source in node.all_input_nodes)
                and not depends[node].any()
            ):
                emptied = emptied or node.target
        if not depends[nodes[-1]].any():
            raise EmptyNetworkError(
                f"{emptied}: no unit of this layer depends on the inputs any more, so the network is a constant; "
                "prune less (another threshold), or train with a KL term that sets in later and stops earlier"
            )

    def _dependent(self, node: fx.Node, depends: dict[fx.Node, Tensor]) -> Tensor:
        """Return which channels of a node depend on the input; all or none where its channels are not known."""
        own = self.channels.get(node)
        if own is None:
            found = node.op == "placeholder" or any(
                bool(depends[source].any()) for source in node.all_input_nodes
            )
            return torch.tensor(found)
        if node in self.inputs:
            return own.constant.isnan()
        before = depends[node.all_input_nodes[0]]
        if node.target is torch.index_select:
            return before[selected(self.module, node) // positions(node.args[0], len(before))]
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            if is_norm(layer):
                return before & (scale(layer) != 0)
            weights = reads(layer, channels_in(layer) if self.source(node) is None else len(before))
            return (weights & before).any(1)
        return before | depends[node.all_input_nodes[-1]] if node.target is torch.add else before

    # --- backward: what is needed -------------------------------------------------------------------------------------

    def _backward(self, node: fx.Node) -> None:
        own = self.channels.get(node)
        sources = [
            self.channels[source] for source in node.all_input_nodes if source in self.channels
        ]
        if own is None:
            for source in sources:
                source.needed[:] = True
            return
        layer = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        for source in sources if node not in self.inputs else []:
            if node.target is torch.index_select:
                index = selected(self.module, node)[own.needed]
                source.needed[index // positions(node.args[0], len(source.constant))] = True
            elif layer is None:
                source.needed |= own.needed
            elif is_norm(layer):
                source.needed |= own.needed & (scale(layer) != 0)
            else:
                read = reads(layer, len(source.needed))[own.needed].any(0)
                source.needed |= read & foldable(layer, source.constant).isnan()

    def folded(self, layer: Any, source: Channels | None) -> Tensor:
        """Return the constants that a layer can take into its bias, nan for the other channels it reads (channels,)."""
        if source is None:
            return layer.weight.new_full((channels_in(layer),), torch.nan, dtype=torch.float64)
        return foldable(layer, source.constant)

    # --- what to say, and what to leave -------------------------------------------------------------------------------

    def _note(self, node: fx.Node) -> None:
        """Say which channels stay although they are constants, or although nobody needs them."""
        own = self.channels.get(node)
        source = self.source(node)
        if own is None or source is None:
            return
        layer: Any = (
            self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        )
        constant, why = ~source.constant.isnan(), ""
        if layer is not None and not is_norm(layer) and pads_zeros(layer):
            read = reads(layer, len(source.needed))[own.needed].any(0)
            constant &= foldable(layer, source.constant).isnan() & read
            why = "its zero padding would change a constant at the border"
        elif node.target in AVG_POOLS:
            constant &= own.constant.isnan()
            why = "it counts the zeros of its padding, which changes a constant at the border"
        elif node.target is torch.add:
            known = torch.stack(
                [~self.channels[other].constant.isnan() for other in node.all_input_nodes]
            )
            constant, why = known.any(0) & ~known.all(0), "a constant is added to what varies"
        kept = constant & source.needed if why else torch.zeros_like(constant)
        if kept.any():
            which = ", ".join(map(str, kept.nonzero().flatten().tolist()))
            self.notes.append(
                f"{_name(node)} keeps constant channels of its input ({which}): {why}"
            )

    def _spare(self, node: fx.Node) -> None:
        """Keep one channel where nobody needs any: a layer without channels does not run."""
        own = self.channels.get(node)
        if own is not None and not own.space.keep.any():
            own.space.spare = 0
            self.notes.append(
                f"{_name(node)} keeps one channel, though nobody needs it: the network goes on around it"
            )

    def _reason_to_leave(self, node: fx.Node, layer: Any, source: Channels | None) -> str:
        kind = type(layer)
        if kind not in (nn.Linear, *CONVOLUTIONS, *NORMALISATIONS):
            return f"a {kind.__name__} is not a layer that can be shrunk"
        if layer._forward_hooks or layer._forward_pre_hooks:
            return "it has hooks"
        if self._calls[node.target] > 1:
            return "it is called more than once"
        if any(self._owners[id(tensor)] > 1 for tensor in tensors(layer)):
            return "another layer has the same weights"
        if source is None:
            known = kind is nn.Linear or getattr(layer, "groups", 2) == 1
            return "" if known else "what it reads is left whole"
        number, rank = len(source.constant), source.rank
        if kind in NORMALISATIONS:
            if layer.running_mean is None:
                return "it has no running statistics"
            return (
                ""
                if layer.num_features == number and rank in NORMALISATIONS[kind]
                else "its input is not channels"
            )
        if kind is nn.Linear:
            blocks = (
                layer.in_features % number == 0
                if rank == 2
                else rank is None and layer.in_features == number
            )
            return "" if blocks else "it does not read flattened channels"
        if rank not in CONVOLUTIONS[kind] or layer.in_channels != number:
            return "its input is not channels"
        return "" if layer.groups == 1 or is_depthwise(layer) else "its channels are in groups"

    def _overwrites(self, node: fx.Node) -> bool:
        """Return whether an operation that is not of the normal form writes into its input."""
        if node.op == "call_module":
            return bool(getattr(self.module.get_submodule(str(node.target)), "inplace", False))
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))

    # --- the input ----------------------------------------------------------------------------------------------------

    def _is_view_of_input(self, node: Any) -> bool:
        """Return whether a node is the input of the network in another shape."""
        if node.op == "placeholder":
            return True
        shapes = (
            node.target is torch.flatten and node.args[1:] == (1, -1)
        ) or node.target is torch.reshape
        return shapes and node.args[0] not in self.channels and self._is_view_of_input(node.args[0])

    def _is_selection(self, node: fx.Node) -> bool:
        """Return whether a node takes features, by a buffer of its own, out of the input or of flattened channels."""
        data: Any = node.args[0]
        index: Any = node.args[2]
        if node.args[1] != 1 or index.op != "get_attr" or len(index.users) != 1:
            return False
        return (
            data.target is torch.reshape if data in self.channels else self._is_view_of_input(data)
        )

    def _width(self, node: fx.Node) -> int | None:
        """Return how many features the dense layers that read a view of the input expect; none if others read it."""
        widths: set[int | None] = set()
        for user in node.users:
            layer = (
                self.module.get_submodule(str(user.target)) if user.op == "call_module" else None
            )
            if isinstance(layer, nn.Linear):
                widths.add(layer.in_features)
            elif isinstance(layer, nn.BatchNorm1d):
                widths.add(layer.num_features)
            else:
                widths.add(self._width(user) if user.target in (*_POINTWISE, torch.add) else None)
        return widths.pop() if len(widths) == 1 else None


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _layer_before(node: fx.Node) -> str:
    """Return the name of the layer that a node has its channels from."""
    while node.op not in ("call_module", "placeholder"):
        node = node.all_input_nodes[0]
    return str(node.target) if node.op == "call_module" else "the input"
