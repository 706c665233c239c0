"""The demo: a run that reports how sparse the network is, and draws it at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from pyro_bnn import compression, plotting
from pyro_bnn.datasets import Dataset
from pyro_bnn.posterior import Posterior
from pyro_bnn.training import Progress

from .evaluation import Evaluation
from .settings import Settings

__all__ = ["SparsityMonitor", "demo_settings", "draw_run"]

_FIRST_LAYER = "fc1"


def demo_settings(epochs: int, seed: int) -> Settings:
    """Return the settings of the demo, chosen by cross-validation on the training digits.

    The warm-up of the KL term takes two thirds of the run, because an epoch of 1,437 digits has few
    steps, and a KL term that grows faster removes useful weights.
    """
    return Settings(
        model="lenet-300-100",
        epochs=epochs,
        learning_rate=3e-3,
        kl_warmup=f"{_dense_epochs(epochs)}:{max(2 * epochs // 3, 2)}",
        seed=seed,
    )


def _dense_epochs(epochs: int) -> int:
    """Return the number of epochs before the KL term sets in."""
    return max(epochs // 30, 1)


class SparsityMonitor:
    """A callback for :func:`~pyro_bnn.fit` that reports the sparsity about fifteen times in a run.

    Args:
        epochs: of the run.
        report: called with each line of text.

    Attributes:
        sizes: pairs of an epoch and the number of weights after pruning.
        dense: the first weight (units, inputs) at its posterior mean before the KL term sets in.
    """

    def __init__(self, epochs: int, report: Callable[[str], None]) -> None:
        self.every = max(epochs // 15, 1)
        self.dense_epochs = _dense_epochs(epochs)
        self.report = report
        self.sizes: list[tuple[int, int]] = []
        self.dense: Tensor | None = None

    def __call__(self, progress: Progress) -> None:
        """Prune the network after an epoch and count its weights."""
        if progress.epoch == self.dense_epochs:
            self.dense = progress.posterior().moments()[f"{_FIRST_LAYER}.weight"][0]
        if progress.epoch % self.every:
            return
        masks, _ = compression.keep_masks(progress.posterior())
        size, total = 0, 0
        for mask in masks.values():
            size += int(mask.sum())
            total += mask.numel()
        self.sizes.append((progress.epoch, size))
        data, kl = progress.history["data"][-1], progress.history["kl"][-1]
        self.report(
            f"epoch {progress.epoch:4d}   data {data:6.3f}   KL {kl:7.3f} nats per digit   "
            f"{size:6,d} of {total:,} weights left ({1 - size / total:.1%} zero)"
        )


def draw_run(
    folder: Path,
    posterior: Posterior,
    evaluation: Evaluation,
    data: Dataset,
    monitor: SparsityMonitor,
) -> list[str]:
    """Write figures of the run into the folder and return their file names.

    Raises:
        ValueError: if pruning removed every weight.
    """
    pruned = evaluation.pruned
    if pruned is None:
        raise ValueError("draw_run: expected a pruned network, but no weight remained")
    after = pruned.masked.get_parameter(f"{_FIRST_LAYER}.weight").detach()
    before = after if monitor.dense is None else monitor.dense
    x, y = data.test
    figures = {
        "weights.png": plotting.plot_weight_matrices(
            before, after, ("before the KL term sets in", "at the end, pruned"), "first layer"
        ),
        "draws.png": plotting.plot_accuracy_against_draws(posterior, x, y, pruned),
        "digits.png": plotting.plot_certain_digits(evaluation.prediction, x, y),
        "summary.png": plotting.plot_run_summary(
            monitor.sizes,
            after,
            evaluation.prediction,
            x,
            y,
            total=sum(layer.total for layer in pruned.report),
            accuracy=evaluation.metrics["mean_network"]["accuracy"],
        ),
    }
    for name, figure in figures.items():
        dpi = 200 if name == "summary.png" else 150
        figure.savefig(folder / name, dpi=dpi)
    return list(figures)
