"""The report of a compression: a row per layer, and every compression rate under its own name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_bnn.runtime.text_table import Cell, format_markdown_table, format_table

from .latency import Latency, macs, readable
from .pbnn.sizes import Sizes
from .pruning.pruned_network import Pruned
from .quantization.codebooks import layer_name
from .quantization.precision import bits_per_layer
from .rates import (
    csr_rate,
    fast_prediction_rate,
    maximum_compression_rate,
    starred_pruning_rate,
)

__all__ = ["Layer", "Report", "report_on"]

_FILE_RATE = "4 bytes per original weight / bytes of the file"
_INPUTS = "inputs that are read"
_INDEX_BITS = 5  # of the distance between nonzero weights, as in Han et al. for dense layers


@dataclass(frozen=True)
class Layer:
    """One weight tensor, before and after compression.

    Attributes:
        name: Name of the weight.
        shape: Shape in the original network.
        new_shape: Shape in the smaller network.
        kept: Number of nonzero weights.
        values: Number of distinct values among these.
        bits: Bits per weight in fixed point, by the published rule from the posterior variances;
            ``None`` if they are not known.
        bytes: Bytes in the file, with the layer's biases and codebooks. A fraction, because an
            arithmetic code has no byte boundaries. ``None`` if no file was written.
        macs: Multiply-accumulates per example in the original network.
        new_macs: Multiply-accumulates per example in the smaller network.
    """

    name: str
    shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    kept: int
    values: int
    bits: int | None
    bytes: float | None
    macs: int
    new_macs: int


class Macs(NamedTuple):
    """Multiply-accumulates per example."""

    before: int
    after: int


class _Table(NamedTuple):
    """A table of a report."""

    header: Sequence[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Report:
    """The result of a compression.

    Attributes:
        layers: One entry per weight tensor.
        architecture: Remaining filters and inputs, in the notation of published tables.
        weights: Number of weights of the original network, biases not counted.
        rates: Compression rates, by the name of what is counted.
        file_bytes: Size of the whole file; ``None`` if no file was written.
        other_bytes: Bytes of the file that belong to no layer, by name: graph, header, selections.
        errors: Fraction of test examples that each network gets wrong.
        latencies: Measured latencies.
        notes: Further remarks.
    """

    layers: list[Layer]
    architecture: str
    weights: int
    rates: dict[str, float]
    file_bytes: int | None = None
    other_bytes: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    latencies: list[Latency] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def macs(self) -> Macs:
        """Multiply-accumulates per example, before and after."""
        before = sum(layer.macs for layer in self.layers)
        after = sum(layer.new_macs for layer in self.layers)
        return Macs(before, after)

    def __str__(self) -> str:
        tables = [format_table(table.header, table.rows) for table in self._tables()]
        return "\n\n".join([*tables, "\n".join(self._closing_lines())])

    def to_markdown(self) -> str:
        """Return the report as Markdown tables."""
        title = f"# Compression of {self.weights:,} weights"
        tables = [format_markdown_table(table.header, table.rows) for table in self._tables()]
        return "\n\n".join([title, *tables, *self._closing_lines()]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return the report as a dictionary for JSON."""
        latencies = []
        for latency in self.latencies:
            latencies.append(asdict(latency) | {"speedup": latency.speedup})
        return asdict(self) | {"macs": self.macs._asdict(), "latencies": latencies}

    def _tables(self) -> Iterator[_Table]:
        yield self._layer_table()
        rates: list[list[Cell]] = [[name, f"{rate:,.1f}"] for name, rate in self.rates.items()]
        yield _Table(("times smaller, counted as", "rate"), rates)
        if self.errors:
            errors: list[list[Cell]] = []
            for name, error in self.errors.items():
                errors.append([name, f"{error:.2%}"])
            yield _Table(("network", "test error"), errors)
        if self.latencies:
            header = ("runtime", "threads", "batch", "before", "after", "times as fast", "layouts")
            yield _Table(header, [_latency_row(latency) for latency in self.latencies])

    def _layer_table(self) -> _Table:
        """Return a row per layer, then the other bytes of the file, then totals."""
        sizes = ("before", "after", "kept", "values", "bits", "bytes")
        header = ("weight", *sizes, "MACs", "MACs after")
        rows: list[list[Cell]] = []
        kept = dense = 0
        for layer in self.layers:
            kept += layer.kept
            dense += math.prod(layer.new_shape)
            row: list[Cell] = [layer.name, _by(layer.shape), _by(layer.new_shape)]
            row += [layer.kept, layer.values, layer.bits, _one_decimal(layer.bytes)]
            rows.append([*row, layer.macs, layer.new_macs])
        for name, count in self.other_bytes.items():
            rows.append([name, "", "", "", "", "", _one_decimal(count), "", ""])
        total: list[Cell] = ["total", self.weights, dense, kept, "", "", self.file_bytes]
        rows.append([*total, self.macs.before, self.macs.after])
        return _Table(header, rows)

    def _closing_lines(self) -> list[str]:
        fewer = self.macs.before / max(self.macs.after, 1)
        line = f"pruned architecture: {self.architecture}; {fewer:.1f} times fewer "
        return [line + "multiply-accumulates", *self.notes]


def report_on(
    pruned: Pruned,
    example: Tensor,
    final: Pruned | None = None,
    sizes: Sizes | None = None,
    errors: Mapping[str, float] | None = None,
    latencies: Sequence[Latency] = (),
) -> Report:
    """Return the report of a compression.

    The rates are those of the final network:

    * weights divided by nonzero weights, and by the weights of the smaller network, zeros included;
    * the published formulas of :mod:`~pyro_bnn.compression.rates`, none of which counts biases;
    * the bytes of the file, which holds the whole network.

    Args:
        pruned: The network before quantization, pruned from a posterior.
        example: Some inputs (n, ...).
        final: The network that was written, after quantization; by default ``pruned``.
        sizes: The result of :func:`~pyro_bnn.compression.save` for the final network.
        errors: Fractions of test examples that are classified wrongly, by the name of the network.
        latencies: Measured latencies.
    """
    if final is None:
        final = pruned
    layers = _layers(pruned, final, example, sizes)
    rates = _rates(layers, final)
    weights = sum(math.prod(layer.shape) for layer in layers)
    report = Report(
        layers,
        final.architecture,
        weights,
        rates,
        errors=dict(errors or {}),
        latencies=list(latencies),
        notes=final.notes,
    )
    if sizes is None:
        return report
    rates[_FILE_RATE] = 4 * weights / sizes.total
    return replace(report, file_bytes=sizes.total, other_bytes=_other_bytes(sizes, layers))


def _layers(pruned: Pruned, final: Pruned, example: Tensor, sizes: Sizes | None) -> list[Layer]:
    """Return an entry per weight tensor."""
    bits: dict[str, int] = {}
    if pruned.variances:
        for name, precision in bits_per_layer(pruned).items():
            bits[name] = precision.total
    layer_bytes: dict[str, float] = {}
    if sizes is not None:
        for size in sizes.layers:
            layer_bytes[size.name] = size.total
    macs_before = macs(pruned.masked, example)
    macs_after = macs(final.module, example)
    layers = []
    for row in final.report:
        name = layer_name(row.name)
        layer = Layer(
            name=row.name,
            shape=row.shape,
            new_shape=row.new_shape,
            kept=row.kept,
            values=_distinct_values(final.module, row.name),
            bits=bits.get(row.name),
            bytes=layer_bytes.get(name),
            macs=macs_before.get(name, 0),
            new_macs=macs_after.get(name, 0),
        )
        layers.append(layer)
    return layers


def _distinct_values(network: nn.Module, name: str) -> int:
    """Return the number of distinct nonzero values of a weight."""
    weight = network.state_dict()[name]
    return len(torch.unique(weight[weight != 0]))


def _other_bytes(sizes: Sizes, layers: Sequence[Layer]) -> dict[str, float]:
    """Return the bytes of a file that belong to no weight tensor of the report, by name."""
    listed = {layer_name(layer.name) for layer in layers}
    other: dict[str, float] = {}
    for size in sizes.layers:
        if size.name.startswith("index"):
            other[_INPUTS] = other.get(_INPUTS, 0.0) + size.total
        elif size.name not in listed:
            other[size.name] = size.total
    return other | {"graph": sizes.graph, "header, checksum": sizes.header}


def _rates(layers: Sequence[Layer], final: Pruned) -> dict[str, float]:
    """Return the compression rates that need no file."""
    weights = sum(math.prod(layer.shape) for layer in layers)
    nonzeros = [layer.kept for layer in layers]
    rows = [layer.new_shape[0] for layer in layers]
    rates = {
        "weights / nonzero weights": final.ratio,
        "weights / weights of the smaller network": final.dense_ratio,
        "published formula: pruning, 32-bit indices": starred_pruning_rate(final.ratio),
        "published formula: pruning, compressed sparse rows": csr_rate(weights, nonzeros, rows),
    }
    bits = [layer.bits for layer in layers if layer.bits is not None]
    if len(bits) == len(layers):
        sizes = [math.prod(layer.new_shape) for layer in layers]
        fast = fast_prediction_rate(weights, sizes, bits)
        rates["published formula: fast prediction, dense"] = fast
    state = final.module.state_dict()
    tensors = [state[layer.name] for layer in layers]
    dense = maximum_compression_rate(weights, tensors)
    sparse = maximum_compression_rate(weights, tensors, _INDEX_BITS)
    rates["published formula: maximum compression, dense"] = dense
    rates[f"published formula: maximum compression, {_INDEX_BITS}-bit indices"] = sparse
    return rates


# --- text -------------------------------------------------------------------------------------


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _one_decimal(number: float | None) -> str | None:
    if number is None:
        return None
    return f"{number:,.1f}"


def _latency_row(latency: Latency) -> list[Cell]:
    layouts = [layout for layout in latency.layouts if layout]
    return [
        latency.runtime,
        latency.threads,
        latency.batch,
        readable(latency.before),
        readable(latency.after),
        f"{latency.speedup:.1f}",
        " → ".join(layouts),
    ]
