"""Runs on disk: a folder that says what was run, how far it came, and how good it is.

``run.json`` holds the settings, ``checkpoint/`` the state of the training, ``posterior.json`` with its safetensors file
the result, ``metrics.json`` how it does on the test data. These are looked at once, after the last epoch.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_bnn.datasets import Dataset, hold_out
from pyro_bnn.runs.settings import ExecutionConfig, Settings, schedules
from pyro_bnn.runtime.tensor_files import CheckpointError
from pyro_bnn.training import Fit, Progress, fit

from .evaluation import Evaluation, evaluate
from .folders import require_empty, write_json
from .snapshots import Snapshots

__all__ = [
    "begin",
    "claimed",
    "data_of",
    "finish",
    "interruption",
    "load",
    "require_posterior",
    "resumed",
    "train",
]


# --- the folder -------------------------------------------------------------------------------------------------------


def begin(folder: Path, settings: Settings, place: ExecutionConfig) -> None:
    """Claim an empty folder for a run by writing its ``run.json``.

    Raises:
        CheckpointError: the folder holds something already, or cannot be written.
    """
    if (folder / "run.json").exists():
        there = load(folder)[0]
        raise CheckpointError(
            f"{folder}: holds a run already ({there.model} on {there.data}, seed {there.seed}); "
            f"go on with it (pyro-bnn fit --out {folder} --resume) or choose another --out"
        )
    require_empty(folder)
    write_json(
        folder / "run.json",
        {"settings": asdict(settings), "place": asdict(place), "versions": _versions()},
    )


@contextlib.contextmanager
def claimed(folder: Path, settings: Settings, place: ExecutionConfig) -> Iterator[None]:
    """Claim a folder as :func:`begin` does; should the run fail before its first checkpoint, give the folder back."""
    existed = folder.exists()
    begin(folder, settings, place)
    try:
        yield
    except BaseException:
        if not (folder / "checkpoint" / "checkpoint.json").exists():
            (folder / "run.json").unlink(missing_ok=True)
            shutil.rmtree(folder / "snapshots", ignore_errors=True)
            with contextlib.suppress(OSError):  # it is not empty
                (folder if not existed else folder / "checkpoint").rmdir()
        raise


def load(folder: Path) -> tuple[Settings, ExecutionConfig]:
    """Return what ``run.json`` says.

    Raises:
        CheckpointError: it is missing, or is not what it should be.
    """
    path = folder / "run.json"
    if folder.is_file():
        raise CheckpointError(f"{folder}: expected the folder of a run, got a file")
    try:
        record = json.loads(path.read_bytes())
        settings, place = record["settings"], record["place"]
        for kind, values in (
            (Settings, settings),
            (ExecutionConfig, place),
        ):  # what an older release lacks has its default
            if not set(values) <= {field.name for field in fields(kind)}:
                raise ValueError("other settings than this release has")
        return Settings(**settings), ExecutionConfig(**place)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: holds no run (there is no run.json in it); pyro-bnn fit MODEL --out {folder} makes one"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: expected the settings of a run, found something else ({error})"
        ) from error


def require_posterior(folder: Path) -> None:
    """Refuse a run that is not over.

    Raises:
        CheckpointError: it has no posterior yet.
    """
    if not (folder / "posterior.json").exists():
        way_out = f"go on with pyro-bnn fit --out {folder} --resume"
        raise CheckpointError(
            f"{folder}: the run is not over, there is no posterior.json; {way_out}"
        )


def interruption(folder: Path) -> str:
    """Return a line that says that a run was interrupted, if it was; else nothing."""
    try:
        training = json.loads((folder / "metrics.json").read_bytes())["training"]
    except (OSError, ValueError, KeyError):  # it was not evaluated
        return ""
    if not training["interrupted"]:
        return ""
    way_on = f"pyro-bnn fit --out {folder} --resume goes on with it"
    return f"note: the run was interrupted after {training['epochs']} epochs; {way_on}\n"


def resumed(
    folder: Path, asked: Mapping[str, Any], named: Collection[str]
) -> tuple[Settings, ExecutionConfig]:
    """Return settings and place of the run in the folder, to go on with it.

    Args:
        folder: of the run.
        asked: what the user asks for now, by the names of the fields of ``Settings`` and ``ExecutionConfig``.
        named: which of these the user named; settings among them have to agree with the run's.

    Raises:
        CheckpointError: there is no run, or it has other settings; the message names them.
    """
    settings, place = load(folder)
    there = asdict(settings)
    differing = [
        f"{key} ({there[key]!r} there, {asked[key]!r} now)"
        for key in there
        if key in named and asked[key] != there[key]
    ]
    if differing:
        raise CheckpointError(
            f"{folder}: the run there has other settings: {', '.join(differing)}; "
            "leave these options out to go on with it, or choose another --out for a new run"
        )
    return settings, ExecutionConfig(
        **{key: asked[key] if key in named else value for key, value in asdict(place).items()}
    )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("pyro-bnn", "torch", "pyro-ppl")},
    }


# --- data ------------------------------------------------------------------------------------------------------------


def data_of(
    settings: Settings, directory: str | None, download: bool = False
) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """Return the data of a run without the training examples that it holds out, and these.

    The last ones are held out, to choose on, where test data must not be used.

    Args:
        settings: of the run.
        directory: where data sets are.
        download: fetch what is not there.

    Raises:
        ValueError: none would be left to train on.
    """
    from .registry import data_by_name

    _, read = data_by_name()[settings.data]
    data = read(settings.split, directory, download)
    return hold_out(data, settings.hold_out)


# --- training ---------------------------------------------------------------------------------------------------------


def train(
    folder: Path,
    model: Any,
    guide: Any,
    data: Dataset,
    settings: Settings,
    place: ExecutionConfig,
    callbacks: Sequence[Callable[[Progress], None]] = (),
    progress: bool = True,
) -> Fit:
    """Fit, with checkpoints in the folder, and snapshots where asked for; go on from the checkpoint that is there."""
    learning_rate, kl_weight = schedules(settings)
    if place.snapshots:
        callbacks = [*callbacks, Snapshots(folder / "snapshots", place.snapshots)]
    return fit(
        model,
        guide,
        data.train,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=learning_rate,
        kl_weight=kl_weight,
        seed=settings.seed,
        device=place.device,
        callbacks=callbacks,
        checkpoint=folder / "checkpoint",
        checkpoint_every=place.checkpoint_every,
        resume=True,
        progress=progress,
    )


def finish(folder: Path, result: Fit, data: Dataset, draws: int = 50) -> Evaluation:
    """Evaluate the result and write ``posterior``, ``metrics.json`` and ``loss_terms.png``."""
    from pyro_bnn.plotting import posterior as plots

    result.posterior.save(folder / "posterior")
    evaluation = evaluate(result.posterior, data, draws)
    seconds, epochs = (result.history["seconds"] or [0.0])[-1], len(result.history["epoch"])
    evaluation.metrics["training"] = {
        "epochs": epochs,
        "interrupted": result.interrupted,
        "minutes": seconds / 60,
        "seconds_per_epoch": seconds / max(epochs, 1),
    }
    write_json(folder / "metrics.json", evaluation.metrics)
    plots.loss_terms(result.history).savefig(folder / "loss_terms.png", dpi=150)
    return evaluation
