"""Colors, frames and titles that all figures share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GRAY",
    "GREEN",
    "LIGHT_GRAY",
    "ORANGE",
    "PURPLE",
    "RED",
    "SKY_BLUE",
    "color_limit",
    "hide_ticks",
    "new_figure",
    "open_axes",
    "set_title",
    "signed_colormap",
]

# The colors of Okabe & Ito, which color-blind readers can tell apart, as can readers of gray prints
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY_BLUE = "#CC79A7", "#56B4E9"
GRAY, LIGHT_GRAY = "#8A8A8A", "#C8C8C8"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches.

    It is made without pyplot, which would keep the figure alive and choose a window system.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def open_axes(axes: Axes) -> None:
    """Remove the frame at the top and on the right."""
    axes.spines[["top", "right"]].set_visible(False)


def hide_ticks(axes: Axes) -> None:
    """Remove the ticks and draw a thin gray frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(LIGHT_GRAY)


def set_title(axes: Axes, text: str) -> None:
    """Set a small title at the left."""
    axes.set_title(text, loc="left", fontsize=10)


def color_limit(matrix: Tensor) -> float:
    """Return the absolute value where the colors end.

    It is the 90th percentile of the nonzero values, so that a few large weights do not make all
    others pale.
    """
    values = matrix.abs()[matrix != 0][:10_000_000]  # quantile() takes at most 16 million values
    return float(values.quantile(0.9)) if len(values) else 1.0


def signed_colormap() -> Colormap:
    """Return the colors of signed values: blue below zero, white at zero, red above."""
    from matplotlib.colors import LinearSegmentedColormap

    colormap = LinearSegmentedColormap.from_list("signed", [BLUE, "white", RED])
    return colormap.with_extremes(bad="#D8D8D8")
