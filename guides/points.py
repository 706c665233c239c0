"""Weights that are learned as points, beside scales that have a posterior."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_bnn.distributions import Point
from pyro_bnn.variational.layer_rules import AffineOp, draw_output, scaled, transposed

__all__ = ["PointWeights"]


class PointWeights(nn.Module):
    r"""The weights of a layer as usual, :math:`q(w) = \delta(w - \theta)`, with the parameter ``loc``.

    Args:
        initial: where :math:`\theta` starts.
    """

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(initial.detach().clone())

    def forward(self) -> torch.distributions.Distribution:
        """Return q as one event."""
        return Point(self.loc).to_event(self.loc.dim())


# What becomes of points in a layer: it is applied to them, without the pass that a Gaussian needs for its variance.


@draw_output.register
def _(distribution: Point, op: AffineOp, x: Tensor, bias: Any = None) -> Tensor:
    return op(
        x,
        distribution.loc,
        bias.rsample() if isinstance(bias, torch.distributions.Normal) else bias,
    )


@scaled.register
def _(distribution: Point, factor: Any) -> Any:
    return Point(distribution.loc * factor)


@transposed.register
def _(distribution: Point, dim0: int, dim1: int) -> Any:
    return Point(distribution.loc.transpose(dim0, dim1))
