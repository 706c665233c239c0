"""Snapshots of a run: the pruned weights every few epochs.

They show how a network becomes sparse.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pyro_bnn.compression import keep_masks
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.tensor_files import CheckpointError, require_folder, write_atomically
from pyro_bnn.training import Progress

__all__ = ["Snapshot", "Snapshots", "masked_means", "read_snapshots"]


class Snapshot(NamedTuple):
    """The weights after an epoch, zero where pruned."""

    epoch: int
    weights: dict[str, Tensor]


class Snapshots:
    """A callback for :func:`~pyro_bnn.fit` that writes :func:`masked_means` every few epochs.

    Each epoch has a file of its own, in half precision. A resumed run writes the same files as one
    that was never interrupted.

    Args:
        folder: where the files ``epoch-0005.safetensors`` go; created if it does not exist.
        every: the number of epochs from one snapshot to the next.

    Raises:
        ValueError: if ``every`` is less than one.
        CheckpointError: if the folder cannot be made or a file cannot be written.
    """

    def __init__(self, folder: Path, every: int) -> None:
        if every < 1:
            raise ValueError(
                f"Snapshots: expected at least one epoch from one to the next, got {every}"
            )
        self.folder = folder
        self.every = every

    def __call__(self, progress: Progress) -> None:
        """Write a snapshot if the epoch is a multiple of ``every``."""
        if progress.epoch % self.every:
            return
        require_folder(self.folder)
        path = self.folder / f"epoch-{progress.epoch:04d}.safetensors"
        halves = {}
        for name, weight in masked_means(progress.posterior()).items():
            halves[name] = weight.cpu().half().contiguous()
        try:
            write_atomically(path, save(halves))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot write ({error.strerror})") from error


@torch.no_grad()
def masked_means(posterior: Posterior, threshold: float = 3.0) -> dict[str, Tensor]:
    """Return the posterior mean of every weight, zero where pruning removes it.

    Args:
        posterior: of a ``BayesianNet``; the means of a point estimate are returned unchanged.
        threshold: of log alpha, or of the measure of groups, as for
            :func:`~pyro_bnn.compression.prune`.
    """
    moments = posterior.moments()
    means = {}
    has_variance = False
    for name in posterior.model.names:
        mean, variance = moments[name]
        means[name] = mean
        has_variance = has_variance or bool(variance.any())
    if not has_variance:
        return means
    masks, _ = keep_masks(posterior, threshold)
    return {name: mean * masks[name] for name, mean in means.items()}


def read_snapshots(folder: Path) -> list[Snapshot]:
    """Return the snapshots in a folder by increasing epoch; none if the folder does not exist.

    Raises:
        CheckpointError: if a file cannot be read or is not a safetensors file.
    """
    snapshots = []
    for path in sorted(folder.glob("epoch-*.safetensors"), key=_epoch):
        try:
            snapshots.append(Snapshot(_epoch(path), load(path.read_bytes())))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path}: not a safetensors file ({error})") from error
    return snapshots


def _epoch(path: Path) -> int:
    digits = re.fullmatch(r"epoch-(\d+)\.safetensors", path.name)
    return int(digits[1]) if digits else -1
