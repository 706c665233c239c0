"""The experiment that a recipe runs in: its data, its seed, and a folder for each stage.

A recipe is a sequence of fits, each of which continues the one before it: train, prune, train the
remaining weights. Each fit has a folder of its own with its checkpoints and its posterior, so that
a recipe that was killed resumes where it stopped. The last 5,000 training images are held out:
thresholds are chosen on them, never on test images, and the last epoch is reported.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_bnn.compression import Pruned, fine_tune, fine_tune_pruned, quantize
from pyro_bnn.datasets import Dataset
from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.tensor_files import load_tensors, save_tensors
from pyro_bnn.training import fit
from pyro_bnn.training.schedules import Schedule
from pyro_bnn.variational.guide import Guide

__all__ = [
    "DistillationData",
    "Experiment",
    "shifted_images",
    "soft_labels",
]


@dataclass(frozen=True)
class DistillationData:
    """Images (n, pixels) with their labels (n,) and a teacher's probabilities (n, classes)."""

    teacher: nn.Module
    x: Tensor
    y: Tensor

    @cached_property
    def soft_labels(self) -> Tensor:
        """The class probabilities, computed when they are first needed."""
        return soft_labels(self.teacher, self.x)


@dataclass
class Experiment:
    """Data, seed and folder of a recipe, and the duration of its fits in minutes.

    Attributes:
        folder: contains a folder for each fit.
        data: without the held-out images.
        held_out: images and labels to choose thresholds on.
        seed: of weights, batches and noise.
        progress: show bars.
        device: where posteriors are fitted, as for :func:`~pyro_bnn.fit`.
        minutes: of all fits so far.
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
        """The data set with the held-out images returned to the training images."""
        x, y = self.held_out
        return replace(
            self.data,
            x_train=torch.cat([self.data.x_train, x]),
            y_train=torch.cat([self.data.y_train, y]),
        )

    @property
    def num_data(self) -> int:
        """The number of training examples, N."""
        return len(self.data.x_train)

    @property
    def shifted_train(self) -> tuple[Tensor, Tensor]:
        """The training images unchanged and shifted by one pixel to each side, and their labels.

        Shapes: (5 N, pixels) and (5 N,).
        """
        x, y = self.data.train
        mean = self.data.x_mean / self.data.x_std
        copies = [x]
        for right, down in _SHIFTS:
            copies.append(shifted_images(x, mean, right, down))
        return torch.cat(copies), y.repeat(len(copies))

    def within(self, name: str) -> Experiment:
        """Return an experiment in a folder of this one, with the minutes of this one so far."""
        inner = replace(self, folder=self.folder / name)
        inner.minutes = self.minutes
        return inner

    def fit(
        self,
        name: str,
        model: BayesianNet,
        guide: Guide,
        train: tuple[Tensor, Tensor] | None = None,
        *,
        epochs: int,
        batch_size: int = 100,
        learning_rate: Schedule = 1e-3,
        kl_weight: Schedule = 1.0,
        compile: bool = True,
    ) -> Posterior:
        """Return the fitted posterior, or read it if this fit is finished.

        Args:
            name: of the fit's folder.
            model: as for :func:`~pyro_bnn.fit`.
            guide: likewise.
            train: training data; by default those of the experiment.
            epochs: the number of passes over the training data.
            batch_size: the number of images in a batch.
            learning_rate: a number or a function of the epoch.
            kl_weight: likewise.
            compile: compile the training step.
        """
        folder = self.folder / name
        if (folder / "posterior.json").exists():
            self.minutes += json.loads((folder / "minutes.json").read_text())
            return Posterior.load(folder / "posterior", model, guide)
        result = fit(
            model,
            guide,
            self.data.train if train is None else train,
            seed=self.seed,
            checkpoint=folder,
            checkpoint_every=5,
            resume=True,
            progress=self.progress,
            device=self.device,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            kl_weight=kl_weight,
            compile=compile,
        )
        if result.interrupted:
            raise KeyboardInterrupt
        minutes = result.history["seconds"][-1] / 60
        (folder / "minutes.json").write_text(json.dumps(minutes))
        result.posterior.save(folder / "posterior")
        self.minutes += minutes
        return result.posterior

    def distillation_data(self, teacher: nn.Module, shifted: bool = True) -> DistillationData:
        """Return the training images with a teacher's predictions.

        Args:
            teacher: maps images to scores (n, classes).
            shifted: include the images shifted by one pixel.
        """
        x, y = self.shifted_train if shifted else self.data.train
        return DistillationData(teacher, x, y)

    def fine_tune(
        self,
        name: str,
        pruned: Pruned,
        distillation: DistillationData,
        *,
        epochs: int,
        levels: int | Mapping[str, int] | None = None,
        half_rate: bool = False,
    ) -> Pruned:
        """Return the network fine-tuned toward the soft labels, or read it if that is finished.

        Args:
            name: of the file.
            pruned: the network before fine-tuning.
            distillation: as :meth:`distillation_data` returns it.
            epochs: over the images.
            levels: quantize each parameter to this number of distinct values (or to a number by
                name pattern) and fine-tune the values.
            half_rate: use batches of 100 and a learning rate of 1e-3 instead of 200 and 2e-3, for
                networks with few weights.
        """
        path = self.folder / name
        if path.with_suffix(".json").exists():
            tensors, facts = load_tensors(path)
            self.minutes += facts["minutes"]
            return pruned.with_values(tensors)
        started = time.perf_counter()
        batch_size, learning_rate = (100, 1e-3) if half_rate else (200, 2e-3)
        data = distillation.x, distillation.y
        if levels is None:
            result = fine_tune_pruned(
                pruned,
                data,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                teacher=distillation.soft_labels,
                seed=self.seed,
                progress=self.progress,
            )
        else:
            result = fine_tune(
                quantize(pruned, levels),
                data,
                start=pruned,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                teacher=distillation.soft_labels,
                seed=self.seed,
                progress=self.progress,
            )
        minutes = (time.perf_counter() - started) / 60
        save_tensors(path, dict(result.module.state_dict()), {"minutes": minutes})
        self.minutes += minutes
        return result


_SHIFTS = ((1, 0), (-1, 0), (0, 1), (0, -1))


def shifted_images(x: Tensor, mean: Tensor, right: int, down: int) -> Tensor:
    """Return images shifted by whole pixels, cyclically.

    Args:
        x: images (n, size * size) from which ``mean`` was subtracted.
        mean: (size * size,); it is subtracted again after the shift.
        right: pixels to the right.
        down: pixels downwards.
    """
    size = math.isqrt(x.shape[1])
    images = (x + mean).view(-1, size, size)
    return torch.roll(images, (down, right), (1, 2)).flatten(1) - mean


@torch.no_grad()
def soft_labels(network: nn.Module, x: Tensor, temperature: float = 2.0) -> Tensor:
    r"""Return a teacher's class probabilities, :math:`\mathrm{softmax}(f(x) / T)`, (n, classes).

    Source: Hinton, Vinyals & Dean (2015), section 2.
    """
    batches = torch.split(x, 1000)
    return torch.cat([torch.softmax(network(batch) / temperature, -1) for batch in batches])
