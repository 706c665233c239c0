"""The draws of a sampler, by chain and draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_bnn.runtime.tensor_dicts import map_tensors

__all__ = ["StoredDraws", "require_rectangular"]


@dataclass(frozen=True)
class StoredDraws:
    """Draws of every latent site, (chain, draw, ...).

    An index counts the draws of the first chain, then those of the second, and so on.
    """

    sites: dict[str, Tensor]

    @property
    def chains(self) -> int:
        """The number of chains."""
        return len(next(iter(self.sites.values())))

    @property
    def per_chain(self) -> int:
        """The number of draws of each chain."""
        return next(iter(self.sites.values())).shape[1]

    def __len__(self) -> int:
        return self.chains * self.per_chain

    def choose(self, num: int) -> Tensor:
        """Return the indices of ``num`` draws, at random.

        No draw is repeated before all of them have been chosen once.
        """
        rounds = math.ceil(num / len(self))
        return torch.cat([torch.randperm(len(self)) for _ in range(rounds)])[:num]

    def last(self, num: int) -> Tensor:
        """Return the indices of the last ``num`` draws of each chain."""
        indices = torch.arange(len(self)).view(self.chains, self.per_chain)
        return indices[:, self.per_chain - num :].flatten()

    def evenly_spaced(self, num: int) -> Tensor:
        """Return the indices of ``num`` draws at equal distances, over all chains."""
        return (torch.arange(num, dtype=torch.float64) * len(self) / num).long()

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """Return the draws with these indices, (draw, ...)."""
        return map_tensors(lambda value: value.flatten(0, 1)[index.to(value.device)], self.sites)


def require_rectangular(draws: Mapping[str, Tensor]) -> None:
    """Raise unless all sites have finite draws of the same numbers of chains and draws.

    Raises:
        ValueError: naming the counts, or a site that has NaN or infinity.
    """
    counts = {name: tuple(value.shape[:2]) for name, value in draws.items()}
    shapes = set(counts.values())
    if len(shapes) != 1 or not _is_chain_and_draw(shapes.pop()):
        raise ValueError(
            "Posterior.from_draws: expected the same shape (chain, draw, ...) for all sites, "
            f"with at least one chain and one draw; got {counts}"
        )
    for name, value in draws.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"Posterior.from_draws: the draws of {name!r} contain NaN or infinity")


def _is_chain_and_draw(counts: tuple[int, ...]) -> bool:
    return len(counts) == 2 and 0 not in counts
