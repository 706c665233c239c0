"""The report of a compression: layer by layer, and in total by every way of counting, each under its own name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from .latency import Latency, macs, readable
from .pbnn.sizes import Sizes
from .pruning.pruned_network import Pruned
from .quantization.precision import bits_per_layer
from .rates import csr_rate, fast_prediction_rate, maximum_compression_rate

__all__ = ["Layer", "Report", "report_on"]

_FILE = "4 bytes per original weight / bytes of the file"
_INPUTS = "inputs that are read"
_INDEX_BITS = (
    5  # of the distance between two nonzero weights, as Han et al. have it for dense layers
)


@dataclass(frozen=True)
class Layer:
    """One weight tensor, before and after.

    Attributes:
        name: of the weight.
        shape: before.
        new_shape: in the smaller network.
        kept: weights that are not zero.
        values: distinct numbers among these.
        bits: of a weight in fixed point, by the published rule from the posterior's variances; ``None``: not known.
        bytes: in the file, with the layer's biases and codebook, a fraction as arithmetic codes have them; ``None``: no
            file was written.
        macs: multiply-accumulates for one example, before.
        new_macs: in the smaller network.
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


@dataclass(frozen=True)
class Report:
    """What a compression achieved.

    Attributes:
        layers: a row per weight tensor.
        architecture: filters and inputs that are left, as published tables write them.
        weights: of the original network, biases not counted.
        rates: how many times smaller, by the name of what is counted.
        file_bytes: the size of the whole file; ``None``: there is none.
        other_bytes: what it holds besides layers, by name: the graph, the header, which inputs are looked at.
        errors: fractions of test examples that each network gets wrong.
        latencies: what was measured.
        notes: what there is to say besides.
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
    def macs(self) -> tuple[int, int]:
        """Multiply-accumulates for one example, before and after."""
        return sum(row.macs for row in self.layers), sum(row.new_macs for row in self.layers)

    def __str__(self) -> str:
        return "\n\n".join("\n".join(_aligned(rows)) for rows in self._tables()) + self._end("\n")

    def to_markdown(self) -> str:
        """Return the report as Markdown tables."""
        tables = ["\n".join(_markdown(rows)) for rows in self._tables()]
        return (
            f"# Compression of {self.weights:,} weights\n\n"
            + "\n\n".join(tables)
            + self._end("\n\n")
            + "\n"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        before, after = self.macs
        speedups = [{**asdict(row), "speedup": row.speedup} for row in self.latencies]
        return asdict(self) | {"macs": {"before": before, "after": after}, "latencies": speedups}

    def _tables(self) -> Iterator[list[tuple[str, ...]]]:
        yield self._layer_table()
        yield [
            ("times smaller, counted as", "rate"),
            *((name, f"{rate:,.1f}") for name, rate in self.rates.items()),
        ]
        if self.errors:
            yield [
                ("network", "test error"),
                *((name, f"{error:.2%}") for name, error in self.errors.items()),
            ]
        if self.latencies:
            head = ("runtime", "threads", "batch", "before", "after", "times as fast", "layouts")
            yield [head, *map(_latency_row, self.latencies)]

    def _layer_table(self) -> list[tuple[str, ...]]:
        head = (
            "weight",
            "before",
            "after",
            "kept",
            "values",
            "bits",
            "bytes",
            "MACs",
            "MACs after",
        )
        rows = [
            (
                row.name,
                _by(row.shape),
                _by(row.new_shape),
                f"{row.kept:,}",
                f"{row.values:,}",
                "" if row.bits is None else str(row.bits),
                "" if row.bytes is None else f"{row.bytes:,.1f}",
                f"{row.macs:,}",
                f"{row.new_macs:,}",
            )
            for row in self.layers
        ]
        before, after = self.macs
        dense = sum(math.prod(row.new_shape) for row in self.layers)
        total = ("total", f"{self.weights:,}", f"{dense:,}", f"{sum(row.kept for row in self.layers):,}", "", "",
                 "" if self.file_bytes is None else f"{self.file_bytes:,}", f"{before:,}", f"{after:,}")  # fmt: skip
        others = [
            (name, *[""] * 5, f"{count:,.1f}", "", "") for name, count in self.other_bytes.items()
        ]
        return [head, *rows, *others, total]

    def _end(self, gap: str) -> str:
        before, after = self.macs
        lines = [
            f"what is left: {self.architecture}; {before / max(after, 1):.1f} times fewer multiply-accumulates"
        ]
        return "\n\n" + gap.join([*lines, *self.notes])


def report_on(
    pruned: Pruned,
    example: Tensor,
    final: Pruned | None = None,
    sizes: Sizes | None = None,
    errors: Mapping[str, float] | None = None,
    latencies: Sequence[Latency] = (),
) -> Report:
    """Return the report.

    The rates, of the final network: weights by nonzero weights; by the weights of the smaller network, its zeros
    included; the published formulas of :mod:`~pyro_bnn.compression.rates`, pruning (as compressed sparse rows), fast
    prediction and maximum compression (dense, and with relative indices), none of which counts biases; bytes of the
    real file, which has everything in it.

    Args:
        pruned: the network before quantisation, from a posterior.
        example: some inputs (n, ...).
        final: the network that was written, after quantisation; ``pruned`` if not given.
        sizes: what :func:`~pyro_bnn.compression.save` returned for the final network.
        errors: fractions of test examples, by the name of the network.
        latencies: measured ones.
    """
    final = pruned if final is None else final
    bits = (
        {name: found.total for name, found in bits_per_layer(pruned).items()}
        if pruned.variances
        else {}
    )
    before, after = (
        _by_weight(macs(network, example)) for network in (pruned.masked, final.module)
    )
    state = final.module.state_dict()
    own = {row.name: row.total for row in sizes.layers} if sizes else {}
    layers = [
        Layer(
            row.name,
            row.shape,
            row.new_shape,
            row.kept,
            len(state[row.name][state[row.name] != 0].unique()),
            bits.get(row.name),
            own.pop(row.name.rpartition(".")[0], None),
            before.get(row.name, 0),
            after.get(row.name, 0),
        )
        for row in final.report
    ]
    weights = sum(math.prod(row.shape) for row in layers)
    rates = _rates(weights, layers, [state[row.name] for row in layers], final)
    file_bytes = sizes.total if sizes else None
    if sizes:
        rates[_FILE] = 4 * weights / sizes.total
        own = {_INPUTS if name.startswith("index") else name: count for name, count in own.items()}
        own |= {"graph": sizes.graph, "header, checksum": sizes.header}
    return Report(
        layers,
        final.architecture,
        weights,
        rates,
        file_bytes,
        own,
        dict(errors or {}),
        list(latencies),
        final.notes,
    )


def _rates(
    weights: int, layers: Sequence[Layer], tensors: Sequence[Tensor], final: Pruned
) -> dict[str, float]:
    sizes = [math.prod(row.new_shape) for row in layers]
    rates = {
        "weights / nonzero weights": final.ratio,
        "weights / weights of the smaller network": final.dense_ratio,
        "published formula: pruning, compressed sparse rows": csr_rate(
            weights, [row.kept for row in layers], [row.new_shape[0] for row in layers]
        ),
    }
    known = [row.bits for row in layers if row.bits is not None]
    if len(known) == len(layers):
        rates["published formula: fast prediction, dense"] = fast_prediction_rate(
            weights, sizes, known
        )
    rates["published formula: maximum compression, dense"] = maximum_compression_rate(
        weights, tensors
    )
    sparse = maximum_compression_rate(weights, tensors, _INDEX_BITS)
    return rates | {f"published formula: maximum compression, {_INDEX_BITS}-bit indices": sparse}


def _by_weight(counts: Mapping[str, int]) -> dict[str, int]:
    return {f"{name}.weight" if name else "weight": count for name, count in counts.items()}


# --- text -------------------------------------------------------------------------------------------------------------


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _latency_row(row: Latency) -> tuple[str, ...]:
    times = readable(row.before), readable(row.after), f"{row.speedup:.1f}"
    return (
        row.runtime,
        str(row.threads),
        f"{row.batch:,}",
        *times,
        " → ".join(filter(None, row.layouts)),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in rows
    ]


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return [head, f"|---|{'---:|' * (len(rows[0]) - 1)}", *body]
