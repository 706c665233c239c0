"""Channels: which are constants, which are needed, and which stay or go together.

Every node of a graph in normal form has channels, axis 1 of its output: the units of a dense
layer, the filters of a convolution, and after a flattening blocks of features. This page follows
the channels of a residual block, ``h + conv2(relu(conv1(h)))`` with ``h = stem(x)``, in which most
weights are zero. Below each layer are the channels on which each of its units has a weight::

    x --> stem --+--> conv1 --> relu --> conv2 --> add --> head --> output
                 |                                  ^
                 +----------------------------------+

    unit 0  x         0, 3               0                 0, 2
    unit 1  -         1                  -                 1
    unit 2  x         -                  0
    unit 3  x         -                  -

**Forward: the constants.** A unit without a weight on a channel that varies is a constant: its bias
(stem 1), or its bias plus weight times constant (conv1 1). An activation makes another constant of
it. The sum of two constants is a constant (add 1); that of a constant and a channel that varies is
not (add 3). A ``~`` varies with the input::

    channel     stem    conv1   relu    conv2   add
       0         ~       ~       ~       ~       ~
       1        0.5     -0.2    0.0     0.3     0.8
       2         ~      0.1     0.1      ~       ~
       3         ~      0.1     0.1     0.3      ~

**Backward: the needed channels.** The head needs the channels that it reads, 0 and 2. It does not
need the constant add 1, since 0.8 can be folded into its bias. The addition needs the same channels
of stem and conv2. conv2 0 and 2 need relu 0, relu 0 needs conv1 0, and conv1 0 needs stem 0 and 3.
An ``x`` is needed::

    channel     stem    conv1   relu    conv2   add
       0         x       x       x       x       x
       1         .       .       .       .       .
       2         x       .       .       x       x
       3         x       .       .       .       .

**Spaces: channels that stay or go together.** Channel 3 of the sum is channel 3 of both summands,
and an activation has the channels of its input. These nodes share a :class:`Space`, in which a
channel stays if any node needs it::

    {stem, conv2, add}    0, 2, 3 stay; 1 is removed
    {conv1, relu}         0 stays; 1, 2, 3 are removed

**Result.** The stem has 3 filters instead of 4. conv1 has 1 and reads 3 channels, conv2 has 3 and
reads 1, and the head reads 3.

The forward pass is :func:`~pyro_bnn.compression.pruning.constants.find_constants`, the backward
pass :func:`~pyro_bnn.compression.pruning.needed.mark_needed`. Then
:func:`~pyro_bnn.compression.pruning.shrinking.shrink` cuts the layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from .layers import Affine, channels_in, foldable_constants

__all__ = ["ChannelFlow", "Channels", "EmptyNetworkError", "Space", "folded_constants"]


class EmptyNetworkError(ValueError):
    """Raised for a network whose outputs no longer depend on its inputs: too much was pruned."""


class Space:
    """Channels of several nodes that stay or go together.

    Attributes:
        members: The channels of each node.
        spare: A channel that stays although no node needs it, or ``None``.
    """

    def __init__(self) -> None:
        self.members: list[Channels] = []
        self.spare: int | None = None

    @property
    def keep(self) -> Tensor:
        """Whether each channel stays, because a member needs it, (channels,)."""
        keep = torch.zeros_like(self.members[0].needed)
        for member in self.members:
            keep |= member.needed
        if self.spare is not None:
            keep[self.spare] = True
        return keep

    def merge(self, other: Space) -> None:
        """Take over the members of another space."""
        if other is self:
            return
        for member in other.members:
            member.space = self
        self.members += other.members


@dataclass(eq=False)
class Channels:
    """The channels of the output of one node.

    Attributes:
        constant: The value of each channel that is a constant, NaN for others, float64 (channels,).
        rank: The number of axes of the output, batch included; ``None`` where it is unknown and the
            channels are the last axis.
        space: The channels that stay or go with these.
        needed: Whether each channel changes the output of the network, (channels,).
    """

    constant: Tensor
    rank: int | None
    space: Space
    needed: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.needed = torch.zeros_like(self.constant, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.constant)

    @property
    def is_constant(self) -> Tensor:
        """Whether each channel is a constant, (channels,)."""
        return ~self.constant.isnan()


class ChannelFlow:
    """The channels of all nodes of a graph in normal form.

    Attributes:
        module: The graph, as :func:`~pyro_bnn.compression.pruning.graph.graph_of` returns it.
        channels: The channels of every node that can be shrunk. Any other node keeps its size,
            as do the channels that it reads.
        inputs: The nodes whose channels are features of the input.
        notes: A sentence for each layer that is not cut, and for each constant channel that stays.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.channels: dict[fx.Node, Channels] = {}
        self.inputs: list[fx.Node] = []
        self.notes: list[str] = []

    def add(self, node: fx.Node, channels: Channels) -> None:
        """Record the channels of a node."""
        channels.space.members.append(channels)
        self.channels[node] = channels

    def source(self, node: fx.Node) -> Channels | None:
        """Return the channels of the first argument of a node, ``None`` where it has none."""
        if not node.args or not isinstance(node.args[0], fx.Node):
            return None
        return self.channels.get(node.args[0])

    def sources(self, node: fx.Node) -> list[Channels]:
        """Return the channels of all nodes that a node reads and that have some."""
        sources = []
        for before in node.all_input_nodes:
            if before in self.channels:
                sources.append(self.channels[before])
        return sources


def folded_constants(layer: Affine, source: Channels | None) -> Tensor:
    """Return the constants to fold into the bias of a layer, NaN for its other inputs, (channels,).

    A layer whose input has no known channels reads as many as it has inputs, all of which vary.
    """
    if source is None:
        return layer.weight.new_full((channels_in(layer),), torch.nan, dtype=torch.float64)
    return foldable_constants(layer, source.constant)
