"""Runs on disk: a folder with the settings, the state and the results of one fit.

``run.json`` holds the settings, ``checkpoint/`` the state of the training, ``posterior.json`` with
its safetensors file the posterior, and ``metrics.json`` its metrics on the test data, which are
used once, after the last epoch.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_bnn.datasets import Dataset, hold_out
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.tensor_files import CheckpointError
from pyro_bnn.training import Fit, Progress, fit

from .evaluation import Evaluation, evaluate
from .folders import require_empty, write_json
from .registry import ModelAndGuide, build, read_data
from .settings import ExecutionConfig, Settings, schedules
from .snapshots import Snapshots

__all__ = [
    "claim_folder",
    "create_run",
    "evaluate_and_save",
    "interruption_note",
    "load_data",
    "load_posterior",
    "load_settings",
    "require_finished",
    "settings_to_resume",
    "train",
]


# --- the folder -----------------------------------------------------------------------------------


def create_run(folder: Path, settings: Settings, execution: ExecutionConfig) -> None:
    """Write ``run.json`` into a new or empty folder.

    Raises:
        CheckpointError: if the folder is not empty or cannot be written.
    """
    if (folder / "run.json").exists():
        existing, _ = load_settings(folder)
        raise CheckpointError(
            f"{folder}: holds a run already ({existing.model} on {existing.data}, seed "
            f"{existing.seed}); resume it (pyro-bnn fit --out {folder} --resume) or choose "
            "another --out"
        )
    require_empty(folder)
    record = {"settings": asdict(settings), "place": asdict(execution), "versions": _versions()}
    write_json(folder / "run.json", record)


@contextlib.contextmanager
def claim_folder(folder: Path, settings: Settings, execution: ExecutionConfig) -> Iterator[None]:
    """Create a run, and remove it again if the body fails before its first checkpoint.

    Raises:
        CheckpointError: as :func:`create_run`.
    """
    existed = folder.exists()
    create_run(folder, settings, execution)
    try:
        yield
    except BaseException:
        if not (folder / "checkpoint" / "checkpoint.json").exists():
            _remove_run(folder, keep_folder=existed)
        raise


def _remove_run(folder: Path, keep_folder: bool) -> None:
    """Remove what a run wrote before its first checkpoint."""
    (folder / "run.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "snapshots", ignore_errors=True)
    created = folder / "checkpoint" if keep_folder else folder
    with contextlib.suppress(OSError):  # not empty
        created.rmdir()


def load_settings(folder: Path) -> tuple[Settings, ExecutionConfig]:
    """Return the settings of the run in a folder; fields that ``run.json`` lacks have defaults.

    Raises:
        CheckpointError: if ``run.json`` is missing, cannot be read, or is malformed.
    """
    path = folder / "run.json"
    if folder.is_file():
        raise CheckpointError(f"{folder}: expected the folder of a run, got a file")
    try:
        record = json.loads(path.read_bytes())
        for kind, values in ((Settings, record["settings"]), (ExecutionConfig, record["place"])):
            unknown = set(values) - {field.name for field in fields(kind)}
            if unknown:
                raise ValueError(f"settings that this release does not have: {sorted(unknown)}")
        return Settings(**record["settings"]), ExecutionConfig(**record["place"])
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: holds no run (run.json is missing); "
            f"pyro-bnn fit MODEL --out {folder} makes one"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: expected the settings of a run, found something else ({error})"
        ) from error


def settings_to_resume(
    folder: Path, requested: Mapping[str, Any], explicit: Collection[str]
) -> tuple[Settings, ExecutionConfig]:
    """Return the settings with which the run in a folder is resumed.

    Args:
        folder: of the run.
        requested: a value for each field of ``Settings`` and ``ExecutionConfig``.
        explicit: the fields that the user named. Settings among them must agree with those of the
            run; the other values of ``requested`` are defaults and are ignored.

    Raises:
        CheckpointError: if the folder holds no run, or a run with other settings; the message
            names them.
    """
    settings, execution = load_settings(folder)
    differing = []
    for name, value in asdict(settings).items():
        if name in explicit and requested[name] != value:
            differing.append(f"{name} ({value!r} in the run, {requested[name]!r} now)")
    if differing:
        raise CheckpointError(
            f"{folder}: the run there has other settings: {', '.join(differing)}; "
            "leave these options out to resume it, or choose another --out for a new run"
        )
    changes = {name: requested[name] for name in asdict(execution) if name in explicit}
    return settings, replace(execution, **changes)


def require_finished(folder: Path) -> None:
    """Refuse a run that has no posterior yet.

    Raises:
        CheckpointError: if the run is not finished.
    """
    if not (folder / "posterior.json").exists():
        raise CheckpointError(
            f"{folder}: the run is not over, posterior.json is missing; "
            f"resume it with pyro-bnn fit --out {folder} --resume"
        )


def interruption_note(folder: Path) -> str:
    """Return a line of text if the run was interrupted, else the empty string."""
    try:
        training = json.loads((folder / "metrics.json").read_bytes())["training"]
    except (OSError, ValueError, KeyError):  # it was not evaluated
        return ""
    if not training["interrupted"]:
        return ""
    return (
        f"note: the run was interrupted after {training['epochs']} epochs; "
        f"pyro-bnn fit --out {folder} --resume resumes it\n"
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("pyro-bnn", "torch", "pyro-ppl"):
        versions[package] = version(package)
    return versions


# --- data and posterior ---------------------------------------------------------------------------


def load_data(
    settings: Settings, directory: str | None, download: bool = False
) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """Return the data set of a run without the held-out examples, and these.

    The last ``settings.hold_out`` training examples are held out, for choices that must not use the
    test data.

    Args:
        settings: of the run.
        directory: the folder of all data sets; ``None`` for the default.
        download: fetch MNIST if it is not in the folder.

    Raises:
        ValueError: if no training example would remain.
        DataError: if a file is missing or damaged.
    """
    data = read_data(settings.data, settings.split, directory, download)
    return hold_out(data, settings.hold_out)


def load_posterior(folder: Path, settings: Settings, data: Dataset) -> Posterior:
    """Return the posterior of a finished run.

    Args:
        folder: of the run.
        settings: of the run.
        data: as :func:`load_data` returns them.

    Raises:
        CheckpointError: if the files are damaged or belong to another model.
    """
    model, guide = build(settings, data)
    return Posterior.load(folder / "posterior", model, guide=guide)


# --- training -------------------------------------------------------------------------------------


def train(
    folder: Path,
    program: ModelAndGuide,
    data: Dataset,
    settings: Settings,
    execution: ExecutionConfig,
    callbacks: Sequence[Callable[[Progress], None]] = (),
    progress: bool = True,
) -> Fit:
    """Fit a model with checkpoints in the folder, starting from the checkpoint in it, if any.

    Args:
        folder: of the run.
        program: model and guide.
        data: its training part is used.
        settings: number of epochs, batch size, schedules and seed.
        execution: the device, and how often to write checkpoints and snapshots.
        callbacks: called after each epoch.
        progress: show a bar.
    """
    rates = schedules(settings)
    if execution.snapshots:
        callbacks = [*callbacks, Snapshots(folder / "snapshots", execution.snapshots)]
    return fit(
        program.model,
        program.guide,
        data.train,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=rates.learning_rate,
        kl_weight=rates.kl_weight,
        seed=settings.seed,
        device=execution.device,
        callbacks=callbacks,
        checkpoint=folder / "checkpoint",
        checkpoint_every=execution.checkpoint_every,
        resume=True,
        progress=progress,
    )


def evaluate_and_save(folder: Path, result: Fit, data: Dataset, draws: int = 50) -> Evaluation:
    """Evaluate a fit; write ``posterior``, ``metrics.json`` and ``loss_terms.png``."""
    from pyro_bnn.plotting import plot_loss_terms

    result.posterior.save(folder / "posterior")
    evaluation = evaluate(result.posterior, data, draws)
    epochs = len(result.history["epoch"])
    seconds = result.history["seconds"][-1] if epochs else 0.0
    evaluation.metrics["training"] = {
        "epochs": epochs,
        "interrupted": result.interrupted,
        "minutes": seconds / 60,
        "seconds_per_epoch": seconds / max(epochs, 1),
    }
    write_json(folder / "metrics.json", evaluation.metrics)
    plot_loss_terms(result.history).savefig(folder / "loss_terms.png", dpi=150)
    return evaluation
