"""The checkpoint of a run: how ``fit`` saves its state to a folder and resumes from it.

A checkpoint holds everything that the following steps depend on: parameters and buffers, the state
of the optimizer and of the random number generators, the history and the number of steps. A run
that is resumed therefore continues bit for bit as if it had never stopped. The files,
``checkpoint.json`` and the tensors that it names, are written by
:mod:`~pyro_bnn.runtime.tensor_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_bnn.runtime.rng import generators
from pyro_bnn.runtime.run_identity import require_same_run
from pyro_bnn.runtime.tensor_files import (
    CheckpointError,
    load_tensors,
    require_folder,
    save_tensors,
    tensors_under,
)

from .state import EpochSums
from .training_run import TrainingRun

__all__ = ["Checkpoint", "open_checkpoint"]


@dataclass
class Checkpoint:
    """Where and how often the state of a run is saved.

    Attributes:
        folder: the folder of the files.
        identity: settings, data and shapes that must be the same when the run is resumed.
        every: number of epochs between two checkpoints.
    """

    folder: Path
    identity: dict[str, Any]
    every: int

    def is_due(self, epoch: int) -> bool:
        """Return whether to save after an epoch."""
        return epoch % self.every == 0

    def save(self, run: TrainingRun) -> None:
        """Write the state of a run.

        Raises:
            CheckpointError: the disk is full or cannot be written to; the previous checkpoint is
                unchanged.
        """
        state = run.state
        facts = {
            "identity": self.identity,
            "step": state.step,
            "seconds": state.seconds,
            "history": state.history,
            "sums": asdict(state.sums),
        }
        save_tensors(self.folder / "checkpoint", _tensors_of(run), facts)

    def restore(self, run: TrainingRun, compile: bool | None) -> None:
        """Restore the saved state of a run.

        Args:
            run: a run of the same model, guide, data and settings; it is changed in place.
            compile: the setting of ``fit``; ``None`` lets the run continue as it began, compiled or
                not, however many steps are requested now.

        Raises:
            CheckpointError: the checkpoint is damaged, or of another run.
        """
        tensors, facts = load_tensors(self.folder / "checkpoint")
        saved_identity = facts.get("identity", {})
        if compile is None:
            run.compile = saved_identity.get("compile", False)
            self.identity["compile"] = run.compile
        require_same_run(self.folder, saved_identity, self.identity)
        _restore_tensors(run, tensors)
        run.state.step = facts["step"]
        run.state.seconds = facts["seconds"]
        run.state.history = facts["history"]
        run.state.sums = EpochSums(**facts["sums"])


def open_checkpoint(
    folder: Path,
    run: TrainingRun,
    settings: Mapping[str, float | str | None],
    compile: bool | None,
    every: int,
    resume: bool,
) -> Checkpoint:
    """Return the checkpoint of a run, and restore the run from it if it is to be resumed.

    Args:
        folder: the folder of the files; created where necessary.
        run: a run that has taken no step.
        settings: the settings of ``fit`` that must be the same when the run is resumed.
        compile: the setting of ``fit``.
        every: number of epochs between two checkpoints.
        resume: whether to continue from the files in the folder; if there are none, the run starts.

    Raises:
        CheckpointError: the folder holds another run, or one although ``resume`` is false; it is
            damaged, or cannot be written to.
    """
    exists = (folder / "checkpoint.json").exists()
    if exists and not resume:
        raise CheckpointError(
            f"{folder}: holds the checkpoint of a run; resume it (resume=True) or choose another "
            "folder"
        )
    checkpoint = Checkpoint(folder, _identity_of(run, settings), every)
    if exists:
        checkpoint.restore(run, compile)
    require_folder(folder)
    return checkpoint


def _identity_of(run: TrainingRun, settings: Mapping[str, float | str | None]) -> dict[str, Any]:
    """Return the settings, data and shapes that must be the same when a run is resumed."""
    shapes = {}
    for name, value in run.loss.state_dict().items():
        shapes[name] = f"{value.dtype} {list(value.shape)}"
    return {
        **settings,
        "compile": run.compile,
        "optimizer": _describe_optimizer(run.optimizer),
        "device": run.device.type,
        "batch_size": run.batches.size,
        "num_data": run.batches.num_data,
        "data": run.batches.fingerprint(),
        "tensor": shapes,
    }


def _describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """Return the class of an optimizer and its settings, without the learning rate."""
    groups = []
    for group in optimizer.param_groups:
        groups.append({key: group[key] for key in group if key not in ("params", "lr")})
    return f"{type(optimizer).__name__} {groups}"


def _tensors_of(run: TrainingRun) -> dict[str, Tensor]:
    """Return parameters, buffers, optimizer state and random state of a run as flat tensors."""
    tensors = {}
    for name, value in run.loss.state_dict().items():
        tensors[f"loss.{name}"] = value
    for index, state in run.optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
    for name, generator in generators(run.device).items():
        tensors[f"random.{name}"] = generator.get_state()
    return tensors


def _restore_tensors(run: TrainingRun, tensors: Mapping[str, Tensor]) -> None:
    """Restore what :func:`_tensors_of` returned."""
    run.loss.load_state_dict(tensors_under("loss", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors_under("optimizer", tensors).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": state, "param_groups": groups})
    for name, generator in generators(run.device).items():
        generator.set_state(tensors[f"random.{name}"])
