"""A pruned network: the smaller module, and the positions of its numbers in the original."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pyro_bnn.runtime.text_table import format_table

from .shrinking import Shrunk

__all__ = ["LayerReport", "Pruned", "assemble", "block_of"]


@dataclass(frozen=True)
class LayerReport:
    """The size of one weight tensor, before and after pruning.

    Attributes:
        name: The name of the weight.
        shape: Its shape in the original network.
        kept: The number of nonzero weights in the smaller network.
        total: The number of weights in the original network.
        new_shape: Its shape in the smaller network.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    total: int
    new_shape: tuple[int, ...]

    @property
    def sparsity(self) -> float:
        """The fraction of weights that are zero or removed."""
        return 1 - self.kept / self.total


@dataclass(frozen=True)
class Pruned:
    """A pruned network.

    Attributes:
        module: The smaller network, at the posterior means, with zeros for single pruned weights.
        masks: A mask for each uncertain weight, at its original size, ``True`` where the weight is
            nonzero in ``module``.
        groups: A mask for each weight under a group prior, ``True`` for the groups that were not
            pruned.
        report: A row per uncertain weight.
        masked: The original network at full size with zeros in it: the same function.
        kept: The remaining indices of the original, for each parameter and buffer of ``module`` and
            each of its axes.
        variances: The posterior variance of each uncertain weight, cut to the size that it has in
            ``module``; empty where it is unknown.
        notes: A sentence for each layer that could not be made smaller, with the reason.
    """

    module: nn.Module
    masks: dict[str, Tensor]
    groups: dict[str, Tensor]
    report: list[LayerReport]
    masked: nn.Module
    kept: dict[str, tuple[Tensor, ...]]
    variances: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def dense(self) -> int:
        """The number of weights in the smaller network, zeros included."""
        return sum(math.prod(layer.new_shape) for layer in self.report)

    @property
    def ratio(self) -> float:
        """The number of original weights over the number of nonzero weights."""
        nonzero = sum(layer.kept for layer in self.report)
        if nonzero == 0:
            return math.inf
        return self._total / nonzero

    @property
    def dense_ratio(self) -> float:
        """The number of original weights over the number of weights in the smaller network."""
        return self._total / self.dense

    @property
    def _total(self) -> int:
        return sum(layer.total for layer in self.report)

    @property
    def architecture(self) -> str:
        """The filters of each convolution and the inputs of each dense layer, as published.

        For example, ``"278-98-13"`` is LeNet-300-100 with 278, 98 and 13 inputs of its layers.
        """
        sizes = []
        for layer in self.module.modules():
            if isinstance(layer, nn.Linear):
                sizes.append(str(layer.in_features))
            elif isinstance(layer, nn.modules.conv._ConvNd):
                sizes.append(str(layer.out_channels))
        return "-".join(sizes)

    @torch.no_grad()
    def with_values(self, values: Mapping[str, Tensor]) -> Pruned:
        """Return the same network with other values: rounded, quantized or fine-tuned ones.

        Args:
            values: The new values of parameters or buffers of ``module`` by name, of the same
                shapes.

        Raises:
            ValueError: If ``module`` has no tensor of a name, or one of another shape.
        """
        module = copy.deepcopy(self.module)
        state = module.state_dict()
        for name, value in values.items():
            if name not in state:
                raise ValueError(
                    f"with_values: {name!r}: expected one of {', '.join(state)}, got a name that "
                    "the pruned network does not have"
                )
            if state[name].shape != value.shape:
                raise ValueError(
                    f"with_values: {name!r}: expected {tuple(state[name].shape)}, the shape in "
                    f"the pruned network, got {tuple(value.shape)}"
                )
            state[name].copy_(value)
        shrunk = Shrunk(module, self.kept, self.notes)
        return assemble(shrunk, self.masked, self.masks, self.groups, self.variances)

    def __str__(self) -> str:
        header = ("weight", "shape", "pruned shape", "nonzero", "of", "sparsity")
        rows = []
        for layer in self.report:
            shapes = (_shape_text(layer.shape), _shape_text(layer.new_shape))
            rows.append((layer.name, *shapes, layer.kept, layer.total, f"{layer.sparsity:.1%}"))
        lines = [
            format_table(header, rows),
            f"{self.ratio:.1f} times fewer weights that are not zero",
            f"{self.dense_ratio:.1f} times fewer weights in the smaller network, "
            f"{self.architecture}",
            *self.notes,
        ]
        return "\n".join(lines)


def assemble(
    shrunk: Shrunk,
    original: nn.Module,
    masks: Mapping[str, Tensor],
    groups: dict[str, Tensor],
    variances: dict[str, Tensor],
) -> Pruned:
    """Return the record of a smaller network, with masks and report read off its values.

    Args:
        shrunk: The smaller network.
        original: The network at full size, or another one of the same shapes.
        masks: A mask of the original shape for each uncertain weight.
        groups: The groups that were not pruned, as in :class:`Pruned`.
        variances: The variances of the remaining weights, as in :class:`Pruned`.
    """
    state = shrunk.module.state_dict()
    nonzero, report = {}, []
    for name, mask in masks.items():
        nonzero[name] = torch.zeros_like(mask)
        nonzero[name][block_of(shrunk.kept[name])] = state[name] != 0
        shapes = tuple(mask.shape), tuple(state[name].shape)
        report.append(
            LayerReport(
                name,
                shape=shapes[0],
                kept=int(nonzero[name].sum()),
                total=mask.numel(),
                new_shape=shapes[1],
            )
        )
    return Pruned(
        module=shrunk.module,
        masks=nonzero,
        groups=groups,
        report=report,
        masked=_at_full_size(original, shrunk),
        kept=shrunk.kept,
        variances=variances,
        notes=shrunk.notes,
    )


@torch.no_grad()
def _at_full_size(original: nn.Module, shrunk: Shrunk) -> nn.Module:
    """Return a copy of the original network with the values of the smaller one, zeros elsewhere."""
    full = copy.deepcopy(original)
    state: dict[str, Tensor] = full.state_dict(keep_vars=True)
    for name, value in shrunk.module.state_dict().items():
        path, _, attribute = name.rpartition(".")
        if name not in state and attribute == "bias":
            # the layer has a bias since constants were folded into it
            weight = state[f"{name.removesuffix('bias')}weight"]
            bias = nn.Parameter(value.new_zeros(len(weight)))
            full.get_submodule(path).register_parameter("bias", bias)
            state[name] = bias
        if name not in state:
            continue
        if not attribute.startswith("running_"):
            state[name].data.zero_()
        state[name].data[block_of(shrunk.kept[name])] = value
    return full


def block_of(kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the indices of the block of a tensor that remains, from those of each axis."""
    if not kept:
        return ()
    return torch.meshgrid(*kept, indexing="ij")


def _shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
