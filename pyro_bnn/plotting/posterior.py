"""Pictures of runs and posteriors.

Every function takes plain data and returns a :class:`matplotlib.figure.Figure`; nothing is shown, and no global state
of matplotlib is touched, so a figure can be saved (``figure.savefig("loss.png")``) or end a notebook cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_bnn.posterior import Posterior, Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

from pyro_bnn.plotting.style import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    color_limit,
    colours,
    new_figure,
    open_axes,
    set_title,
)

__all__ = [
    "accuracy_against_draws",
    "certain_digits",
    "loss_terms",
    "regression_bands",
    "summary",
    "weight_matrices",
]


def loss_terms(history: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the two terms of the loss, and the weight of the second, over the epochs.

    Above: the data term and the KL divergence in nats per training example, on a logarithmic axis where both are
    positive. Below: the weight of the KL divergence.

    Args:
        history: that of :func:`~pyro_bnn.fit`; ``epoch``, ``data``, ``kl`` and ``kl_weight`` are used.
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
    below.step(epochs, history["kl_weight"], color=GREY)  # what held in the epoch that ended there
    below.set_ylim(-0.08, 1.08)
    below.set_ylabel("KL weight")
    below.set_xlabel("epoch")
    end = (
        f"data term {data[-1]:.3g}, KL divergence {kl[-1]:.3g} nats per example"
        if len(epochs)
        else "no epoch is over yet"
    )
    set_title(above, f"After {len(epochs)} epochs: {end}")
    for axes in (above, below):
        open_axes(axes)
    return figure


def weight_matrices(
    before: Tensor,
    after: Tensor,
    labels: tuple[str, str] = ("before", "after"),
    name: str = "weights",
) -> Figure:
    """Draw a weight matrix before and after pruning, and what the units that are left see.

    Blue below zero, red above; each matrix has its own range, up to the 90th percentile of its absolute values. In a
    sparse matrix every weight that is left is a dot, since the pixels of a large one would not be seen. Where the
    inputs form a square image, the weights of the busiest units are drawn as images.

    Args:
        before: (units, inputs).
        after: (units, inputs), zero where pruned.
        labels: what the two are.
        name: of the weight.
    """
    before, after = before.detach().cpu(), after.detach().cpu()
    side = math.isqrt(after.shape[1])
    fields = side if side**2 == after.shape[1] and side > 2 else 0
    figure = new_figure(9.0, 4.6)
    columns = figure.subplots(
        1, 3 if fields else 2, width_ratios=(1, 1, 1.5) if fields else (1, 1), squeeze=False
    )[0]
    kept = int(after.count_nonzero())
    for axes, matrix, label in zip(columns, (before, after), labels, strict=False):
        _matrix(axes, matrix)
        set_title(axes, f"{label}\n{int(matrix.count_nonzero()):,} weights")
        axes.set_xlabel("input")
    columns[0].set_ylabel("unit")
    if fields:
        _fields(columns[2], after, side, 16)
    share = f"{1 - kept / after.numel():.1%} are zero"
    figure.suptitle(
        f"{name}: {kept:,} of {after.numel():,} weights are left, {share}",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    return figure


def accuracy_against_draws(
    posterior: Posterior, x: Tensor, y: Tensor, pruned: Any = None, draws: int = 50, seed: int = 0
) -> Figure:
    """Draw accuracy and negative log-likelihood of the average over the first K posterior draws, for K = 1, 2, ...

    Left: the accuracy in per cent. Right: the negative log-likelihood in nats per example. Dashed: the pruned network,
    one pass without sampling.

    Args:
        posterior: of a model of classes.
        x: inputs (n, ...).
        y: labels (n,).
        pruned: what :func:`~pyro_bnn.compression.prune` returns, or ``None``.
        draws: the largest K.
        seed: of the draws.
    """
    probs = torch.cat([part["probs"] for part in posterior.components(x, draws, seed)])
    counts = torch.arange(1, len(probs) + 1)
    average = probs.double().cumsum(0) / counts[:, None, None]
    accuracy = 100 * (average.argmax(-1) == y).double().mean(1)
    nll = -average.gather(-1, y.expand(len(probs), -1)[..., None]).squeeze(-1).log().mean(1)
    figure = new_figure(8.0, 3.4)
    pair = figure.subplots(1, 2)
    single: tuple[float, float] | None = None
    if pruned is not None:
        with torch.no_grad():
            log_probs = pruned.module(x).log_softmax(-1)
        right = (log_probs.argmax(-1) == y).double().mean()
        single = (100 * float(right), -float(log_probs.gather(-1, y[:, None]).mean()))
    labels = ("accuracy (%)", "NLL (nats per example)")
    for side, (axes, values, label) in enumerate(zip(pair, (accuracy, nll), labels, strict=True)):
        axes.plot(counts, values, color=BLUE, label="average of K posterior draws")
        if single is not None:
            axes.axhline(
                single[side], color=ORANGE, linestyle="--", label="pruned mean network, one pass"
            )
        axes.set_xlabel("posterior draws K")
        axes.set_ylabel(label)
        open_axes(axes)
    pair[0].margins(y=0.25)
    pair[0].legend(frameon=False, loc="lower right", fontsize=9)
    set_title(
        pair[0],
        f"One draw is right on {accuracy[0]:.1f}%, {len(probs)} draws on {accuracy[-1]:.1f}%",
    )
    set_title(pair[1], f"One draw costs {nll[0]:.3f} nats, {len(probs)} draws {nll[-1]:.3f}")
    return figure


def certain_digits(prediction: Prediction, x: Tensor, y: Tensor, columns: int = 8) -> Figure:
    """Draw the images that the network is most and least certain of.

    Above each the predicted label, and the true one where that is another; below it the predictive entropy in nats.

    Args:
        prediction: of ``x``.
        x: square images, (n, pixels) or (n, 1, size, size).
        y: true labels (n,).
        columns: how many of each.
    """
    columns = min(columns, len(x))
    figure = new_figure(1.1 * columns, 3.9)
    rows: Any = figure.subfigures(2, 1)
    order = prediction.total.argsort(stable=True)
    right = prediction.mean.argmax(-1) == y
    for row, index, what in zip(
        rows, (order[:columns], order.flip(0)[:columns]), ("most", "least"), strict=True
    ):
        found = f"{int(right[index].sum())} of them are right"
        row.suptitle(
            f"The {columns} digits it is {what} certain of: {found}", x=0.01, ha="left", fontsize=11
        )
        for axes, i in zip(row.subplots(1, columns, squeeze=False)[0], index.tolist(), strict=True):
            _digit(
                axes, x[i], int(prediction.mean[i].argmax()), int(y[i]), float(prediction.total[i])
            )
    return figure


def regression_bands(
    x: Tensor,
    mean: Tensor,
    lower: Tensor,
    upper: Tensor,
    data: tuple[Tensor, Tensor] | None = None,
    truth: Tensor | None = None,
    level: float = 0.9,
    epistemic: Tensor | None = None,
) -> Figure:
    """Draw a predictive mean and its interval over one input, with the data.

    Args:
        x: inputs (n,) or (n, 1), in any order.
        mean: the predictive mean (n,), in the units of y.
        lower: the lower end of the interval (n,).
        upper: the upper end (n,).
        data: training inputs and outputs, drawn as dots.
        truth: the function that made the data, at ``x`` (n,).
        level: the probability of the interval, for the legend.
        epistemic: the standard deviation of the mean (n,), drawn as a darker band of one deviation to each side.
    """
    order = x.detach().flatten().argsort()
    at, mean, lower, upper = (
        values.detach().flatten()[order].cpu() for values in (x, mean, lower, upper)
    )
    figure = new_figure(7.0, 3.8)
    axes = figure.subplots()
    axes.fill_between(
        at, lower, upper, color=BLUE, alpha=0.18, linewidth=0, label=f"{level:.0%} interval"
    )
    if epistemic is not None:
        spread = epistemic.detach().flatten()[order].cpu()
        axes.fill_between(
            at,
            mean - spread,
            mean + spread,
            color=BLUE,
            alpha=0.35,
            linewidth=0,
            label="not knowing the weights, ±1 sd",
        )
    axes.plot(at, mean, color=BLUE, label="predictive mean")
    if truth is not None:
        axes.plot(
            at,
            truth.detach().flatten()[order].cpu(),
            color=GREY,
            linestyle="--",
            label="true function",
        )
    if data is not None:
        axes.plot(
            data[0].flatten().cpu(),
            data[1].flatten().cpu(),
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


def summary(
    sizes: Sequence[tuple[float, float]],
    after: Tensor,
    prediction: Prediction,
    x: Tensor,
    y: Tensor,
    total: int,
    accuracy: float,
) -> Figure:
    """Draw a run in one strip: how the network got sparse, what its first layer looks at, which digits it doubts.

    Args:
        sizes: pairs of an epoch and the number of weights that were left then.
        after: the first layer's pruned weights (units, inputs), the inputs being square images.
        prediction: of ``x``.
        x: square images, flattened or not.
        y: true labels (n,).
        total: the number of weights before pruning.
        accuracy: of the pruned network, a fraction.
    """
    from matplotlib.ticker import StrMethodFormatter

    figure = new_figure(9.0, 2.8)
    strip: Any = figure.subfigures(1, 3, width_ratios=(1.15, 0.85, 1.2))
    left, middle, right = strip
    kept = sizes[-1][1] if sizes else total
    axes = left.subplots()
    axes.plot(
        [0, *(epoch for epoch, _ in sizes)],
        [total, *(left_over for _, left_over in sizes)],
        color=BLUE,
        marker=".",
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("epoch")
    axes.set_ylabel("weights left")
    open_axes(axes)
    set_title(
        axes, f"{total:,} weights become {kept:,.0f},\n{accuracy:.1%} of test digits are right"
    )
    side = math.isqrt(after.shape[1])
    _fields(
        middle.subplots(),
        after.detach().cpu(),
        side,
        12,
        "what the busiest units\nof the first layer see",
    )
    order = prediction.total.argsort(stable=True).flip(0)[:8].tolist()
    right.suptitle(
        "the digits it is least certain of,\nand the entropy of its answer",
        fontsize=10,
        x=0.03,
        ha="left",
    )
    for small, i in zip(right.subplots(2, 4).flat, order, strict=False):
        _digit(
            small,
            x[i],
            int(prediction.mean[i].argmax()),
            int(y[i]),
            float(prediction.total[i]),
            short=True,
        )
    return figure


# --- pieces -----------------------------------------------------------------------------------------------------------


def _matrix(axes: Axes, matrix: Tensor) -> None:
    """Draw a matrix: as an image if it is dense, as one dot for each weight that is not zero if it is sparse."""
    limit, (rows, columns) = color_limit(matrix), matrix.shape
    if float((matrix != 0).double().mean()) > 0.2:
        axes.imshow(
            matrix.numpy(),
            cmap=colours(),
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            interpolation="none",
        )
    else:
        at = matrix.nonzero()
        signs = [RED if value > 0 else BLUE for value in matrix[at[:, 0], at[:, 1]].tolist()]
        size = min(9.0, max(0.5, 3000 / max(len(at), 1)))
        axes.scatter(at[:, 1], at[:, 0], s=size, c=signs, linewidths=0)
        axes.set_xlim(-0.02 * columns, 1.02 * columns - 1)
        axes.set_ylim(1.02 * rows - 1, -0.02 * rows)


def _fields(axes: Axes, matrix: Tensor, side: int, number: int, title: str | None = None) -> None:
    """Draw the weights into the units that have most of them, as images laid out on one grid."""
    counts = (matrix != 0).sum(1)
    busiest = counts.argsort(descending=True, stable=True)[:number]
    rows = math.isqrt(number)
    columns = math.ceil(number / rows)
    sheet = torch.full((rows * (side + 1) + 1, columns * (side + 1) + 1), torch.nan)
    for place, unit in enumerate(busiest.tolist()):
        top, left = place // columns * (side + 1) + 1, place % columns * (side + 1) + 1
        sheet[top : top + side, left : left + side] = matrix[unit].reshape(side, side)
    limit = color_limit(matrix)
    axes.imshow(sheet.numpy(), cmap=colours(), vmin=-limit, vmax=limit, interpolation="none")
    axes.set_axis_off()
    axes.set_anchor("N")
    seeing = f"{int((counts > 0).sum())} of {len(matrix)} units still see something;"
    set_title(axes, title or f"{seeing}\nthe busiest, as images of {side}x{side} inputs")


def _digit(
    axes: Axes, image: Tensor, predicted: int, true: int, entropy: float, short: bool = False
) -> None:
    """Draw an image with what it was taken for; in red, with the truth, where that is wrong."""
    side = math.isqrt(image.numel())
    axes.imshow(
        image.detach().reshape(side, side).cpu().numpy(), cmap="gray_r", interpolation="none"
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#C8C8C8")
    wrong = predicted != true
    answer = f"{predicted}, is {true}" if wrong else f"{predicted}"
    axes.set_title(answer, fontsize=8.5 if short else 10, color=RED if wrong else "black", pad=3)
    axes.set_xlabel(
        f"{entropy:.2f} nats" if entropy >= 0.1 else f"{entropy:.3f} nats",
        fontsize=7.5 if short else 8.5,
        labelpad=2,
    )
