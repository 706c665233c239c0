"""Published tables, run again: each recipe is a short program, and this is where it runs.

A recipe is a sequence of fits, each going on from the one before it: train, prune, train what is left. Each fit has a
folder of its own with its checkpoints and its posterior, so a recipe that was killed goes on where it stopped. The last
5,000 training images are held out: thresholds are chosen on them, never on test images; what is reported is the last
epoch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bnn.compression.pruning.pruned_network import Pruned
from pyro_bnn.compression.quantization.codebooks import quantize
from pyro_bnn.compression.quantization.fine_tuning import fine_tune, fine_tune_pruned
from pyro_bnn.datasets import Dataset
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.tensor_files import load_tensors, save_tensors
from pyro_bnn.training import fit

__all__ = ["DistillationData", "Experiment", "linear_decay", "delayed", "shifted", "soft_labels"]


@dataclass(frozen=True)
class DistillationData:
    """What a teacher teaches: images (n, pixels), their labels (n,), and its class probabilities (n, classes)."""

    teacher: nn.Module
    x: Tensor
    y: Tensor

    @cached_property
    def soft_labels(self) -> Tensor:
        """What the teacher says of the images; it is asked once, when this is first needed."""
        return soft_labels(self.teacher, self.x)


@dataclass
class Experiment:
    """Where a recipe runs: its data, its seed, its folder, and the minutes that its fits took.

    Attributes:
        folder: every fit has a folder in it.
        data: without the held-out images.
        held_out: images and labels to choose thresholds on.
        seed: of weights, batches and noise.
        progress: show bars.
        device: where posteriors are fitted, as for :func:`~pyro_bnn.fit`.
    """

    folder: Path
    data: Dataset
    held_out: tuple[Tensor, Tensor]
    seed: int = 0
    progress: bool = True
    device: str | None = None
    minutes: float = field(default=0.0, init=False)

    @property
    def everything(self) -> Dataset:
        """The data set with the held-out images among the training images again."""
        parts = zip(self.data.train, self.held_out, strict=True)
        x, y = (torch.cat(pair) for pair in parts)
        return replace(self.data, x_train=x, y_train=y)

    @property
    def num_data(self) -> int:
        """The number of training examples, N."""
        return len(self.data.x_train)

    @property
    def shifted_train(self) -> tuple[Tensor, Tensor]:
        """The training images as they are and moved by one pixel to each side, (5 N, pixels), and their labels."""
        x, y = self.data.train
        mean = self.data.x_mean / self.data.x_std
        x = torch.cat([x, *(shifted(x, mean, *by) for by in _NEIGHBOURS)])
        return x, y.repeat(1 + len(_NEIGHBOURS))

    def within(self, name: str) -> Experiment:
        """Return a workbench in a folder of this one, for what goes on from what was done so far."""
        own = replace(self, folder=self.folder / name)
        own.minutes = self.minutes
        return own

    def fit(
        self,
        name: str,
        model: Any,
        guide: Any,
        train: tuple[Tensor, Tensor] | None = None,
        **options: Any,
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
        settings: dict[str, Any] = {
            "batch_size": 100,
            "compile": True,
            "learning_rate": 1e-3,
        } | options
        result = fit(
            model,
            guide,
            self.data.train if train is None else train,
            seed=self.seed,
            checkpoint=path,
            checkpoint_every=5,
            resume=True,
            progress=self.progress,
            device=self.device,
            **settings,
        )
        if result.interrupted:
            raise KeyboardInterrupt
        minutes = result.history["seconds"][-1] / 60
        (path / "minutes.json").write_text(json.dumps(minutes))
        result.posterior.save(path / "posterior")
        self.minutes += minutes
        return result.posterior

    def distillation_data(self, teacher: nn.Module, shifted: bool = True) -> DistillationData:
        """Return the training images, moved by one pixel too or not, and who says what they are."""
        return DistillationData(teacher, *(self.shifted_train if shifted else self.data.train))

    def fine_tune(
        self,
        name: str,
        pruned: Pruned,
        lesson: DistillationData,
        levels: int | Mapping[str, int] | None = None,
        **options: Any,
    ) -> Pruned:
        """Return the pruned network fine-tuned towards a teacher's soft labels, or what it was if that has been done.

        Args:
            name: of its file.
            pruned: where it starts.
            lesson: of :meth:`distillation_data`.
            levels: quantise to so many distinct values in each parameter (or by patterns), and fine-tune these.
            options: of :func:`~pyro_bnn.compression.fine_tune`; batches of 200 and a rate of 2e-3 if not given.
        """
        path = self.folder / name
        if path.with_suffix(".json").exists():
            tensors, facts = load_tensors(path)
            self.minutes += facts["minutes"]
            return pruned.with_values(tensors)
        started = time.perf_counter()
        settings: dict[str, Any] = {"batch_size": 200, "learning_rate": 2e-3} | options
        settings |= {"teacher": lesson.soft_labels, "seed": self.seed, "progress": self.progress}
        if levels is None:
            result = fine_tune_pruned(pruned, (lesson.x, lesson.y), **settings)
        else:
            result = fine_tune(
                quantize(pruned, levels), (lesson.x, lesson.y), start=pruned, **settings
            )
        minutes = (time.perf_counter() - started) / 60
        save_tensors(path, dict(result.module.state_dict()), {"minutes": minutes})
        self.minutes += minutes
        return result


def linear_decay(start: float, constant: float, end: float) -> Callable[[float], float]:
    """Return a learning rate that is ``start`` until epoch ``constant`` and falls linearly to zero at epoch ``end``.

    >>> [linear_decay(0.1, 10, 20)(epoch) for epoch in (0, 10, 15, 20)]
    [0.1, 0.1, 0.05, 0.0]
    """
    return lambda epoch: start * min(1.0, max(0.0, (end - epoch) / (end - constant)))


_NEIGHBOURS = ((1, 0), (-1, 0), (0, 1), (0, -1))


def shifted(x: Tensor, mean: Tensor, right: int, down: int) -> Tensor:
    """Return images (n, size * size) moved by so many pixels; ``mean`` is what was subtracted from each image."""
    size = math.isqrt(x.shape[1])
    return torch.roll((x + mean).view(-1, size, size), (down, right), (1, 2)).flatten(1) - mean


@torch.no_grad()
def soft_labels(network: nn.Module, x: Tensor, temperature: float = 2.0) -> Tensor:
    r"""Return the teacher's class probabilities, :math:`\mathrm{softmax}(f(x) / T)`: (n, classes).

    Source: Hinton, Vinyals & Dean (2015), section 2.
    """
    return torch.cat([torch.softmax(network(part) / temperature, -1) for part in x.split(1000)])


def delayed(schedule: Callable[[float], float], start: float) -> Callable[[float], float]:
    """Return the schedule from epoch ``start`` on, for a fit that goes on from another."""
    return lambda epoch: schedule(start + epoch)
