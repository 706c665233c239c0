"""Pictures of comparisons and of simulations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .style import BLUE, GREY, ORANGE, new_figure, open_axes, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyro_bnn.diagnostics.comparison import Comparison, Curve
    from pyro_bnn.diagnostics.simulation import Simulation

__all__ = ["plot_comparison", "plot_simulation"]

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


def plot_comparison(comparison: Comparison) -> Figure:
    """Draw what each method says of f(x) side by side, and below the ratio of its sds to the reference's.

    For one input the functions are drawn over it: the mean, two standard deviations of f, the 90% interval of y, the
    training data. For more inputs each test point is a dot, the sd of f under the reference against that of the method.
    """
    names = list(comparison.curves)
    figure = new_figure(max(7.0, 2.6 * len(names)), 5.0)
    grid = figure.add_gridspec(2, len(names), height_ratios=(1.6, 1))
    line = (
        comparison.x.numel() == len(comparison.x)
        and next(iter(comparison.curves.values())).mean.dim() == 1
    )
    order = comparison.x.flatten().argsort() if line else None
    first: Axes | None = None
    for column, name in enumerate(names):
        first = axes = figure.add_subplot(grid[0, column], sharex=first, sharey=first)
        if order is not None:
            _bands(axes, comparison, name, order)
        else:
            _spreads(axes, comparison.curves[name], comparison.curves[comparison.reference])
        set_title(axes, f"{name}{' (reference)' if name == comparison.reference else ''}")
        axes.tick_params(labelleft=column == 0)
        open_axes(axes)
    figure.axes[0].set_ylabel("f(x)" if order is not None else "sd of f(x)")
    _ratios(figure.add_subplot(grid[1, :]), comparison, order)
    return figure


def _bands(axes: Axes, comparison: Comparison, name: str, order: Tensor) -> None:
    curve, at = comparison.curves[name], comparison.x.flatten()[order].cpu()
    mean, stddev = curve.mean[order].cpu(), curve.stddev[order].cpu()
    if curve.interval is not None:
        lower, upper = (end[order].cpu() for end in curve.interval)
        axes.fill_between(
            at, lower, upper, color=BLUE, alpha=0.15, linewidth=0, label="90% interval of y"
        )
    axes.fill_between(
        at,
        mean - 2 * stddev,
        mean + 2 * stddev,
        color=BLUE,
        alpha=0.35,
        linewidth=0,
        label="f(x), ±2 sd",
    )
    axes.plot(at, mean, color=BLUE, linewidth=1)
    if comparison.data is not None:
        x, y = (part.flatten().cpu() for part in comparison.data)
        axes.plot(x, y, ".", color="black", markersize=3, label="data")
    axes.set_xlabel("x")
    if name == next(iter(comparison.curves)):
        axes.legend(
            fontsize=6, framealpha=0.8, edgecolor="none", handlelength=1.2, loc="lower center"
        )


def _spreads(axes: Axes, curve: Curve, reference: Curve) -> None:
    a, b = reference.stddev.flatten().cpu(), curve.stddev.flatten().cpu()
    top = float(torch.stack([a, b]).max()) if len(a) else 1.0
    axes.plot([0, top], [0, top], color=GREY, linewidth=1)
    axes.plot(a, b, ".", color=BLUE, markersize=3, alpha=0.5)
    axes.set_xlabel("sd of f(x), reference")


def _ratios(axes: Axes, comparison: Comparison, order: Tensor | None) -> None:
    """Draw the ratios of the sds, over x or, for more inputs, sorted."""
    reference = comparison.curves[comparison.reference].stddev
    colours = iter(_COLOURS * len(comparison.curves))
    for name, curve in comparison.curves.items():
        if name == comparison.reference:
            continue
        ratio = (curve.stddev / reference).flatten()
        ratio = ratio[order] if order is not None else ratio[torch.isfinite(ratio)].sort().values
        at: Any = (
            comparison.x.flatten()[order].cpu()
            if order is not None
            else torch.linspace(0, 1, len(ratio))
        )
        axes.plot(at, ratio.cpu(), color=next(colours), label=name)
    axes.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("x" if order is not None else "share of the test values")
    axes.set_ylabel("sd of f(x) over\nthe reference's")
    axes.legend(frameon=False, fontsize=8, ncols=len(comparison.curves))
    open_axes(axes)


def plot_simulation(simulation: Simulation, most: int = 12) -> Figure:
    """Draw for each quantity how the ECDF of its ranks differs from the uniform one, with the simultaneous 95% band.

    A posterior that is too narrow leaves the band in an S through zero, one that is shifted in an arc.

    Args:
        simulation: that was run.
        most: how many quantities, those of the smallest p-values.
    """
    worst = sorted(simulation.p_values.items(), key=lambda item: item[1])[:most]
    columns = min(4, len(worst))
    rows = -(-len(worst) // columns)
    figure = new_figure(2.6 * columns + 0.6, 2.1 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    at, half = simulation.band()
    for axes in grid.flat[len(worst) :]:
        axes.set_axis_off()
    for axes, (name, p) in zip(grid.flat, worst, strict=False):
        axes.fill_between(at, -half, half, color=GREY, alpha=0.25, linewidth=0)
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.step(at, simulation.ecdf(name) - at, color=BLUE if p >= 0.05 else ORANGE, where="post")
        set_title(axes, f"{name}\np = {p:.2g}")
        open_axes(axes)
    figure.supxlabel("rank of the true value, as a fraction")
    figure.supylabel("ECDF - uniform")
    return figure
