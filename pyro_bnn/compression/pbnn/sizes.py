"""Where the bytes of a compressed file are."""

from __future__ import annotations

from dataclasses import dataclass

from .range_coder import Coder, CostRecorder, information
from .tensor_codes import State

__all__ = ["LayerSize", "SizeMeter", "Sizes"]


@dataclass(frozen=True)
class LayerSize:
    """What a layer takes in a file, in bytes; they are fractions, since an arithmetic code has no borders.

    Attributes:
        name: of the layer.
        numbers: how many numbers its tensors have.
        support: for where its weights are not zero.
        values: for what they are.
        codebook: for the lists of distinct values.
        biases: for all other tensors: biases, scales and statistics of a batch norm.
    """

    name: str
    numbers: int
    support: float
    values: float
    codebook: float
    biases: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.support + self.values + self.codebook + self.biases


@dataclass(frozen=True)
class Sizes:
    """What a file is made of, in bytes.

    Attributes:
        layers: a row for each layer, and for each list of the inputs that are looked at.
        graph: operations, shapes and options.
        header: magic, version and checksum, and the fraction of a byte that is lost at the end of the coded part.
        total: the length of the file.
    """

    layers: tuple[LayerSize, ...]
    graph: float
    header: float
    total: int

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("layer", "numbers", "support", "values", "codebook", "biases", "bytes")
        ]
        for row in self.layers:
            parts = (row.support, row.values, row.codebook, row.biases, row.total)
            rows.append((row.name, str(row.numbers), *(f"{part:.1f}" for part in parts)))
        rows += [
            ("graph", "", "", "", "", "", f"{self.graph:.1f}"),
            ("header", *[""] * 5, f"{self.header:.1f}"),
        ]
        rows.append(
            ("total", str(sum(row.numbers for row in self.layers)), "", "", "", "", str(self.total))
        )
        widths = [max(len(row[column]) for row in rows) for column in range(7)]
        return "\n".join(
            "  ".join(
                [row[0].ljust(widths[0])]
                + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
            )
            for row in rows
        )


class SizeMeter:
    """A coder that keeps accounts of another one: bits by what they are for."""

    def __init__(self) -> None:
        self.coder: Coder = CostRecorder()
        self.state = State()
        self.bits_of: dict[tuple[str, str, str], float] = {}
        self.layer, self.kind = "", ""

    def bit(self, bit: int, probability: int) -> int:
        """Pass on a decision."""
        bit = self.coder.bit(bit, probability)
        self.add(information(bit, probability))
        return bit

    def bits(self, value: int, count: int) -> int:
        """Pass on bits of equal probability."""
        self.add(count)
        return self.coder.bits(value, count)

    def add(self, bits: float) -> None:
        """Count bits for what is being coded."""
        part = self.state.part
        key = (self.layer, self.kind, part) if part != "graph" else ("", "", part)
        self.bits_of[key] = self.bits_of.get(key, 0.0) + bits

    def sizes(self, numbers: dict[str, int], length: int) -> Sizes:
        """Return the account of a file.

        Args:
            numbers: how many numbers each layer has.
            length: of the file, in bytes.
        """
        rows = {
            name: dict.fromkeys(("support", "values", "codebook", "biases"), 0.0)
            for name in numbers
        }
        graph = 0.0
        for (name, kind, part), bits in self.bits_of.items():
            if name:
                rows[name][part if kind == "weight" else "biases"] += bits / 8
            else:
                graph += bits / 8
        layers = tuple(LayerSize(name, numbers[name], **rows[name]) for name in rows)
        return Sizes(layers, graph, length - graph - sum(row.total for row in layers), length)
