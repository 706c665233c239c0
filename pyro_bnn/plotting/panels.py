"""Panels that several figures share: a band, a matrix, the weights of units as images, a digit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_bnn.posterior import Prediction

from .style import BLUE, RED, color_limit, hide_ticks, set_title, signed_colormap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_band", "draw_digit", "draw_matrix", "draw_unit_images"]

_DENSE = 0.2  # matrices with a larger fraction of nonzero weights are drawn as images


def draw_band(
    axes: Axes, position: Tensor, lower: Tensor, upper: Tensor, alpha: float, label: str
) -> None:
    """Draw a blue band between two curves over one input."""
    axes.fill_between(position, lower, upper, color=BLUE, alpha=alpha, linewidth=0, label=label)


def draw_matrix(axes: Axes, matrix: Tensor) -> None:
    """Draw a matrix: as an image if it is dense, as a dot per nonzero weight if it is sparse."""
    rows, columns = matrix.shape
    density = float((matrix != 0).double().mean())
    if density > _DENSE:
        limit = color_limit(matrix)
        axes.imshow(
            matrix.numpy(),
            cmap=signed_colormap(),
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            interpolation="none",
        )
        return
    positions = matrix.nonzero()
    colors = np.where(matrix[matrix != 0].numpy() > 0, RED, BLUE)
    size = min(9.0, max(0.5, 3000 / max(len(positions), 1)))
    axes.scatter(positions[:, 1], positions[:, 0], s=size, c=colors.tolist(), linewidths=0)
    axes.set_xlim(-0.02 * columns, 1.02 * columns - 1)
    axes.set_ylim(1.02 * rows - 1, -0.02 * rows)


def draw_unit_images(
    axes: Axes, matrix: Tensor, side: int, number: int, title: str | None = None
) -> None:
    """Draw the input weights of the busiest units as images, laid out on one grid.

    Args:
        axes: where to draw.
        matrix: (units, side * side).
        side: the height and width of the images.
        number: the number of units that are drawn, those with most nonzero weights.
        title: by default, the number of units that have nonzero weights.
    """
    counts = (matrix != 0).sum(1)
    busiest = counts.argsort(descending=True, stable=True)[:number]
    rows = math.isqrt(number)
    columns = math.ceil(number / rows)
    sheet = torch.full((rows * (side + 1) + 1, columns * (side + 1) + 1), torch.nan)
    for position, unit in enumerate(busiest.tolist()):
        row, column = divmod(position, columns)
        top, left = row * (side + 1) + 1, column * (side + 1) + 1
        sheet[top : top + side, left : left + side] = matrix[unit].reshape(side, side)
    limit = color_limit(matrix)
    axes.imshow(
        sheet.numpy(), cmap=signed_colormap(), vmin=-limit, vmax=limit, interpolation="none"
    )
    axes.set_axis_off()
    axes.set_anchor("N")
    if title is None:
        title = (
            f"{int((counts > 0).sum())} of {len(matrix)} units still see something;\n"
            f"the busiest, as images of {side}x{side} inputs"
        )
    set_title(axes, title)


def draw_digit(
    axes: Axes, prediction: Prediction, index: int, x: Tensor, y: Tensor, small: bool = False
) -> None:
    """Draw an image with its predicted label above and its predictive entropy in nats below.

    Wrong predictions are red, with the true label beside them.

    Args:
        axes: where to draw.
        prediction: of ``x``.
        index: of the image in ``x``.
        x: square images, (n, pixels) or (n, 1, size, size).
        y: true labels (n,).
        small: use smaller letters.
    """
    image = x[index].detach().cpu()
    side = math.isqrt(image.numel())
    axes.imshow(image.reshape(side, side).numpy(), cmap="gray_r", interpolation="none")
    hide_ticks(axes)
    title_size, label_size = 10.0, 8.5
    if small:
        title_size, label_size = 8.5, 7.5
    predicted, true = int(prediction.mean[index].argmax()), int(y[index])
    if predicted == true:
        axes.set_title(f"{predicted}", fontsize=title_size, color="black", pad=3)
    else:
        axes.set_title(f"{predicted}, is {true}", fontsize=title_size, color=RED, pad=3)
    entropy = float(prediction.total[index])
    digits = 2 if entropy >= 0.1 else 3
    axes.set_xlabel(f"{entropy:.{digits}f} nats", fontsize=label_size, labelpad=2)
