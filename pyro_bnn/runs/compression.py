"""From a finished run to files: pruned, quantised, fine-tuned, written, decoded, measured and drawn.

This is ``pyro-bnn compress RUN``. The steps are those that a program would take with :mod:`pyro_bnn.compression`;
nothing here is special to a prior, a guide or a network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bnn import compression
from pyro_bnn.compression import latency
from pyro_bnn.compression.onnx import onnx_is_there, to_onnx
from pyro_bnn.compression.pbnn.codec import load, save
from pyro_bnn.compression.quantization.codebooks import quantize
from pyro_bnn.compression.quantization.fine_tuning import fine_tune
from pyro_bnn.compression.report import Report, report_on
from pyro_bnn.datasets import Dataset
from pyro_bnn.metrics import error_of
from pyro_bnn.plotting import compression as pictures
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.tensor_files import write_atomically

from . import registry
from . import run as runs
from .evaluation import FileEvaluation, evaluate_file
from .folders import write_json
from .snapshots import read_snapshots

__all__ = ["Options", "Run", "compress", "evaluate_compressed", "original_of", "read"]


@dataclass(frozen=True)
class Options:
    """How a run is compressed.

    Attributes:
        threshold: of log alpha, for single weights.
        group_threshold: of the measure of groups; as ``threshold`` if not given.
        levels: the most distinct values of each parameter.
        bits_weight: how much distortion a bit is worth, in units of ln 2 nats.
        fine_tune_epochs: over the training data; 0 leaves the centroids where quantisation put them.
        choose: choose the thresholds on the examples that the run held out.
        tolerance: by how much the error on them may rise, as a fraction.
        batches: sizes of the batches that are timed; none: nothing is.
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
class Run:
    """A finished run: where it is, its settings, what it learned, and its data."""

    folder: Path
    settings: runs.Settings
    posterior: Posterior
    data: Dataset
    held_out: tuple[Tensor, Tensor]


def read(folder: Path, directory: str | None) -> Run:
    """Return a finished run on classes.

    Args:
        folder: of the run.
        directory: where data sets are; as the run has it if not given.

    Raises:
        CheckpointError: it is not there, damaged, or not over.
        ValueError: its targets are real numbers.
    """
    settings, place = runs.load(folder)
    runs.require_posterior(folder)
    data, held_out = runs.data_of(settings, place.data_dir if directory is None else directory)
    if data.classes is None:
        raise ValueError(
            f"compress: expected a run on classes, {folder} was trained on real numbers ({data.name})"
        )
    model, guide = registry.build(settings, data)
    return Run(
        folder, settings, Posterior.load(folder / "posterior", model, guide=guide), data, held_out
    )


Say = Callable[[str], None]


def compress(
    run: Run, out: Path, options: Options, say: Say, progress: bool = True
) -> tuple[Report, list[str]]:
    """Compress a run into an empty folder; return the report and the names of the files.

    Fine-tuning sees the training data, the choice of thresholds what was held out of them; test data are looked at
    once, for the report.

    Args:
        run: a finished one.
        out: an empty folder.
        options: how.
        say: called with a line at the start of each step.
        progress: show bars.

    Raises:
        ValueError: a posterior without variance; nothing left after pruning; thresholds to be chosen on nothing.
        UnsupportedLayerError: a layer that the file format does not know.
        ExportError: a network that ONNX cannot express.
        CheckpointError: a damaged snapshot of the run.
    """
    frames = read_snapshots(
        run.folder / "snapshots"
    )  # if one is damaged, now is the time to say so
    say("pruning ...")
    limits = _thresholds(run, options, say)
    pruned = compression.prune(run.posterior, *limits)
    say(f"quantising {sum(row.kept for row in pruned.report):,} weights ...")
    quantized = quantize(pruned, options.levels, bits_weight=options.bits_weight)
    final = quantized
    if options.fine_tune_epochs:
        say(f"fine-tuning for {options.fine_tune_epochs} epochs ...")
        final = fine_tune(
            quantized,
            run.data.train,
            epochs=options.fine_tune_epochs,
            batch_size=min(500, len(run.data.x_train)),
            bits_weight=options.bits_weight,
            start=pruned,
            seed=options.seed,
            progress=progress,
        )
    say("writing and decoding the file ...")
    sizes = save(final, out / "network.pbnn")
    decoded = load(out / "network.pbnn")
    networks = {
        "posterior mean": run.posterior.mean_network(),
        "pruned": pruned.module,
        "quantised": quantized.module,
        **({"fine-tuned": final.module} if options.fine_tune_epochs else {}),
        "decoded from network.pbnn": decoded,
    }
    _require_same(final.module, decoded, run.data.x_test[:1000])
    errors = {name: error_of(network, run.data.test) for name, network in networks.items()}
    files = ["network.pbnn", *_onnx(final, out, run.data, say)]
    latencies = _latencies(final, run.data, options, say)
    report = report_on(pruned, run.data.x_test[:1], final, sizes, errors, latencies)
    report = replace(report, notes=(*report.notes, _how(run, options, limits, pruned)))
    files += _written(run, report, out, options, limits)
    say("drawing ...")
    return report, files + _draw(run, out, final, report, limits, frames)


@torch.no_grad()
def _require_same(written: nn.Module, decoded: nn.Module, x: Tensor) -> None:
    """Make sure of what the file format promises."""
    if not torch.equal(written(x), decoded(x)):
        raise RuntimeError(
            "the network that was decoded from the file is not the one that was written"
        )


Limits = tuple[Any, Any]  # thresholds of weights and of groups: a number, or one per weight tensor
Frames = list[tuple[int, dict[str, Tensor]]]  # epochs, and the weights then


def _thresholds(run: Run, options: Options, say: Say) -> Limits:
    """Return the thresholds that are asked for, or those chosen on the examples that were held out."""
    if not options.choose:
        return options.threshold, options.group_threshold
    if not len(run.held_out[0]):
        raise ValueError(
            f"choose: the run in {run.folder} held out no examples to choose thresholds on; "
            "train one with pyro-bnn fit --hold-out 5000, or say --threshold"
        )
    chosen = compression.choose_thresholds(run.posterior, run.held_out, options.tolerance)
    say(str(chosen).splitlines()[-1])
    return chosen.threshold or options.threshold, chosen.group_threshold or None


def _how(run: Run, options: Options, limits: Limits, pruned: compression.Pruned) -> str:
    """Return how the thresholds came about, and what they are."""
    alone = {} if set(pruned.groups) == set(pruned.masks) else {"weights": limits[0]}
    given = {
        **alone,
        **({"groups": limits[0] if limits[1] is None else limits[1]} if pruned.groups else {}),
    }
    values = {
        what: ", ".join(f"{name} {t:.3g}" for name, t in value.items())
        if isinstance(value, dict)
        else f"{value:g}"
        for what, value in given.items()
    }
    chosen = f"chosen on {len(run.held_out[0]):,} held-out examples" if options.choose else "given"
    return (
        f"thresholds ({chosen}): {'; '.join(f'{what}: {value}' for what, value in values.items())}"
    )


def _onnx(final: compression.Pruned, out: Path, data: Dataset, say: Say) -> list[str]:
    """Write the network as ONNX, if the packages for it are there."""
    if not onnx_is_there():
        say('no network.onnx: pip install "pyro-bnn[onnx]"')
        return []
    say("writing ONNX ...")
    to_onnx(final, out / "network.onnx", data.x_test[:2])
    return ["network.onnx"]


def _latencies(
    final: compression.Pruned, data: Dataset, options: Options, say: Say
) -> list[latency.Latency]:
    if not options.batches:
        return []
    say(
        f"measuring latency in batches of {' and '.join(map(str, options.batches))} on one thread ..."
    )
    return latency.measure(final.masked, final.module, data.x_test[:1000], options.batches)


def _written(run: Run, report: Report, out: Path, options: Options, limits: Limits) -> list[str]:
    """Write the report, and with it how it came about."""
    thresholds = {"weights": limits[0], "groups": limits[1]}
    facts = {
        **report.to_json(),
        "run": asdict(run.settings),
        "options": asdict(options),
        "thresholds": thresholds,
    }
    write_json(out / "report.json", facts)
    write_atomically(out / "report.md", report.to_markdown().encode())
    return ["report.md", "report.json"]


# --- pictures ---------------------------------------------------------------------------------------------------------

_MOST_FRAMES = 60


def _draw(
    run: Run, out: Path, final: compression.Pruned, report: Report, limits: Limits, frames: Frames
) -> list[str]:
    """Draw what there is to draw, and return the names of the files."""
    groups = compression.group_measures(run.posterior)
    weights = {
        name: value for name, value in _log_alpha(run.posterior).items() if name not in groups
    }
    group_limits = limits[0] if limits[1] is None else limits[1]
    figures = {}
    if weights:
        figures["log_alpha.png"] = pictures.histograms(weights, limits[0])
    if groups:
        what = "log α of z, or the negative log of the mode of z"
        figures["groups.png"] = pictures.histograms(groups, group_limits, what, "groups")
    first = final.report[0].name
    weight = final.masked.state_dict()[first]
    if weight.dim() == 4 or (weight.dim() == 2 and _is_square(weight.shape[1])):
        figures["receptive_fields.png"] = pictures.receptive_fields(
            weight, name=first.rpartition(".")[0] or "first layer"
        )
    if report.latencies:
        before, after = ({row.name: count for row, count in zip(report.layers, counts, strict=True)} for counts in (
            [row.macs for row in report.layers], [row.new_macs for row in report.layers]))  # fmt: skip
        figures["acceleration.png"] = pictures.acceleration(before, after, report.latencies)
    for name, figure in figures.items():
        figure.savefig(out / name, dpi=150)
    if not frames:
        return list(figures)
    step = math.ceil(len(frames) / _MOST_FRAMES)
    shown = frames[::-1][::step][::-1]  # the last one is always among them
    pictures.animate(
        [(epoch, {row.name: there[row.name] for row in final.report}) for epoch, there in shown],
        out / "weights.gif",
    )
    return [*figures, "weights.gif"]


@torch.no_grad()
def _log_alpha(posterior: Posterior) -> dict[str, Tensor]:
    """Return log alpha of every weight; a guide that takes dropped means as zero knows what it was before."""
    if hasattr(posterior.guide, "log_alpha"):
        own = posterior.guide.log_alpha()
        return {name: own[name].detach() for name in posterior.model.names}
    moments = posterior.moments()
    return {name: compression.log_alpha(*moments[name]) for name in posterior.model.names}


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


# --- files ------------------------------------------------------------------------------------------------------------


_FIXED = ("lenet-300-100", "lenet-5")  # models whose widths are known from their names


def evaluate_compressed(
    path: Path, data_name: str | None, directory: str | None, original: str | None
) -> FileEvaluation:
    """Decode a file and return how its network does on test data.

    Args:
        path: of a file that ``pyro-bnn compress`` or :func:`~pyro_bnn.compression.save` wrote.
        data_name: of the data set that the network was trained on; not needed where the report of ``pyro-bnn compress``
            lies beside the file.
        directory: where data sets are.
        original: the model that it was before, by its name; if not given, that of the run, or on MNIST the LeNet whose
            layers fit.

    Raises:
        FormatError: what is no such file, or a damaged one.
        ValueError: other data than those of the run, or of another kind; a model that does not fit.
    """
    network = load(path)
    settings = _settings_beside(path)
    if settings is None:
        if data_name is None:
            raise ValueError(
                f"{path}: expected --data, what to test a compressed file on, such as mnist or digits"
            )
        listed = registry.data_by_name()
        data = listed[registry.known("data set", data_name, listed)][1](0, directory, False)
    elif data_name not in (None, settings.data):
        raise ValueError(
            f"{path}: was made of a run on {settings.data}, got --data {data_name}; leave --data out"
        )
    else:
        data, _ = runs.data_of(settings, directory)
    if settings is not None and original in (None, settings.model):
        shapes = _layers_of(settings, data)
        return evaluate_file(
            path, data, network, sum(shape.numel() for _, shape in shapes), settings.model
        )
    return evaluate_file(path, data, network, *original_of(network, data, original))


def _settings_beside(path: Path) -> runs.Settings | None:
    """Return the settings of the run that a file was made of, if its report is there and speaks of as many bytes."""
    try:
        report = json.loads(path.with_name("report.json").read_bytes())
        settings = runs.Settings(**report["run"])
        return settings if report["file_bytes"] == path.stat().st_size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _layers_of(settings: runs.Settings, data: Dataset) -> list[tuple[bool, torch.Size]]:
    """Return the layers of the network that settings mean, as :func:`_layers` does."""
    model, _ = registry.build(settings, data)
    return _layers(model.network_with(model.weights()))


def original_of(network: nn.Module, data: Dataset, name: str | None) -> tuple[int | None, str]:
    """Return how many weights, biases not counted, the original of a smaller network had, and its name.

    Args:
        network: the smaller one.
        data: what it was trained on.
        name: of the original; if not given, of the two LeNets that whose layers fit is meant, on images of MNIST.

    Raises:
        ValueError: there is no model of that name, or it does not fit the network.
    """
    listed = registry.models_by_name()
    guessed = _FIXED if data.x_train[0].numel() == 28 * 28 else ()
    candidates = guessed if name is None else (registry.known("model", name, listed),)
    layers = _layers(network)
    found = {}
    for candidate in candidates:
        try:
            original = _layers_of(
                runs.Settings(candidate, prior="normal", guide="mean-field"), data
            )
        except ValueError:  # images too small for it, say
            continue
        if len(original) == len(layers) and all(map(_fits, layers, original)):
            found[candidate] = sum(shape.numel() for _, shape in original)
    if name is not None and not found:
        raise ValueError(
            f"model: the network in the file is no smaller {name} for {data.name}: its layers do not fit"
        )
    return next(((weights, candidate) for candidate, weights in found.items()), (None, ""))


def _layers(network: nn.Module) -> list[tuple[bool, torch.Size]]:
    """Return for each layer with a weight whether it is dense, and the shape of the weight."""
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d
    return [
        (isinstance(m, nn.Linear), m.weight.shape)
        for m in network.modules()
        if isinstance(m, kinds)
    ]


def _fits(layer: tuple[bool, torch.Size], original: tuple[bool, torch.Size]) -> bool:
    same = layer[0] == original[0] and len(layer[1]) == len(original[1])
    return same and all(own <= there for own, there in zip(layer[1], original[1], strict=True))
