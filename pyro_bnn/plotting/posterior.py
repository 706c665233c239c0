"""Figures of fits and predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_bnn.compression import Pruned
from pyro_bnn.posterior import Posterior, Prediction

from .panels import draw_band, draw_digit
from .style import BLUE, GRAY, ORANGE, new_figure, open_axes, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "plot_accuracy_against_draws",
    "plot_certain_digits",
    "plot_loss_terms",
    "plot_regression_bands",
]


def plot_loss_terms(history: Mapping[str, Sequence[float]]) -> Figure:
    """Plot the two terms of the loss, and the weight of the second, over the epochs.

    Above: the data term and the KL divergence in nats per training example, on a logarithmic axis
    where both are positive. Below: the weight of the KL divergence.

    Args:
        history: of :func:`~pyro_bnn.fit`; ``epoch``, ``data``, ``kl`` and ``kl_weight`` are used.
    """
    figure = new_figure(7.0, 4.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    epochs, data, kl = history["epoch"], history["data"], history["kl"]
    above.plot(epochs, data, color=BLUE, label="data term, $-\\log p(y\\,|\\,x,w)$")
    above.plot(epochs, kl, color=ORANGE, label="KL divergence to the prior")
    if len(epochs) and min(*data, *kl, math.inf) > 0:
        above.set_yscale("log")
    above.set_ylabel("nats per example")
    above.legend(frameon=False)
    # "pre" steps: the weight at an epoch's end is the one that was used in it
    below.step(epochs, history["kl_weight"], color=GRAY)
    below.set_ylim(-0.08, 1.08)
    below.set_ylabel("KL weight")
    below.set_xlabel("epoch")
    last = "no epoch is over yet"
    if len(epochs):
        last = f"data term {data[-1]:.3g}, KL divergence {kl[-1]:.3g} nats per example"
    set_title(above, f"After {len(epochs)} epochs: {last}")
    for axes in (above, below):
        open_axes(axes)
    return figure


def plot_accuracy_against_draws(
    posterior: Posterior,
    x: Tensor,
    y: Tensor,
    pruned: Pruned | None = None,
    draws: int = 50,
    seed: int = 0,
) -> Figure:
    """Plot accuracy and negative log-likelihood of the average of the first K posterior draws.

    Left: the accuracy in per cent. Right: the negative log-likelihood in nats per example. Dashed:
    one pass of the pruned network, without sampling.

    Args:
        posterior: of a model of classes.
        x: inputs (n, ...).
        y: labels (n,).
        pruned: as :func:`~pyro_bnn.compression.prune` returns it, or ``None``.
        draws: the largest K.
        seed: the seed of the draws.
    """
    probs = torch.cat([chunk["probs"] for chunk in posterior.components(x, draws, seed)])
    counts = torch.arange(1, len(probs) + 1)
    average = probs.double().cumsum(0) / counts[:, None, None]
    labels = y.expand(len(probs), -1)[..., None]
    accuracy = 100 * (average.argmax(-1) == y).double().mean(1)
    nll = -average.gather(-1, labels).squeeze(-1).log().mean(1)
    figure = new_figure(8.0, 3.4)
    left, right = figure.subplots(1, 2)
    left.plot(counts, accuracy, color=BLUE, label="average of K posterior draws")
    right.plot(counts, nll, color=BLUE, label="average of K posterior draws")
    if pruned is not None:
        _add_pruned_network(left, right, pruned, x, y)
    left.set_ylabel("accuracy (%)")
    right.set_ylabel("NLL (nats per example)")
    for axes in (left, right):
        axes.set_xlabel("posterior draws K")
        open_axes(axes)
    left.margins(y=0.25)
    left.legend(frameon=False, loc="lower right", fontsize=9)
    num = len(probs)
    set_title(left, f"One draw is right on {accuracy[0]:.1f}%, {num} draws on {accuracy[-1]:.1f}%")
    set_title(right, f"One draw costs {nll[0]:.3f} nats, {num} draws {nll[-1]:.3f}")
    return figure


@torch.no_grad()
def _add_pruned_network(left: Axes, right: Axes, pruned: Pruned, x: Tensor, y: Tensor) -> None:
    """Draw accuracy and negative log-likelihood of one pass as dashed lines."""
    log_probs = pruned.module(x).log_softmax(-1)
    accuracy = 100 * float((log_probs.argmax(-1) == y).double().mean())
    nll = -float(log_probs.gather(-1, y[:, None]).mean())
    label = "pruned mean network, one pass"
    left.axhline(accuracy, color=ORANGE, linestyle="--", label=label)
    right.axhline(nll, color=ORANGE, linestyle="--", label=label)


def plot_certain_digits(prediction: Prediction, x: Tensor, y: Tensor, columns: int = 8) -> Figure:
    """Plot the images that a classifier is most and least certain of.

    Above each image is the predicted label, with the true one where they differ; below it is the
    predictive entropy in nats.

    Args:
        prediction: of ``x``.
        x: square images, (n, pixels) or (n, 1, size, size).
        y: true labels (n,).
        columns: the number of images in each of the two rows.
    """
    columns = min(columns, len(x))
    figure = new_figure(1.1 * columns, 3.9)
    rows = figure.subfigures(2, 1, squeeze=False)[:, 0]
    ascending = prediction.total.argsort(stable=True)
    right = prediction.mean.argmax(-1) == y
    extremes = {"most": ascending[:columns], "least": ascending.flip(0)[:columns]}
    for row, (word, indices) in zip(rows, extremes.items(), strict=True):
        row.suptitle(
            f"The {columns} digits it is {word} certain of: {int(right[indices].sum())} of them "
            "are right",
            x=0.01,
            ha="left",
            fontsize=11,
        )
        grid = row.subplots(1, columns, squeeze=False)
        for axes, index in zip(grid.flat, indices.tolist(), strict=True):
            draw_digit(axes, prediction, index, x, y)
    return figure


def plot_regression_bands(
    x: Tensor,
    prediction: Prediction,
    data: tuple[Tensor, Tensor] | None = None,
    truth: Tensor | None = None,
    level: float = 0.9,
) -> Figure:
    """Plot a predictive mean and its interval over one input, with the data.

    The darker band is one standard deviation of the mean to each side: the epistemic part.

    Args:
        x: inputs (n,) or (n, 1), in any order.
        prediction: of ``x``, with one real target.
        data: training inputs and targets, drawn as dots.
        truth: the function that made the data, at ``x`` (n,).
        level: the probability of the interval of y.
    """
    order = x.detach().flatten().argsort()
    position = x.detach().flatten()[order].cpu()
    mean = prediction.mean[order].cpu()
    deviation = prediction.epistemic.sqrt()[order].cpu()
    lower, upper = prediction.interval(level)
    figure = new_figure(7.0, 3.8)
    axes = figure.subplots()
    lower, upper = lower[order].cpu(), upper[order].cpu()
    draw_band(axes, position, lower, upper, 0.18, f"{level:.0%} interval of y")
    epistemic = "epistemic uncertainty, ±1 sd"
    draw_band(axes, position, mean - deviation, mean + deviation, 0.35, epistemic)
    axes.plot(position, mean, color=BLUE, label="predictive mean")
    if truth is not None:
        values = truth.detach().flatten()[order].cpu()
        axes.plot(position, values, color=GRAY, linestyle="--", label="true function")
    if data is not None:
        inputs, targets = data
        axes.plot(
            inputs.flatten().cpu(),
            targets.flatten().cpu(),
            ".",
            color="black",
            markersize=5,
            label="data",
        )
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    axes.legend(frameon=False)
    open_axes(axes)
    return figure
