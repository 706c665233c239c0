"""The draws of a run, as they are made."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .options import RunOptions
from .sampler import Info

__all__ = ["DrawBuffer", "draw_steps"]


def draw_steps(options: RunOptions, may_draw: Callable[[int], bool] | None = None) -> Sequence[int]:
    """Return the number of steps taken when each draw is kept.

    Args:
        options: Their ``warmup``, ``draws`` and ``thin``.
        may_draw: Whether a step, given by its number, may end in a draw; every ``thin``-th of
            these does. ``None`` where every step after the warm-up may.
    """
    warmup, draws, thin = options.warmup, options.draws, options.thin
    if may_draw is None:
        return range(warmup + thin, warmup + draws * thin + 1, thin)
    eligible = (number + 1 for number in itertools.count(warmup) if may_draw(number))
    return list(itertools.islice(eligible, thin - 1, draws * thin, thin))


class DrawBuffer:
    """The draws of all chains and the statistics of each, filled from the front.

    Args:
        values: Space for all draws, (chain, draw, D).

    Attributes:
        count: Number of draws of each chain so far.
        statistics: For each field of a sampler's ``Info`` a tensor (chain, draw).
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.statistics: dict[str, Tensor] = {}
        self.count = 0

    def append(self, position: Tensor, info: Info) -> None:
        """Store one draw of every chain."""
        self.values[:, self.count] = position
        for name, value in info._asdict().items():
            if value is None:
                continue
            if name not in self.statistics:
                self.statistics[name] = torch.empty(
                    self.values.shape[:2], dtype=value.dtype, device=value.device
                )
            self.statistics[name][:, self.count] = value
        self.count += 1

    @property
    def complete(self) -> bool:
        """Whether all draws have been made."""
        return self.count == self.values.shape[1]

    def stored_values(self) -> Tensor:
        """Return the draws so far, (chain, count, D)."""
        return self.values[:, : self.count]

    def stored_statistics(self) -> dict[str, Tensor]:
        """Return the statistics of the draws so far, each (chain, count)."""
        return {name: value[:, : self.count] for name, value in self.statistics.items()}

    def divergent(self) -> int | None:
        """Return the number of divergent draws so far, or ``None`` for samplers without them."""
        if "diverging" not in self.statistics:
            return None
        return int(self.statistics["diverging"][:, : self.count].sum())
