"""Figures of comparisons and of simulation-based calibration."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .panels import draw_band
from .style import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    SKY_BLUE,
    new_figure,
    open_axes,
    set_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyro_bnn.diagnostics.comparison import Comparison, Curve
    from pyro_bnn.diagnostics.simulation import Simulation

__all__ = ["plot_comparison", "plot_simulation"]

_CYCLE = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY_BLUE)


def plot_comparison(comparison: Comparison) -> Figure:
    """Plot the functions f(x) of each method, and the ratio of their sds to the reference's.

    With one input, the functions are drawn over it: the mean, two standard deviations of f, the 90%
    interval of y and the training data. With more inputs, each test point is a dot: the sd of f
    under the method against that under the reference. The ratios are below.

    Args:
        comparison: as :func:`~pyro_bnn.compare` returns it.
    """
    names = list(comparison.curves)
    figure = new_figure(max(7.0, 2.6 * len(names)), 5.0)
    grid = figure.add_gridspec(2, len(names), height_ratios=(1.6, 1))
    order = _order_of_inputs(comparison)
    first: Axes | None = None
    for column, name in enumerate(names):
        axes = figure.add_subplot(grid[0, column], sharex=first, sharey=first)
        title = name
        if name == comparison.reference:
            title = f"{name} (reference)"
        set_title(axes, title)
        if order is None:
            _draw_spreads(axes, comparison.curves[name], comparison.curves[comparison.reference])
        else:
            _draw_bands(axes, comparison, name, order)
        axes.tick_params(labelleft=column == 0)
        open_axes(axes)
        first = axes
    ratios = figure.add_subplot(grid[1, :])
    if order is None:
        figure.axes[0].set_ylabel("sd of f(x)")
        _draw_sorted_ratios(ratios, comparison)
    else:
        figure.axes[0].set_ylabel("f(x)")
        _draw_ratios(ratios, comparison, order)
        _add_legend(figure.axes[0])
    return figure


def _order_of_inputs(comparison: Comparison) -> Tensor | None:
    """Return the order of scalar inputs, or ``None`` if f cannot be drawn over one input."""
    one_input = comparison.x.numel() == len(comparison.x)
    curve = comparison.curves[comparison.reference]
    if not one_input or curve.mean.dim() != 1:
        return None
    return comparison.x.flatten().argsort()


def _draw_bands(axes: Axes, comparison: Comparison, name: str, order: Tensor) -> None:
    """Draw mean, two standard deviations of f, the interval of y and the data over the input."""
    curve = comparison.curves[name]
    position = comparison.x.flatten()[order].cpu()
    mean, stddev = curve.mean[order].cpu(), curve.stddev[order].cpu()
    if curve.interval is not None:
        lower, upper = curve.interval
        lower, upper = lower[order].cpu(), upper[order].cpu()
        draw_band(axes, position, lower, upper, 0.15, "90% interval of y")
    draw_band(axes, position, mean - 2 * stddev, mean + 2 * stddev, 0.35, "f(x), ±2 sd")
    axes.plot(position, mean, color=BLUE, linewidth=1)
    if comparison.data is not None:
        x, y = comparison.data
        points = x.flatten().cpu(), y.flatten().cpu()
        axes.plot(*points, ".", color="black", markersize=3, label="data")
    axes.set_xlabel("x")


def _add_legend(axes: Axes) -> None:
    axes.legend(fontsize=6, framealpha=0.8, edgecolor="none", handlelength=1.2, loc="lower center")


def _draw_spreads(axes: Axes, curve: Curve, reference: Curve) -> None:
    """Draw the sd of f at each test point against that under the reference."""
    expected, stddev = reference.stddev.flatten().cpu(), curve.stddev.flatten().cpu()
    largest = max(float(expected.max()), float(stddev.max()))
    axes.plot([0, largest], [0, largest], color=GRAY, linewidth=1)
    axes.plot(expected, stddev, ".", color=BLUE, markersize=3, alpha=0.5)
    axes.set_xlabel("sd of f(x), reference")


def _draw_ratios(axes: Axes, comparison: Comparison, order: Tensor) -> None:
    """Draw the ratios of the sds over the input."""
    position = comparison.x.flatten()[order].cpu()
    for (name, ratio), color in zip(_ratios(comparison).items(), cycle(_CYCLE), strict=False):
        axes.plot(position, ratio[order].cpu(), color=color, label=name)
    axes.set_xlabel("x")
    _finish_ratios(axes, comparison)


def _draw_sorted_ratios(axes: Axes, comparison: Comparison) -> None:
    """Draw the finite ratios of the sds in increasing order."""
    for (name, ratio), color in zip(_ratios(comparison).items(), cycle(_CYCLE), strict=False):
        ascending = ratio[ratio.isfinite()].sort().values.cpu()
        axes.plot(torch.linspace(0, 1, len(ascending)), ascending, color=color, label=name)
    axes.set_xlabel("fraction of the test values")
    _finish_ratios(axes, comparison)


def _ratios(comparison: Comparison) -> dict[str, Tensor]:
    """Return the sd of f under each method over that under the reference, flattened."""
    reference = comparison.curves[comparison.reference].stddev
    ratios = {}
    for name, curve in comparison.curves.items():
        if name != comparison.reference:
            ratios[name] = (curve.stddev / reference).flatten()
    return ratios


def _finish_ratios(axes: Axes, comparison: Comparison) -> None:
    axes.axhline(1.0, color=GRAY, linestyle="--", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("sd of f(x) over\nthe reference's")
    axes.legend(frameon=False, fontsize=8, ncols=len(comparison.curves))
    open_axes(axes)


def plot_simulation(simulation: Simulation, most: int = 12) -> Figure:
    """Plot the ECDF of the ranks of each quantity minus the uniform one, with its 95% band.

    The band is simultaneous over all ranks. The curve of a posterior that is too narrow leaves it
    in the shape of an S through zero, that of a shifted posterior in an arc.

    Args:
        simulation: as ``simulate`` of :mod:`pyro_bnn.diagnostics` returns it.
        most: the largest number of quantities, those of the smallest p-values.
    """
    worst = sorted(simulation.p_values.items(), key=lambda item: item[1])[:most]
    columns = min(4, len(worst))
    rows = -(-len(worst) // columns)
    figure = new_figure(2.6 * columns + 0.6, 2.1 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    position, half_width = simulation.band()
    for axes in grid.flat[len(worst) :]:
        axes.set_axis_off()
    for axes, (name, p_value) in zip(grid.flat, worst, strict=False):
        axes.fill_between(position, -half_width, half_width, color=GRAY, alpha=0.25, linewidth=0)
        axes.axhline(0, color=GRAY, linewidth=0.8)
        color = BLUE if p_value >= 0.05 else ORANGE
        axes.step(position, simulation.ecdf(name) - position, color=color, where="post")
        set_title(axes, f"{name}\np = {p_value:.2g}")
        open_axes(axes)
    figure.supxlabel("rank of the true value, as a fraction")
    figure.supylabel("ECDF - uniform")
    return figure
