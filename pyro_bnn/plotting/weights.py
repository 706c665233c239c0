"""Figures of weights: a matrix before and after pruning, and a run in one strip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from pyro_bnn.posterior import Prediction

from .panels import draw_digit, draw_matrix, draw_unit_images
from .style import BLUE, new_figure, open_axes, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_run_summary", "plot_weight_matrices"]


def plot_weight_matrices(
    before: Tensor,
    after: Tensor,
    labels: tuple[str, str] = ("before", "after"),
    name: str = "weights",
) -> Figure:
    """Plot a weight matrix before and after pruning, and the weights of the remaining units.

    Blue is below zero, red above; each matrix has its own range, up to the 90th percentile of its
    absolute values. In a sparse matrix every remaining weight is a dot, because single pixels of a
    large matrix would be invisible. Where the inputs form a square image, the weights of the
    busiest units are drawn as images.

    Args:
        before: (units, inputs).
        after: (units, inputs), zero where pruned.
        labels: titles of the two matrices.
        name: of the weight.
    """
    before, after = before.detach().cpu(), after.detach().cpu()
    remaining, total = int(after.count_nonzero()), after.numel()
    side = math.isqrt(after.shape[1])
    has_images = side**2 == after.shape[1] and side > 2
    width_ratios = (1.0, 1.0, 1.5) if has_images else (1.0, 1.0)
    figure = new_figure(9.0, 4.6)
    panels = figure.subplots(1, len(width_ratios), width_ratios=width_ratios)
    for axes, matrix, label in zip(panels, (before, after), labels, strict=False):
        draw_matrix(axes, matrix)
        set_title(axes, f"{label}\n{int(matrix.count_nonzero()):,} weights")
        axes.set_xlabel("input")
    panels[0].set_ylabel("unit")
    if has_images:
        draw_unit_images(panels[2], after, side, number=16)
    zero = f"{1 - remaining / total:.1%} are zero"
    title = f"{name}: {remaining:,} of {total:,} weights are left, {zero}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def plot_run_summary(
    sizes: Sequence[tuple[float, float]],
    after: Tensor,
    prediction: Prediction,
    x: Tensor,
    y: Tensor,
    total: int,
    accuracy: float,
) -> Figure:
    """Plot a run in one strip: its sparsity, its first layer, its least certain predictions.

    Args:
        sizes: pairs of an epoch and the number of weights after pruning.
        after: the first layer's pruned weights (units, inputs), the inputs being square images.
        prediction: of ``x``.
        x: square images, flattened or not.
        y: true labels (n,).
        total: the number of weights before pruning.
        accuracy: of the pruned network, a fraction.
    """
    figure = new_figure(9.0, 2.8)
    strip = figure.subfigures(1, 3, width_ratios=(1.15, 0.85, 1.2), squeeze=False)
    left, middle, right = strip[0]
    _draw_sizes(left.subplots(), sizes, total, accuracy)
    draw_unit_images(
        middle.subplots(),
        after.detach().cpu(),
        side=math.isqrt(after.shape[1]),
        number=12,
        title="inputs of the busiest units\nof the first layer",
    )
    right.suptitle(
        "the digits it is least certain of,\nand the entropy of its answer",
        fontsize=10,
        x=0.03,
        ha="left",
    )
    least_certain = prediction.total.argsort(stable=True).flip(0)[:8].tolist()
    for axes, index in zip(right.subplots(2, 4).flat, least_certain, strict=False):
        draw_digit(axes, prediction, index, x, y, small=True)
    return figure


def _draw_sizes(
    axes: Axes, sizes: Sequence[tuple[float, float]], total: int, accuracy: float
) -> None:
    """Draw the number of remaining weights over the epochs."""
    from matplotlib.ticker import StrMethodFormatter

    epochs, counts = [0.0], [float(total)]
    for epoch, count in sizes:
        epochs.append(epoch)
        counts.append(count)
    axes.plot(epochs, counts, color=BLUE, marker=".")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("epoch")
    axes.set_ylabel("weights left")
    open_axes(axes)
    set_title(
        axes,
        f"{total:,} weights become {counts[-1]:,.0f},\n{accuracy:.1%} of test digits are right",
    )
