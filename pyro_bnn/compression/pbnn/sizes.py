"""The size of a compressed file, by layers and by the kind of content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pyro_bnn.runtime.text_table import format_table

from .forms import Section, State
from .range_coder import Coder, information

__all__ = ["LayerSize", "SizeMeter", "Sizes"]


@dataclass(frozen=True)
class LayerSize:
    """The size of a layer in a file, in bytes.

    Sizes are fractions, because an arithmetic code has no byte boundaries between its parts.

    Attributes:
        name: Name of the layer.
        numbers: How many numbers its tensors have, zeros included.
        positions: Bytes for the positions of the nonzero weights.
        values: Bytes for their values.
        codebook: Bytes for the lists of distinct values.
        biases: Bytes for all other tensors: biases, scales and statistics of a batch norm.
    """

    name: str
    numbers: int
    positions: float
    values: float
    codebook: float
    biases: float

    @property
    def total(self) -> float:
        """Bytes in all."""
        return self.positions + self.values + self.codebook + self.biases


@dataclass(frozen=True)
class Sizes:
    """The size of a file, in bytes.

    Attributes:
        layers: One entry per layer, and one per selection of inputs.
        graph: Bytes for operations, shapes and options.
        header: Bytes for magic, version and checksum, and the fraction of a byte that is lost at
            the end of the coded part.
        total: The length of the file.
    """

    layers: tuple[LayerSize, ...]
    graph: float
    header: float
    total: int

    def __str__(self) -> str:
        titles = ("layer", "numbers", "positions", "values", "codebook", "biases", "bytes")
        rows = []
        numbers = 0
        for layer in self.layers:
            sizes = (layer.positions, layer.values, layer.codebook, layer.biases, layer.total)
            rows.append((layer.name, str(layer.numbers), *[f"{size:.1f}" for size in sizes]))
            numbers += layer.numbers
        empty = [""] * 4
        rows.append(("graph", "", *empty, f"{self.graph:.1f}"))
        rows.append(("header", "", *empty, f"{self.header:.1f}"))
        rows.append(("total", str(numbers), *empty, str(self.total)))
        return format_table(titles, rows)


class _Account(NamedTuple):
    """The layer, the kind of tensor and the section to which bits are charged."""

    layer: str
    kind: str
    section: Section


class SizeMeter:
    """Wrap another coder and count its bits by layer, kind of tensor and section.

    Args:
        coder: The coder that does the work.
        state: State of the file that is coded.

    Attributes:
        layer: Name of the present layer.
        kind: Kind of the present tensor; see :class:`.forms.Matrix`.
    """

    def __init__(self, coder: Coder, state: State) -> None:
        self._coder, self._state = coder, state
        self._bits: dict[_Account, float] = {}
        self.layer, self.kind = "", ""

    def bit(self, bit: int, probability: int) -> int:
        """Code one bit; see :class:`.range_coder.Coder`."""
        bit = self._coder.bit(bit, probability)
        self.add(information(bit, probability))
        return bit

    def bits(self, value: int, count: int) -> int:
        """Code bits of equal probability; see :class:`.range_coder.Coder`."""
        self.add(count)
        return self._coder.bits(value, count)

    def add(self, bits: float) -> None:
        """Charge bits to the present layer, tensor and section."""
        account = _Account(self.layer, self.kind, self._state.section)
        if account.section == "graph":
            account = _Account("", "", "graph")
        self._bits[account] = self._bits.get(account, 0.0) + bits

    def sizes(self, numbers: Mapping[str, int], length: int) -> Sizes:
        """Return the sizes of a file that was coded to its end.

        Args:
            numbers: How many numbers each layer has.
            length: Length of the file in bytes.
        """
        graph = 0.0
        layer_bytes: dict[tuple[str, str], float] = {}
        for account, bits in self._bits.items():
            column: str = account.section
            if column == "graph":
                graph += bits / 8
                continue
            if account.kind != "weight":
                column = "biases"
            key = account.layer, column
            layer_bytes[key] = layer_bytes.get(key, 0.0) + bits / 8
        layers = []
        for name, count in numbers.items():
            columns = ("positions", "values", "codebook", "biases")
            sizes = [layer_bytes.get((name, column), 0.0) for column in columns]
            layers.append(LayerSize(name, count, *sizes))
        header = length - graph - sum(layer.total for layer in layers)
        return Sizes(tuple(layers), graph, header, length)
