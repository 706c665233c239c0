"""Colours, frames and titles that all pictures share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "RED",
    "colours",
    "color_limit",
    "new_figure",
    "open_axes",
    "set_title",
]

# Okabe & Ito's colours: told apart by colour-blind readers and in grey print
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8A8A8A"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches; pyplot would keep it alive and choose a window system."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def open_axes(axes: Axes) -> None:
    """Remove the frame at the top and on the right."""
    axes.spines[["top", "right"]].set_visible(False)


def set_title(axes: Axes, text: str) -> None:
    """Put a small title at the left."""
    axes.set_title(text, loc="left", fontsize=10)


def color_limit(matrix: Tensor) -> float:
    """Return where the colours end; a few large weights must not make all others pale."""
    values = matrix.abs()[matrix != 0][:10_000_000]
    return float(values.quantile(0.9)) if len(values) else 1.0


def colours() -> Any:
    """Return the colour map of signed values: blue below zero, white at zero, red above."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("signed", [BLUE, "white", RED]).with_extremes(
        bad="#D8D8D8"
    )
