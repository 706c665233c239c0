"""Weights that are learned as points, beside scales that have a posterior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_bnn.distributions import Point

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
