"""Pictures of compression: what was dropped and by which threshold, what is left, what it saves, how it came about.

Functions take plain data and return a :class:`matplotlib.figure.Figure`; the animation is written as a GIF.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_bnn.compression.latency import Latency, readable

from .style import BLUE, GREY, ORANGE, RED, color_limit, colours, new_figure, open_axes, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["acceleration", "animate", "histograms", "receptive_fields"]

_LIGHT = "#C9CDD2"


def histograms(
    measures: Mapping[str, Tensor],
    thresholds: float | Mapping[str, float],
    label: str = "log α = log (variance / mean²)",
    of: str = "weights",
) -> Figure:
    """Draw for each weight tensor the histogram of what it is pruned by, with the threshold.

    Blue: kept, below the threshold. Grey: dropped. Counts are on a logarithmic axis, since few weights are kept.

    Args:
        measures: of each weight or group, by tensor.
        thresholds: one for all tensors or for each its own; at or above it a weight is dropped.
        label: what the measure is.
        of: what is counted.
    """
    rows = len(measures)
    figure = new_figure(7.0, 1.0 + 1.55 * rows)
    column = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    values = {name: value.detach().cpu().double().flatten() for name, value in measures.items()}
    limits = {
        name: float(thresholds[name] if isinstance(thresholds, Mapping) else thresholds)
        for name in values
    }
    low, high = _range(
        [value[value.isfinite()] for value in values.values()], list(limits.values())
    )
    for axes, (name, value) in zip(column, values.items(), strict=True):
        limit = limits[name]
        width = (high - low) / 80
        edge = limit if math.isfinite(limit) else low
        start = (
            edge - math.ceil((edge - low) / width) * width
        )  # an edge of the bars lies at the threshold
        edges = [start + k * width for k in range(math.ceil((high - start) / width) + 1)]
        shown = value.clamp(
            edges[0], edges[-1] - width / 2
        ).numpy()  # what lies further out is in the last bar
        kept = value < limit
        axes.hist(shown[kept.numpy()], bins=edges, color=BLUE, label="kept")
        axes.hist(shown[~kept.numpy()], bins=edges, color=_LIGHT, label="dropped")
        if math.isfinite(limit):
            _line(axes, limit)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.set_ylabel(of)
        axes.set_xlim(low, edges[-1])
        far = int((value > edges[-1]).sum())
        beyond = f"; {far:,} lie further right, in the last bar" if far else ""
        set_title(
            axes, f"{name}: {int(kept.sum()):,} of {len(value):,} {of} below the threshold{beyond}"
        )
        open_axes(axes)
    figure.legend(
        *column[0].get_legend_handles_labels(),
        frameon=False,
        fontsize=9,
        loc="outside upper right",
        ncols=2,
    )
    column[-1].set_xlabel(f"{label}; the red line is the threshold")
    return figure


def _line(axes: Axes, limit: float) -> None:
    """Draw a threshold."""
    axes.axvline(limit, color=RED, linewidth=1.2)
    place: Any = {
        "xycoords": ("data", "axes fraction"),
        "xytext": (3, -2),
        "textcoords": "offset points",
    }
    axes.annotate(f"{limit:.3g}", (limit, 1), color=RED, fontsize=9, va="top", **place)


_REACH = 16.0  # how far from a threshold the axis goes, in nats: beyond, nothing is in doubt


def _range(values: Sequence[Tensor], limits: Sequence[float]) -> tuple[float, float]:
    """Return where the axis begins and ends: all values and thresholds, as far as they are near the thresholds."""
    finite = torch.tensor([limit for limit in limits if math.isfinite(limit)]).double()
    everything = torch.cat([*values, finite])
    if not len(everything):
        return -1.0, 1.0
    low, high = float(everything.min()), float(everything.max())
    if len(finite):
        low, high = max(low, float(finite.min()) - _REACH), min(high, float(finite.max()) + _REACH)
    margin = 0.03 * (high - low) + 1e-3
    return low - margin, high + margin


def receptive_fields(
    weight: Tensor,
    mask: Tensor | None = None,
    shape: tuple[int, int] | None = None,
    name: str = "first layer",
    most: int = 48,
) -> Figure:
    """Draw what the units that are left of a first layer look at.

    Left, for a dense layer: how many units look at each pixel. Right: the weights into each unit as an image, those of
    the largest norm first; blue below zero, red above, grey outside of the images. Filters of a convolution are drawn
    as they are, those of several channels as their sum.

    Args:
        weight: (units, pixels), or (filters, channels, height, width).
        mask: ``True`` where a weight is kept.
        shape: of the image; for square images it is known.
        name: of the layer.
        most: how many units are drawn.
    """
    weight = weight.detach().cpu().float()
    weight = weight if mask is None else weight * mask.cpu()
    images = _images(weight, shape)
    alive = images.flatten(1).count_nonzero(1) > 0
    order = (
        images.flatten(1)
        .norm(dim=1)
        .argsort(descending=True, stable=True)[: min(int(alive.sum()), most)]
    )
    columns = max(1, math.ceil(math.sqrt(1.6 * max(len(order), 1))))
    rows = math.ceil(max(len(order), 1) / columns)
    dense = weight.dim() == 2
    figure = new_figure(9.4 if dense else 6.2, min(max(6.0 * rows / columns, 2.0), 7.0) + 0.9)
    parts = figure.subplots(
        1, 2 if dense else 1, width_ratios=(1, 1.9) if dense else (1,), squeeze=False
    )[0]
    if dense:
        _looked_at(parts[0], images, figure)
    sheet = _sheet(images[order], rows, columns)
    limit = color_limit(images[order]) if len(order) else 1.0
    parts[-1].imshow(sheet.numpy(), cmap=colours(), vmin=-limit, vmax=limit, interpolation="none")
    parts[-1].set_axis_off()
    parts[-1].set_anchor("N")
    what = "units" if dense else "filters"
    shown = f"; the {len(order)} largest" if len(order) < int(alive.sum()) else ""
    set_title(parts[-1], f"{name}: {int(alive.sum())} of {len(images)} {what} are left{shown}")
    return figure


def _images(weight: Tensor, shape: tuple[int, int] | None) -> Tensor:
    if weight.dim() == 4:
        return weight.sum(1)
    side = math.isqrt(weight.shape[1])
    shape = shape or (side, side)
    if weight.dim() != 2 or math.prod(shape) != weight.shape[1]:
        raise ValueError(
            f"receptive_fields: expected a weight (units, pixels) of images {shape}, got one of {tuple(weight.shape)}"
        )
    return weight.reshape(-1, *shape)


def _looked_at(axes: Axes, images: Tensor, figure: Figure) -> None:
    counts = (images != 0).sum(0)
    shades: Any = axes.imshow(counts.numpy(), cmap="cividis", vmin=0, interpolation="none")
    axes.set_axis_off()
    set_title(axes, f"{int((counts > 0).sum())} of {counts.numel()} pixels are looked at")
    bar = figure.colorbar(shades, ax=axes, location="bottom", shrink=0.9, pad=0.02, aspect=30)
    bar.set_label("by so many units", fontsize=9)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8)
    axes.set_anchor("N")  # the colour bar moved it


def _sheet(images: Tensor, rows: int, columns: int) -> Tensor:
    """Return the images on one grid, each in a frame that is no number."""
    scale = (
        1 if max(images.shape[1:]) > 8 else 4
    )  # else the frames of small filters would be as broad as their pixels
    images = images.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    height, width = images.shape[1:]
    sheet = torch.zeros(rows * (height + 1) + 1, columns * (width + 1) + 1)
    for place, image in enumerate(images):
        top, left = place // columns * (height + 1), place % columns * (width + 1)
        sheet[top : top + height + 2, left : left + width + 2] = torch.nan
        # the neighbours' frames overlap this one, never the image
        sheet[top + 1 : top + height + 1, left + 1 : left + width + 1] = image
    return sheet


def acceleration(
    before: Mapping[str, int], after: Mapping[str, int], latencies: Sequence[Latency]
) -> Figure:
    """Draw how many times less there is to compute, and how many times as fast that is.

    Args:
        before: multiply-accumulates of each layer of the original network, for one example.
        after: of the smaller one.
        latencies: what was measured.
    """
    figure = new_figure(7.4, 1.5 + 0.42 * (1 + len(latencies)))
    axes = figure.subplots()
    totals = sum(before.values()), sum(after.values())
    threads = max((row.threads for row in latencies), default=1)
    names = ["multiply-accumulates"]
    ratios, notes = [totals[0] / max(totals[1], 1)], [f"{totals[0]:,} → {totals[1]:,}"]
    for row in latencies:
        names.append(f"{row.runtime}, batch {row.batch:,}")
        ratios.append(row.speedup)
        notes.append(f"{readable(row.before)} → {readable(row.after)}")
    places = list(range(len(names)))
    axes.barh(
        places,
        ratios,
        height=0.62,
        color=[GREY, *(BLUE if row.runtime == "torch" else ORANGE for row in latencies)],
    )
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    for place, ratio, note in zip(places, ratios, notes, strict=True):
        axes.annotate(
            f"{ratio:.1f}×   {note}",
            (max(ratio, 1.0), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xlim(0, 1.55 * max(*ratios, 1.0))
    axes.set_xlabel(
        f"original ÷ smaller network, on {'one CPU thread' if threads == 1 else f'{threads} CPU threads'}"
    )
    axes.tick_params(axis="y", length=0)
    open_axes(axes)
    fastest = max(latencies, key=lambda row: row.speedup, default=None)
    measured = (
        f", up to {fastest.speedup:.1f} times as fast" if fastest and fastest.speedup > 1 else ""
    )
    set_title(axes, f"{ratios[0]:.1f} times less to multiply{measured}")
    return figure


# --- the animation ----------------------------------------------------------------------------------------------------


def animate(
    frames: Sequence[tuple[int, Mapping[str, Tensor]]], path: str | Path, fps: float = 6.0
) -> None:
    """Write the weight matrices over the epochs as a GIF.

    One panel per weight tensor, (outputs, inputs x kernel): blue below zero, red above, white where pruned; a matrix
    larger than its panel shows in each cell the weight that is largest there. Below: how many weights are left.

    Args:
        frames: pairs of an epoch and the weights then, zero where pruned.
        path: of the file.
        fps: frames per second; the last one stays for two seconds.

    Raises:
        ValueError: no frames.
    """
    if not frames:
        raise ValueError(
            "animate: expected snapshots of the weights, got none; keep some with fit --snapshots 5"
        )
    from PIL import Image

    names = list(frames[0][1])
    figure = new_figure(11.0, 5.4)
    grid = figure.add_gridspec(
        2, len(names), height_ratios=(2.6, 1), width_ratios=_widths(frames[0][1])
    )
    limits = {
        name: max(color_limit(weights[name].float()) for _, weights in frames) for name in names
    }
    panels = {
        name: _panel(figure.add_subplot(grid[0, k]), frames[0][1][name], limits[name])
        for k, name in enumerate(names)
    }
    dot = _curve(figure.add_subplot(grid[1, :]), frames)
    _show(figure, panels, dot, *frames[0])
    figure.draw_without_rendering()
    figure.set_layout_engine(
        "none"
    )  # nothing moves from here on, and the layout takes most of the time
    images = []
    for epoch, weights in frames:
        _show(figure, panels, dot, epoch, weights)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=100)
        images.append(Image.open(stream).convert("RGB"))
    durations = [round(1000 / fps)] * (len(frames) - 1) + [2000]
    images[0].save(
        path, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0
    )


def _show(
    figure: Figure,
    panels: Mapping[str, tuple[Axes, Any]],
    dot: Any,
    epoch: int,
    weights: Mapping[str, Tensor],
) -> None:
    """Draw the weights of one epoch."""
    kept, total = _size(weights)
    for name, (axes, image) in panels.items():
        image.set_data(_cells(weights[name]).numpy())
        set_title(
            axes, f"{name}\n{int(weights[name].count_nonzero()):,} of {weights[name].numel():,}"
        )
    dot.set_data([epoch], [kept])
    left = f"{kept:,} of {total:,} weights are left ({1 - kept / total:.1%} are zero)"
    figure.suptitle(f"epoch {epoch}: {left}", x=0.01, ha="left", fontsize=11)


def _widths(weights: Mapping[str, Tensor]) -> list[float]:
    """Return the widths of the panels: large matrices get more room, small ones enough for their names."""
    return [max(0.32, min(1.0, math.sqrt(value[0].numel() / 784))) for value in weights.values()]


def _size(weights: Mapping[str, Tensor]) -> tuple[int, int]:
    return sum(int(value.count_nonzero()) for value in weights.values()), sum(
        value.numel() for value in weights.values()
    )


_MOST_ROWS, _MOST_COLUMNS = 100, 262


def _cells(weight: Tensor) -> Tensor:
    """Return the matrix at no more than 100 x 262 cells, in each the entry of the largest absolute value."""
    matrix = weight.detach().cpu().float().flatten(1)
    cells = [
        math.ceil(size / most)
        for size, most in zip(matrix.shape, (_MOST_ROWS, _MOST_COLUMNS), strict=True)
    ]
    shape = [math.ceil(size / cell) for size, cell in zip(matrix.shape, cells, strict=True)]
    padded = torch.zeros(shape[0] * cells[0], shape[1] * cells[1])
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    blocks = padded.reshape(shape[0], cells[0], shape[1], cells[1]).transpose(1, 2).flatten(2)
    return blocks.gather(2, blocks.abs().argmax(2, keepdim=True)).squeeze(2)


def _panel(axes: Axes, weight: Tensor, limit: float) -> tuple[Axes, Any]:
    image = axes.imshow(
        _cells(weight).numpy(),
        cmap=colours(),
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        interpolation="none",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#C8C8C8")
    axes.set_xlabel("inputs", fontsize=9)
    axes.set_ylabel("outputs", fontsize=9)
    return axes, image


def _curve(axes: Axes, frames: Sequence[tuple[int, Mapping[str, Tensor]]]) -> Any:
    from matplotlib.ticker import StrMethodFormatter

    epochs = [epoch for epoch, _ in frames]
    kept = [_size(weights)[0] for _, weights in frames]
    axes.plot(epochs, kept, color=BLUE)
    (dot,) = axes.plot(epochs[:1], kept[:1], "o", color=RED)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("epoch")
    axes.set_ylabel("weights left")
    open_axes(axes)
    return dot
