"""Compress a finished run: prune, quantize, fine-tune, write, decode, measure and draw.

This is ``pyro-bnn compress RUN``. The steps are those that a program would take with
:mod:`pyro_bnn.compression`; nothing here depends on a prior, a guide or a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from pyro_bnn import compression, plotting
from pyro_bnn.compression import latency
from pyro_bnn.compression.onnx import onnx_is_available, to_onnx
from pyro_bnn.compression.pbnn.codec import load, save
from pyro_bnn.compression.pruning.posterior_pruning import Threshold
from pyro_bnn.compression.quantization.codebooks import quantize
from pyro_bnn.compression.quantization.fine_tuning import fine_tune
from pyro_bnn.compression.report import Report, report_on
from pyro_bnn.datasets import Dataset
from pyro_bnn.metrics import error_of
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.tensor_files import write_atomically
from pyro_bnn.variational.guide import GuideWithLogAlpha

from .folders import write_json
from .run import load_data, load_posterior, load_settings, require_finished
from .settings import Settings
from .snapshots import Snapshot, read_snapshots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CompressionOptions", "CompressionResult", "FinishedRun", "compress", "read_run"]

ReportLine = Callable[[str], None]


@dataclass(frozen=True)
class CompressionOptions:
    """How a run is compressed.

    Attributes:
        threshold: of log alpha, for single weights.
        group_threshold: of the measure of groups; ``None`` for ``threshold``.
        levels: the largest number of distinct values of each parameter.
        bits_weight: the price of a bit in units of ln 2 nats of distortion.
        fine_tune_epochs: over the training data; 0 skips fine-tuning.
        choose: choose the thresholds on the examples that the run held out.
        tolerance: the largest increase of the error on them, as a fraction.
        batches: sizes of the batches whose latency is measured; may be empty.
        seed: of the order of the data in fine-tuning.
    """

    threshold: float = 3.0
    group_threshold: float | None = None
    levels: int = 16
    bits_weight: float = 0.0
    fine_tune_epochs: int = 20
    choose: bool = False
    tolerance: float = 0.0
    batches: tuple[int, ...] = (1, 8192)
    seed: int = 0


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of a classifier: its folder, settings, posterior and data."""

    folder: Path
    settings: Settings
    posterior: Posterior
    data: Dataset
    held_out: tuple[Tensor, Tensor]


class CompressionResult(NamedTuple):
    """The report, and the names of the files that were written."""

    report: Report
    files: list[str]


class _Thresholds(NamedTuple):
    """The thresholds of single weights and of groups, one for all tensors or one per tensor."""

    weights: Threshold
    groups: Threshold | None

    @property
    def of_groups(self) -> Threshold:
        """The threshold of groups, by default that of weights."""
        return self.weights if self.groups is None else self.groups


def read_run(folder: Path, directory: str | None) -> FinishedRun:
    """Return a finished run of a classifier.

    Args:
        folder: of the run.
        directory: the folder of all data sets; ``None`` for the one that the run used.

    Raises:
        CheckpointError: if the run is missing, damaged, or not finished.
        ValueError: if its targets are real numbers.
    """
    settings, execution = load_settings(folder)
    require_finished(folder)
    data, held_out = load_data(settings, execution.data_dir if directory is None else directory)
    if data.classes is None:
        raise ValueError(
            f"compress: expected a run on classes, {folder} was trained on real numbers "
            f"({data.name})"
        )
    return FinishedRun(folder, settings, load_posterior(folder, settings, data), data, held_out)


def compress(
    run: FinishedRun,
    out: Path,
    options: CompressionOptions,
    report_line: ReportLine,
    progress: bool = True,
) -> CompressionResult:
    """Compress a run into an empty folder.

    Fine-tuning uses the training data, and the choice of thresholds the held-out examples. The test
    data are used once, for the report.

    Args:
        run: as :func:`read_run` returns it.
        out: an empty folder.
        options: thresholds, levels, fine-tuning, latency.
        report_line: called with a line of text at the start of each step.
        progress: show bars.

    Raises:
        ValueError: if the posterior has no variance, if pruning removes every weight, or if
            thresholds are to be chosen and the run held out no examples.
        UnsupportedLayerError: if the file format does not support a layer.
        ExportError: if ONNX cannot express the network.
        CheckpointError: if a snapshot of the run is damaged.
    """
    snapshots = read_snapshots(run.folder / "snapshots")  # first: a damaged one stops the work
    report_line("pruning ...")
    thresholds = _choose_thresholds(run, options, report_line)
    pruned = compression.prune(run.posterior, thresholds.weights, thresholds.groups)
    report_line(f"quantizing {sum(row.kept for row in pruned.report):,} weights ...")
    quantized = quantize(pruned, options.levels, bits_weight=options.bits_weight)
    final = quantized
    if options.fine_tune_epochs:
        report_line(f"fine-tuning for {options.fine_tune_epochs} epochs ...")
        final = _fine_tune(run, pruned, quantized, options, progress)
    report_line("writing and decoding the file ...")
    sizes = save(final, out / "network.pbnn")
    decoded = load(out / "network.pbnn")
    _require_same_outputs(final.module, decoded, run.data.x_test[:1000])
    networks = {
        "posterior mean": run.posterior.mean_network(),
        "pruned": pruned.module,
        "quantized": quantized.module,
    }
    if options.fine_tune_epochs:
        networks["fine-tuned"] = final.module
    networks["decoded from network.pbnn"] = decoded
    errors = {name: error_of(network, run.data.test) for name, network in networks.items()}
    files = ["network.pbnn", *_write_onnx(final, out, run.data, report_line)]
    latencies = _measure_latencies(final, run.data, options, report_line)
    report = report_on(pruned, run.data.x_test[:1], final, sizes, errors, latencies)
    note = _threshold_note(run, options, thresholds, pruned)
    report = replace(report, notes=(*report.notes, note))
    files += _write_report(run, report, out, options, thresholds)
    report_line("drawing ...")
    files += _draw(run, out, final, report, thresholds)
    files += _animate(out, final, snapshots)
    return CompressionResult(report, files)


# --- steps ----------------------------------------------------------------------------------------


def _choose_thresholds(
    run: FinishedRun, options: CompressionOptions, report_line: ReportLine
) -> _Thresholds:
    """Return the thresholds of the options, or those chosen on the held-out examples."""
    if not options.choose:
        return _Thresholds(options.threshold, options.group_threshold)
    if not len(run.held_out[0]):
        raise ValueError(
            f"choose: the run in {run.folder} held out no examples to choose thresholds on; "
            "train one with pyro-bnn fit --hold-out 5000, or pass --threshold"
        )
    chosen = compression.choose_thresholds(run.posterior, run.held_out, options.tolerance)
    report_line(str(chosen).splitlines()[-1])
    return _Thresholds(chosen.threshold or options.threshold, chosen.group_threshold or None)


def _fine_tune(
    run: FinishedRun,
    pruned: compression.Pruned,
    quantized: compression.Pruned,
    options: CompressionOptions,
    progress: bool,
) -> compression.Pruned:
    return fine_tune(
        quantized,
        run.data.train,
        epochs=options.fine_tune_epochs,
        batch_size=min(500, len(run.data.x_train)),
        bits_weight=options.bits_weight,
        start=pruned,
        seed=options.seed,
        progress=progress,
    )


@torch.no_grad()
def _require_same_outputs(written: nn.Module, decoded: nn.Module, x: Tensor) -> None:
    """Check that the file is lossless, as its format promises."""
    if not torch.equal(written(x), decoded(x)):
        raise RuntimeError(
            "compress: the network decoded from the file differs from the one that was written; "
            "this is a defect of the file format"
        )


def _write_onnx(
    final: compression.Pruned, out: Path, data: Dataset, report_line: ReportLine
) -> list[str]:
    """Write the network as ONNX if the packages for it are installed."""
    if not onnx_is_available():
        report_line('no network.onnx: pip install "pyro-bnn[onnx]"')
        return []
    report_line("writing ONNX ...")
    to_onnx(final, out / "network.onnx", data.x_test[:2])
    return ["network.onnx"]


def _measure_latencies(
    final: compression.Pruned, data: Dataset, options: CompressionOptions, report_line: ReportLine
) -> list[latency.Latency]:
    if not options.batches:
        return []
    sizes = " and ".join(map(str, options.batches))
    report_line(f"measuring latency in batches of {sizes} on one thread ...")
    return latency.measure(final.masked, final.module, data.x_test[:1000], options.batches)


# --- report ---------------------------------------------------------------------------------------


def _threshold_note(
    run: FinishedRun,
    options: CompressionOptions,
    thresholds: _Thresholds,
    pruned: compression.Pruned,
) -> str:
    """Return a note with the thresholds and their origin."""
    origin = "given"
    if options.choose:
        origin = f"chosen on {len(run.held_out[0]):,} held-out examples"
    values = []
    if set(pruned.groups) != set(pruned.masks):
        values.append(f"weights: {_threshold_text(thresholds.weights)}")
    if pruned.groups:
        values.append(f"groups: {_threshold_text(thresholds.of_groups)}")
    return f"thresholds ({origin}): {'; '.join(values)}"


def _threshold_text(threshold: Threshold) -> str:
    if isinstance(threshold, Mapping):
        return ", ".join(f"{name} {value:.3g}" for name, value in threshold.items())
    return f"{threshold:g}"


def _write_report(
    run: FinishedRun,
    report: Report,
    out: Path,
    options: CompressionOptions,
    thresholds: _Thresholds,
) -> list[str]:
    """Write the report, with the settings of the run and of the compression."""
    content = {
        **report.to_json(),
        "run": asdict(run.settings),
        "options": asdict(options),
        "thresholds": {"weights": thresholds.weights, "groups": thresholds.groups},
    }
    write_json(out / "report.json", content)
    write_atomically(out / "report.md", report.to_markdown().encode())
    return ["report.md", "report.json"]


# --- figures --------------------------------------------------------------------------------------

_MOST_FRAMES = 60


def _draw(
    run: FinishedRun,
    out: Path,
    final: compression.Pruned,
    report: Report,
    thresholds: _Thresholds,
) -> list[str]:
    """Draw the figures that the network has data for, and return the names of the files."""
    figures: dict[str, Figure] = {}
    groups = compression.group_measures(run.posterior)
    weights = _log_alpha(run.posterior)
    for name in groups:
        weights.pop(name, None)
    if weights:
        figures["log_alpha.png"] = plotting.plot_pruning_histograms(weights, thresholds.weights)
    if groups:
        label = "log α of z, or the negative log of the mode of z"
        figures["groups.png"] = plotting.plot_pruning_histograms(
            groups, thresholds.of_groups, label, "groups"
        )
    first = final.report[0].name
    weight = final.masked.state_dict()[first]
    if _has_images(weight):
        layer = first.rpartition(".")[0] or "first layer"
        figures["receptive_fields.png"] = plotting.plot_receptive_fields(weight, name=layer)
    if report.latencies:
        before = {row.name: row.macs for row in report.layers}
        after = {row.name: row.new_macs for row in report.layers}
        figures["acceleration.png"] = plotting.plot_acceleration(before, after, report.latencies)
    for file, figure in figures.items():
        figure.savefig(out / file, dpi=150)
    return list(figures)


def _animate(out: Path, final: compression.Pruned, snapshots: list[Snapshot]) -> list[str]:
    """Write the animation of the snapshots, if there are any, and return the name of its file."""
    if not snapshots:
        return []
    step = math.ceil(len(snapshots) / _MOST_FRAMES)
    frames = []
    for snapshot in snapshots[::-1][::step][::-1]:  # the last one is always among them
        weights = {row.name: snapshot.weights[row.name] for row in final.report}
        frames.append((snapshot.epoch, weights))
    plotting.animate_weights(frames, out / "weights.gif")
    return ["weights.gif"]


@torch.no_grad()
def _log_alpha(posterior: Posterior) -> dict[str, Tensor]:
    """Return log alpha of every weight.

    A guide that masks dropped means reports the log alpha from before masking.
    """
    values = {}
    if isinstance(posterior.guide, GuideWithLogAlpha):
        unmasked = posterior.guide.log_alpha()
        for name in posterior.model.names:
            values[name] = unmasked[name].detach()
        return values
    moments = posterior.moments()
    for name in posterior.model.names:
        values[name] = compression.log_alpha(*moments[name])
    return values


def _has_images(weight: Tensor) -> bool:
    """Return whether the weights of a unit can be drawn as an image."""
    if weight.dim() == 4:
        return True
    return weight.dim() == 2 and math.isqrt(weight.shape[1]) ** 2 == weight.shape[1]
