"""The demo: a run like any other, watched while it gets sparse, and drawn when it is over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_bnn import compression
from pyro_bnn.datasets import Dataset
from pyro_bnn.plotting import posterior as plots
from pyro_bnn.posterior import Posterior
from pyro_bnn.training import Progress

from .evaluation import Evaluation
from .settings import Settings

__all__ = ["Watch", "draw", "settings"]

_FIRST_LAYER = "fc1"


def settings(epochs: int, seed: int) -> Settings:
    """Return the settings of the demo, chosen by cross-validation on the training digits.

    The warm-up of the KL term takes two thirds of the run: so few digits make few steps, and a KL term that sets in
    faster drops weights that were of use.
    """
    return Settings(
        model="lenet-300-100",
        epochs=epochs,
        learning_rate=3e-3,
        kl_warmup=f"{_dense_epochs(epochs)}:{max(2 * epochs // 3, 2)}",
        seed=seed,
    )


def _dense_epochs(epochs: int) -> int:
    """Return how many epochs are trained before the KL term sets in."""
    return max(epochs // 30, 1)


class Watch:
    """A callback for :func:`~pyro_bnn.fit` that says some fifteen times how sparse the network is.

    Args:
        epochs: of the run.
        say: called with each line.

    Attributes:
        sizes: pairs of an epoch and the number of weights left.
        dense: the first weight (units, inputs) at its posterior mean before the KL term sets in.
    """

    def __init__(self, epochs: int, say: Callable[[str], None]) -> None:
        self.every, self.dense_epochs, self.say = max(epochs // 15, 1), _dense_epochs(epochs), say
        self.sizes: list[tuple[int, int]] = []
        self.dense: Tensor | None = None

    def __call__(self, seen: Progress) -> None:
        """Look at the run after an epoch."""
        if seen.epoch == self.dense_epochs:
            self.dense = seen.posterior().moments()[f"{_FIRST_LAYER}.weight"][0]
        if seen.epoch % self.every:
            return
        masks, _ = compression.keep_masks(seen.posterior())
        kept = sum(int(mask.sum()) for mask in masks.values())
        total = sum(mask.numel() for mask in masks.values())
        self.sizes.append((seen.epoch, kept))
        terms = f"data {seen.history['data'][-1]:6.3f}   KL {seen.history['kl'][-1]:7.3f} nats per digit"
        self.say(
            f"epoch {seen.epoch:4d}   {terms}   {kept:6,d} of {total:,} weights left ({1 - kept / total:.1%} zero)"
        )


def draw(
    folder: Path, posterior: Posterior, evaluation: Evaluation, data: Dataset, watch: Watch
) -> list[str]:
    """Write the pictures of the run into the folder and return the names of their files."""
    pruned: Any = evaluation.pruned
    after = pruned.masked.get_submodule(_FIRST_LAYER).weight.detach()
    before = after if watch.dense is None else watch.dense
    total = sum(layer.total for layer in pruned.report)
    x, y = data.test
    accuracy = evaluation.metrics["mean_network"]["accuracy"]
    pictures = {
        "weights": plots.weight_matrices(
            before, after, ("before the KL term sets in", "at the end, pruned"), "first layer"
        ),
        "draws": plots.accuracy_against_draws(posterior, x, y, pruned),
        "digits": plots.certain_digits(evaluation.prediction, x, y),
        "summary": plots.summary(watch.sizes, after, evaluation.prediction, x, y, total, accuracy),
    }
    for name, picture in pictures.items():
        picture.savefig(folder / f"{name}.png", dpi=200 if name == "summary" else 150)
    return [f"{name}.png" for name in pictures]
