"""Figures of compression: pruned weights, remaining units, and acceleration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pyro_bnn.compression.latency import Latency, readable

from .style import (
    BLUE,
    GRAY,
    ORANGE,
    RED,
    color_limit,
    new_figure,
    open_axes,
    set_title,
    signed_colormap,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_acceleration", "plot_pruning_histograms", "plot_receptive_fields"]

_PRUNED_COLOR = "#C9CDD2"


# --- histograms -----------------------------------------------------------------------------------


class _Range(NamedTuple):
    """The ends of an axis."""

    low: float
    high: float


def plot_pruning_histograms(
    measures: Mapping[str, Tensor],
    thresholds: float | Mapping[str, float],
    label: str = "log α = log (variance / mean²)",
    of: str = "weights",
) -> Figure:
    """Plot the histogram of the pruning measure of each weight tensor, with its threshold.

    Blue: kept, below the threshold. Gray: pruned. Counts are on a logarithmic axis, because few
    weights are kept.

    Args:
        measures: of each weight or group, by tensor.
        thresholds: one for all tensors or one per tensor; at or above it a weight is pruned.
        label: a description of the measure.
        of: the name of the counted items, in the plural.
    """
    limits = thresholds
    if not isinstance(limits, Mapping):
        limits = dict.fromkeys(measures, limits)
    values, finite_limits = {}, []
    for name, measure in measures.items():
        values[name] = measure.detach().cpu().double().flatten()
        if math.isfinite(limits[name]):
            finite_limits.append(float(limits[name]))
    shared = _axis_range(list(values.values()), finite_limits)
    figure = new_figure(7.0, 1.0 + 1.55 * len(values))
    column = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, value) in zip(column, values.items(), strict=True):
        _draw_histogram(axes, name, value, float(limits[name]), shared, of)
    handles, texts = column[0].get_legend_handles_labels()
    figure.legend(handles, texts, frameon=False, fontsize=9, loc="outside upper right", ncols=2)
    column[-1].set_xlabel(f"{label}; the red line is the threshold")
    return figure


def _draw_histogram(
    axes: Axes, name: str, values: Tensor, limit: float, shared: _Range, of: str
) -> None:
    """Draw the histogram of one tensor; values beyond the axis are counted in the last bars."""
    edges = _bar_edges(limit, shared)
    width = edges[1] - edges[0]
    shown = values.clamp(edges[0], edges[-1] - width / 2).numpy()
    kept = (values < limit).numpy()
    axes.hist(shown[kept], bins=edges, color=BLUE, label="kept")
    axes.hist(shown[~kept], bins=edges, color=_PRUNED_COLOR, label="dropped")
    if math.isfinite(limit):
        _draw_threshold(axes, limit)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.set_ylabel(of)
    axes.set_xlim(shared.low, edges[-1])
    title = f"{name}: {int(kept.sum()):,} of {len(values):,} {of} below the threshold"
    beyond = int((values > edges[-1]).sum())
    if beyond:
        title += f"; {beyond:,} lie further right, in the last bar"
    set_title(axes, title)
    open_axes(axes)


def _bar_edges(limit: float, shared: _Range) -> list[float]:
    """Return the edges of some eighty bars, one of them at the threshold."""
    width = (shared.high - shared.low) / 80
    anchor = limit if math.isfinite(limit) else shared.low
    start = anchor - math.ceil((anchor - shared.low) / width) * width
    number = math.ceil((shared.high - start) / width)
    return [start + k * width for k in range(number + 1)]


def _draw_threshold(axes: Axes, limit: float) -> None:
    axes.axvline(limit, color=RED, linewidth=1.2)
    axes.annotate(
        f"{limit:.3g}",
        (limit, 1),
        color=RED,
        fontsize=9,
        va="top",
        xycoords=("data", "axes fraction"),
        xytext=(3, -2),
        textcoords="offset points",
    )


_REACH = 16.0  # nats from a threshold to the end of the axis; farther values are clear cases


def _axis_range(values: Sequence[Tensor], limits: Sequence[float]) -> _Range:
    """Return the ends of the axis: all finite values and thresholds that are near a threshold."""
    everything = torch.cat([*values, torch.tensor(limits).double()])
    everything = everything[everything.isfinite()]
    if not len(everything):
        return _Range(-1.0, 1.0)
    low, high = float(everything.min()), float(everything.max())
    if limits:
        low = max(low, min(limits) - _REACH)
        high = min(high, max(limits) + _REACH)
    margin = 0.03 * (high - low) + 1e-3
    return _Range(low - margin, high + margin)


# --- receptive fields -----------------------------------------------------------------------------


def plot_receptive_fields(
    weight: Tensor,
    mask: Tensor | None = None,
    shape: tuple[int, int] | None = None,
    name: str = "first layer",
    most: int = 48,
) -> Figure:
    """Plot the weights of the remaining units of a first layer as images.

    Left, for a dense layer: the number of units that use each pixel. Right: the weights of each
    unit as an image, those of the largest norm first; blue below zero, red above, gray outside of
    the images. Filters of a convolution are drawn as they are, summed over their input channels.

    Args:
        weight: (units, pixels), or (filters, channels, height, width).
        mask: ``True`` where a weight is kept.
        shape: of the image; by default it is square.
        name: of the layer.
        most: the largest number of units to draw.

    Raises:
        ValueError: if the weight does not have the shape of such images.
    """
    weight = weight.detach().cpu().float()
    if mask is not None:
        weight = weight * mask.cpu()
    images = _images(weight, shape)
    norms = images.flatten(1).norm(dim=1)
    remaining = int(images.flatten(1).any(1).sum())
    drawn = min(remaining, most)
    largest = images[norms.argsort(descending=True, stable=True)[:drawn]]
    columns = max(1, math.ceil(math.sqrt(1.6 * max(drawn, 1))))
    rows = math.ceil(max(drawn, 1) / columns)
    height = min(max(6.0 * rows / columns, 2.0), 7.0) + 0.9
    if weight.dim() == 2:
        figure = new_figure(9.4, height)
        left, axes = figure.subplots(1, 2, width_ratios=(1, 1.9))
        _draw_pixel_use(left, images, figure)
        units = "units"
    else:
        figure = new_figure(6.2, height)
        axes = figure.subplots()
        units = "filters"
    limit = color_limit(largest)
    axes.imshow(
        _contact_sheet(largest, rows, columns).numpy(),
        cmap=signed_colormap(),
        vmin=-limit,
        vmax=limit,
        interpolation="none",
    )
    axes.set_axis_off()
    axes.set_anchor("N")
    title = f"{name}: {remaining} of {len(images)} {units} are left"
    if drawn < remaining:
        title += f"; the {drawn} largest"
    set_title(axes, title)
    return figure


def _images(weight: Tensor, shape: tuple[int, int] | None) -> Tensor:
    """Return the weights of each unit as an image, (units, height, width)."""
    if weight.dim() == 4:
        return weight.sum(1)
    side = math.isqrt(weight.shape[1])
    shape = shape or (side, side)
    if weight.dim() != 2 or math.prod(shape) != weight.shape[1]:
        raise ValueError(
            f"plot_receptive_fields: expected a weight (units, pixels) of images {shape}, "
            f"got one of {tuple(weight.shape)}"
        )
    return weight.reshape(-1, *shape)


def _draw_pixel_use(axes: Axes, images: Tensor, figure: Figure) -> None:
    """Draw how many units have a nonzero weight for each pixel."""
    counts = (images != 0).sum(0)
    shades = axes.imshow(counts.numpy(), cmap="cividis", vmin=0, interpolation="none")
    axes.set_axis_off()
    set_title(axes, f"{int((counts > 0).sum())} of {counts.numel()} pixels are used")
    bar = figure.colorbar(shades, ax=axes, location="bottom", shrink=0.9, pad=0.02, aspect=30)
    bar.set_label("number of units", fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    axes.set_anchor("N")  # after the color bar, which moves the axes


def _contact_sheet(images: Tensor, rows: int, columns: int) -> Tensor:
    """Return the images on one grid, each in a frame of NaN."""
    if max(images.shape[1:]) <= 8:  # enlarged, so that a frame is thinner than a pixel
        images = images.repeat_interleave(4, 1).repeat_interleave(4, 2)
    height, width = images.shape[1:]
    sheet = torch.zeros(rows * (height + 1) + 1, columns * (width + 1) + 1)
    for position, image in enumerate(images):
        row, column = divmod(position, columns)
        top, left = row * (height + 1), column * (width + 1)
        # frames of neighbors overlap, images do not
        sheet[top : top + height + 2, left : left + width + 2] = torch.nan
        sheet[top + 1 : top + height + 1, left + 1 : left + width + 1] = image
    return sheet


# --- acceleration ---------------------------------------------------------------------------------


class _Bar(NamedTuple):
    """A ratio of the original to the smaller network."""

    name: str
    ratio: float
    note: str
    color: str


def plot_acceleration(
    before: Mapping[str, int], after: Mapping[str, int], latencies: Sequence[Latency]
) -> Figure:
    """Plot the ratios of multiply-accumulates and of latencies, original over smaller network.

    Args:
        before: multiply-accumulates of each layer of the original network, for one example.
        after: of the smaller network.
        latencies: as :func:`~pyro_bnn.compression.latency.measure` returns them.
    """
    bars = _acceleration_bars(sum(before.values()), sum(after.values()), latencies)
    figure = new_figure(7.4, 1.5 + 0.42 * len(bars))
    axes = figure.subplots()
    longest = 1.0
    for position, bar in enumerate(bars):
        axes.barh(position, bar.ratio, height=0.62, color=bar.color)
        axes.annotate(
            f"{bar.ratio:.1f}×   {bar.note}",
            (max(bar.ratio, 1.0), position),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
        longest = max(longest, bar.ratio)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0, 1.55 * longest)
    axes.set_xlabel(f"original ÷ smaller network, on {_threads_text(latencies)}")
    axes.tick_params(axis="y", length=0)
    open_axes(axes)
    title = f"{bars[0].ratio:.1f} times less to multiply"
    fastest = max((row.speedup for row in latencies), default=0.0)
    if fastest > 1:
        title += f", up to {fastest:.1f} times as fast"
    set_title(axes, title)
    return figure


def _acceleration_bars(before: int, after: int, latencies: Sequence[Latency]) -> list[_Bar]:
    note = f"{before:,} → {after:,}"
    bars = [_Bar("multiply-accumulates", before / max(after, 1), note, GRAY)]
    for row in latencies:
        color = BLUE if row.runtime == "torch" else ORANGE
        name = f"{row.runtime}, batch {row.batch:,}"
        note = f"{readable(row.before)} → {readable(row.after)}"
        bars.append(_Bar(name, row.speedup, note, color))
    return bars


def _threads_text(latencies: Sequence[Latency]) -> str:
    threads = max((row.threads for row in latencies), default=1)
    return "one CPU thread" if threads == 1 else f"{threads} CPU threads"
