"""Runs on disk: a folder that says what was run, how far it came, and how good it is.

``run.json`` holds the settings, ``checkpoint/`` the state of the training, ``posterior.json`` with its safetensors file
the result, ``metrics.json`` how it does on the test data. These are looked at once, after the last epoch.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import CheckpointError
from .data import Dataset
from .evaluation import Evaluation, evaluate
from .folders import require_empty, write_json
from .snapshots import Snapshots
from .training import Fit, Progress, fit, linear_warmup

__all__ = [
    "Place",
    "Settings",
    "begin",
    "claimed",
    "data_of",
    "finish",
    "hold_out",
    "interruption",
    "load",
    "require_posterior",
    "resumed",
    "schedules",
    "train",
]


@dataclass(frozen=True)
class Settings:
    """What makes a run the run that it is; equal settings in equal places give equal posteriors, bit for bit."""

    model: str
    prior: str = "log-uniform"
    guide: str = "sparse-vd"
    data: str = "digits"
    split: int = 0
    hold_out: int = 0
    hidden: str = ""
    prior_scale: float = 1.0
    dropout: float = 0.5
    tricks: bool = True
    epochs: int = 200
    batch_size: int = 100
    learning_rate: float = 1e-3
    schedule: str = "half-linear"
    kl_warmup: str = "5:20"
    seed: int = 0


@dataclass(frozen=True)
class Place:
    """Where and how a run is computed, and what is kept of it; none of it changes what is computed, rounding apart."""

    device: str = "cpu"
    threads: int | None = None
    data_dir: str | None = None
    checkpoint_every: int = 1
    snapshots: int = 0


def schedules(settings: Settings) -> tuple[Callable[[float], float], Callable[[float], float]]:
    r"""Return learning rate and KL weight as functions of the epoch, constant within each epoch e = 0, 1, ..., E - 1.

    The rate is :math:`\eta` (``constant``), :math:`\eta(1 - e/E)` (``linear``), or :math:`\eta\min(2 - 2e/E, 1)`
    (``half-linear``). A warm-up ``A:B`` is a KL weight of zero up to epoch A that reaches one at epoch B; ``none`` is
    one throughout.

    Raises:
        ValueError: an unknown schedule, a warm-up of another form, a learning rate that is not positive.
    """
    rate, epochs = settings.learning_rate, settings.epochs
    if not 0 < rate < math.inf or epochs < 1:
        raise ValueError(f"expected a learning rate above zero and at least one epoch, got {rate} and {epochs}")
    factors: dict[str, Callable[[int], float]] = {
        "constant": lambda epoch: 1.0,
        "linear": lambda epoch: 1 - epoch / epochs,
        "half-linear": lambda epoch: min(2 - 2 * epoch / epochs, 1.0),
    }
    if settings.schedule not in factors:
        raise ValueError(f"schedule: expected one of {', '.join(factors)}, got {settings.schedule!r}")
    factor, warmup = factors[settings.schedule], _warmup(settings.kl_warmup)
    # an epoch need not be a whole number of steps: what lies a rounding error below it counts as the epoch
    return lambda epoch: rate * factor(int(epoch + 1e-9)), lambda epoch: warmup(int(epoch + 1e-9))


def _warmup(text: str) -> Callable[[float], float]:
    if text == "none":
        return lambda epoch: 1.0
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError:
        start, end = 0.0, -1.0
    if not 0 <= start < end < math.inf:
        meaning = "the epochs where the KL weight leaves 0 and reaches 1"
        raise ValueError(f"kl-warmup: expected A:B with 0 <= A < B, {meaning}, or none; got {text!r}")
    return linear_warmup(start, end)


# --- the folder -------------------------------------------------------------------------------------------------------


def begin(folder: Path, settings: Settings, place: Place) -> None:
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
    write_json(folder / "run.json", {"settings": asdict(settings), "place": asdict(place), "versions": _versions()})


@contextlib.contextmanager
def claimed(folder: Path, settings: Settings, place: Place) -> Iterator[None]:
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


def load(folder: Path) -> tuple[Settings, Place]:
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
        for kind, values in ((Settings, settings), (Place, place)):  # what an older release lacks has its default
            if not set(values) <= {field.name for field in fields(kind)}:
                raise ValueError("other settings than this release has")
        return Settings(**settings), Place(**place)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: holds no run (there is no run.json in it); pyro-bnn fit MODEL --out {folder} makes one"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: expected the settings of a run, found something else ({error})") from error


def require_posterior(folder: Path) -> None:
    """Refuse a run that is not over.

    Raises:
        CheckpointError: it has no posterior yet.
    """
    if not (folder / "posterior.json").exists():
        way_out = f"go on with pyro-bnn fit --out {folder} --resume"
        raise CheckpointError(f"{folder}: the run is not over, there is no posterior.json; {way_out}")


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


def resumed(folder: Path, asked: Mapping[str, Any], named: Collection[str]) -> tuple[Settings, Place]:
    """Return settings and place of the run in the folder, to go on with it.

    Args:
        folder: of the run.
        asked: what the user asks for now, by the names of the fields of ``Settings`` and ``Place``.
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
    return settings, Place(**{key: asked[key] if key in named else value for key, value in asdict(place).items()})


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("pyro-bnn", "torch", "pyro-ppl")}}


# --- data ------------------------------------------------------------------------------------------------------------


def data_of(settings: Settings, directory: str | None, download: bool = False) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """Return the data of a run without the training examples that it holds out, and these.

    The last ones are held out, to choose on, where test data must not be used.

    Args:
        settings: of the run.
        directory: where data sets are.
        download: fetch what is not there.

    Raises:
        ValueError: none would be left to train on.
    """
    from .cli_names import data_by_name

    _, read = data_by_name()[settings.data]
    data = read(settings.split, directory, download)
    return hold_out(data, settings.hold_out)


def hold_out(data: Dataset, num: int) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """Return the data set without its last ``num`` training examples, and these.

    Raises:
        ValueError: none would be left to train on, or none of some class.
    """
    left = len(data.x_train) - num
    if not 0 < left <= len(data.x_train):
        there = f"the {len(data.x_train)} training examples of {data.name}"
        raise ValueError(f"hold-out: expected fewer than {there}, got {num}")
    held_out = data.x_train[left:], data.y_train[left:]
    if data.classes is not None and (gone := set(held_out[1].tolist()) - set(data.y_train[:left].tolist())):
        raise ValueError(f"hold-out: the last {num} examples are all that there are of class {min(gone)}; shuffle them")
    return replace(data, x_train=data.x_train[:left], y_train=data.y_train[:left]), held_out


# --- training ---------------------------------------------------------------------------------------------------------


def train(
    folder: Path,
    model: Any,
    guide: Any,
    data: Dataset,
    settings: Settings,
    place: Place,
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
    from . import plots

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
