"""An animation of the weights of a network that becomes sparse."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .style import (
    BLUE,
    RED,
    color_limit,
    hide_ticks,
    new_figure,
    open_axes,
    set_title,
    signed_colormap,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D

__all__ = ["animate_weights"]

Frame = tuple[int, Mapping[str, Tensor]]  # an epoch, and the weights after it


def animate_weights(frames: Sequence[Frame], path: str | Path, fps: float = 6.0) -> None:
    """Write the weight matrices over the epochs as a GIF.

    There is one panel per weight tensor, (outputs, inputs x kernel): blue below zero, red above,
    white where pruned. A matrix larger than its panel shows in each cell the weight of largest
    absolute value. Below the panels is the number of remaining weights.

    Args:
        frames: pairs of an epoch and the weights after it, zero where pruned.
        path: of the file.
        fps: frames per second; the last one stays for two seconds.

    Raises:
        ValueError: if there are no frames.
    """
    if not frames:
        raise ValueError(
            "animate_weights: expected snapshots of the weights, got none; "
            "keep some with fit --snapshots 5"
        )
    from PIL import Image

    scene = _Scene.of(frames)
    images = []
    for epoch, weights in frames:
        scene.show(epoch, weights)
        stream = io.BytesIO()
        scene.figure.savefig(stream, format="png", dpi=100)
        images.append(Image.open(stream).convert("RGB"))
    durations = [round(1000 / fps)] * (len(frames) - 1) + [2000]
    images[0].save(
        path, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0
    )


class _Panel(NamedTuple):
    """The axes and the image of one weight."""

    axes: Axes
    image: AxesImage


class _Scene(NamedTuple):
    """A figure whose images and dot are changed from frame to frame."""

    figure: Figure
    panels: dict[str, _Panel]
    dot: Line2D

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> _Scene:
        """Return the figure with the first frame in it."""
        epoch, first = frames[0]
        figure = new_figure(11.0, 5.4)
        grid = figure.add_gridspec(
            2, len(first), height_ratios=(2.6, 1), width_ratios=_panel_widths(first)
        )
        panels = {}
        for column, (name, weight) in enumerate(first.items()):
            limit = max(color_limit(weights[name].float()) for _, weights in frames)
            panels[name] = _make_panel(figure.add_subplot(grid[0, column]), weight, limit)
        dot = _draw_sizes(figure.add_subplot(grid[1, :]), frames)
        scene = cls(figure, panels, dot)
        scene.show(epoch, first)
        # the layout takes most of the time of a frame; from here on nothing moves
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return scene

    def show(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Draw the weights of one epoch."""
        for name, panel in self.panels.items():
            weight = weights[name]
            panel.image.set_data(_cells(weight).numpy())
            count = f"{int(weight.count_nonzero()):,} of {weight.numel():,}"
            set_title(panel.axes, f"{name}\n{count}")
        remaining = _count_nonzero(weights)
        total = sum(weight.numel() for weight in weights.values())
        self.dot.set_data([epoch], [remaining])
        self.figure.suptitle(
            f"epoch {epoch}: {remaining:,} of {total:,} weights are left "
            f"({1 - remaining / total:.1%} are zero)",
            x=0.01,
            ha="left",
            fontsize=11,
        )


def _panel_widths(weights: Mapping[str, Tensor]) -> list[float]:
    """Return relative widths: large matrices get more room, small ones enough for their names."""
    widths = []
    for weight in weights.values():
        widths.append(max(0.32, min(1.0, math.sqrt(weight[0].numel() / 784))))
    return widths


def _count_nonzero(weights: Mapping[str, Tensor]) -> int:
    return sum(int(weight.count_nonzero()) for weight in weights.values())


_MOST_ROWS, _MOST_COLUMNS = 100, 262


def _cells(weight: Tensor) -> Tensor:
    """Return the entry of largest absolute value in each of at most 100 x 262 cells."""
    matrix = weight.detach().cpu().float().flatten(1)
    rows, columns = matrix.shape
    height = math.ceil(rows / _MOST_ROWS)
    width = math.ceil(columns / _MOST_COLUMNS)
    padded = torch.zeros(math.ceil(rows / height) * height, math.ceil(columns / width) * width)
    padded[:rows, :columns] = matrix
    # (rows of cells, columns of cells, entries of a cell)
    blocks = padded.unfold(0, height, height).unfold(1, width, width).flatten(2)
    largest = blocks.abs().argmax(2, keepdim=True)
    return blocks.gather(2, largest).squeeze(2)


def _make_panel(axes: Axes, weight: Tensor, limit: float) -> _Panel:
    image = axes.imshow(
        _cells(weight).numpy(),
        cmap=signed_colormap(),
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        interpolation="none",
    )
    hide_ticks(axes)
    axes.set_xlabel("inputs", fontsize=9)
    axes.set_ylabel("outputs", fontsize=9)
    return _Panel(axes, image)


def _draw_sizes(axes: Axes, frames: Sequence[Frame]) -> Line2D:
    """Draw the number of remaining weights over the epochs, and return the dot that moves."""
    from matplotlib.ticker import StrMethodFormatter

    epochs, counts = [], []
    for epoch, weights in frames:
        epochs.append(epoch)
        counts.append(_count_nonzero(weights))
    axes.plot(epochs, counts, color=BLUE)
    (dot,) = axes.plot(epochs[:1], counts[:1], "o", color=RED)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("epoch")
    axes.set_ylabel("weights left")
    open_axes(axes)
    return dot
