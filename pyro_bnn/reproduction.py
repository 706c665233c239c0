"""Published tables, run again: each recipe is a short program, and this is where it runs.

A recipe is a sequence of fits, each going on from the one before it: train, prune, train what is left. Each fit has a
folder of its own with its checkpoints and its posterior, so a recipe that was killed goes on where it stopped. The last
5,000 training images are held out: thresholds are chosen on them, never on test images; what is reported is the last
epoch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import load_tensors, save_tensors
from .compression.fine_tuning import fine_tune_pruned
from .compression.pruning import Pruned
from .data import Dataset
from .posterior import Posterior
from .training import fit

__all__ = ["Workbench", "error", "falling", "hold_out"]


@dataclass
class Workbench:
    """Where a recipe runs: its data, its seed, its folder, and the minutes that its fits took.

    Attributes:
        folder: every fit has a folder in it.
        data: without the held-out images.
        held_out: images and labels to choose thresholds on.
        seed: of weights, batches and noise.
        progress: show bars.
    """

    folder: Path
    data: Dataset
    held_out: tuple[Tensor, Tensor]
    seed: int = 0
    progress: bool = True
    minutes: float = field(default=0.0, init=False)

    @property
    def num_data(self) -> int:
        """The number of training examples, N."""
        return len(self.data.x_train)

    def fit(
        self, name: str, model: Any, guide: Any, train: tuple[Tensor, Tensor] | None = None, **options: Any
    ) -> Posterior:
        """Return the posterior of one fit, in batches of 100, or what it was if it has been run already.

        Args:
            name: of its folder.
            model: as for :func:`~pyro_bnn.fit`.
            guide: likewise.
            train: other training data than the workbench's.
            options: of :func:`~pyro_bnn.fit`.
        """
        path = self.folder / name
        if (path / "posterior.json").exists():
            self.minutes += json.loads((path / "minutes.json").read_text())
            return Posterior.load(path / "posterior", model, guide)
        settings: dict[str, Any] = {"batch_size": 100, "compile": True, "learning_rate": 1e-3} | options
        result = fit(
            model,
            guide,
            self.data.train if train is None else train,
            seed=self.seed,
            checkpoint=path,
            checkpoint_every=5,
            resume=True,
            progress=self.progress,
            **settings,
        )
        if result.interrupted:
            raise KeyboardInterrupt
        minutes = result.history["seconds"][-1] / 60
        (path / "minutes.json").write_text(json.dumps(minutes))
        result.posterior.save(path / "posterior")
        self.minutes += minutes
        return result.posterior

    def tuned(self, name: str, pruned: Pruned, teacher: Tensor, **options: Any) -> Pruned:
        """Return the pruned network fine-tuned towards the teacher's soft labels, or what it was if that has been done.

        Args:
            name: of its file.
            pruned: where it starts.
            teacher: class probabilities for the training images.
            options: of :func:`~pyro_bnn.compression.fine_tune_pruned`.
        """
        path = self.folder / name
        if path.with_suffix(".json").exists():
            tensors, facts = load_tensors(path)
            self.minutes += facts["minutes"]
            return pruned.with_values(tensors)
        started = time.perf_counter()
        settings: dict[str, Any] = {"batch_size": 100, "seed": self.seed, "progress": self.progress} | options
        result = fine_tune_pruned(pruned, self.data.train, teacher=teacher, **settings)
        minutes = (time.perf_counter() - started) / 60
        save_tensors(path, dict(result.module.state_dict()), {"minutes": minutes})
        self.minutes += minutes
        return result


def falling(start: float, constant: float, end: float) -> Callable[[float], float]:
    """Return a learning rate that is ``start`` until epoch ``constant`` and falls linearly to zero at epoch ``end``.

    >>> [falling(0.1, 10, 20)(epoch) for epoch in (0, 10, 15, 20)]
    [0.1, 0.1, 0.05, 0.0]
    """
    return lambda epoch: start * min(1.0, max(0.0, (end - epoch) / (end - constant)))


def hold_out(data: Dataset, num: int = 5000) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """Return the data set without its last ``num`` training examples, and these."""
    held = data.x_train[-num:], data.y_train[-num:]
    return replace(data, x_train=data.x_train[:-num], y_train=data.y_train[:-num]), held


@torch.no_grad()
def error(network: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Return the fraction of examples that are classified wrongly."""
    x, y = data
    return sum(
        int((network(x[i : i + 1000]).argmax(-1) != y[i : i + 1000]).sum()) for i in range(0, len(x), 1000)
    ) / len(x)
