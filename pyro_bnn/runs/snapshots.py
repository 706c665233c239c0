"""Snapshots of a run: the weights as they would be after pruning, every few epochs, to see a network get sparse."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pyro_bnn.compression.pruning.posterior_pruning import keep_masks
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.tensor_files import CheckpointError, require_folder, write_atomically
from pyro_bnn.training import Progress

__all__ = ["Snapshots", "masked_means", "read_snapshots"]


class Snapshots:
    """A callback for :func:`~pyro_bnn.fit` that keeps :func:`masked_means` in half precision, in a file per epoch.

    A run that goes on writes the same files as one that never stopped.

    Args:
        folder: where the files ``epoch-0005.safetensors`` go; it is made.
        every: so many epochs lie between two of them.

    Raises:
        ValueError: fewer than one.
        CheckpointError: the folder cannot be made, or a file cannot be written.
    """

    def __init__(self, folder: Path, every: int) -> None:
        if every < 1:
            raise ValueError(
                f"Snapshots: expected at least one epoch from one to the next, got {every}"
            )
        self.folder, self.every = folder, every

    def __call__(self, seen: Progress) -> None:
        """Keep the weights, if it is time."""
        if seen.epoch % self.every:
            return
        require_folder(self.folder)
        path = self.folder / f"epoch-{seen.epoch:04d}.safetensors"
        weights = masked_means(seen.posterior())
        try:
            write_atomically(
                path,
                save({name: value.cpu().half().contiguous() for name, value in weights.items()}),
            )
        except OSError as error:
            raise CheckpointError(f"{path}: cannot write ({error.strerror})") from error


@torch.no_grad()
def masked_means(posterior: Posterior, threshold: float = 3.0) -> dict[str, Tensor]:
    """Return the posterior mean of every weight, zero where log alpha, or the measure of its group, is at or above the
    threshold.

    Args:
        posterior: of a ``BayesianNet``.
        threshold: as for :func:`~pyro_bnn.compression.prune`.
    """
    moments = posterior.moments()
    means = {name: moments[name][0] for name in posterior.model.names}
    if not any(
        bool(moments[name][1].any()) for name in means
    ):  # a point estimate: nothing is known to be noise
        return means
    masks, _ = keep_masks(posterior, threshold)
    return {name: mean * masks[name] for name, mean in means.items()}


def read_snapshots(folder: Path) -> list[tuple[int, dict[str, Tensor]]]:
    """Return pairs of an epoch and the weights then, in the order of the epochs; none if there is no such folder.

    Raises:
        CheckpointError: a file that cannot be read, or is none of safetensors.
    """
    found = []
    for path in sorted(folder.glob("epoch-*.safetensors"), key=_epoch):
        try:
            found.append((_epoch(path), load(path.read_bytes())))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path}: not a safetensors file ({error})") from error
    return found


def _epoch(path: Path) -> int:
    digits = re.fullmatch(r"epoch-(\d+)\.safetensors", path.name)
    return int(digits[1]) if digits else -1
