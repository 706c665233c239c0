"""The effect handler that sets the values of latent sites, so that they are not drawn.

Pyro shows every sample statement to the handlers around it, from the innermost to the outermost,
before it draws. A handler answers the statement by setting its value and marking it as done. Three
kinds of statement pass :class:`FixedSites` untouched: those with data, those by which plates draw
the indices of a minibatch, and ``pyro.deterministic`` (which Pyro records as observed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyro.poutine.messenger import Messenger
from torch import Tensor

from .program import Site, is_subsample

__all__ = ["FixedSites"]


class FixedSites(Messenger):
    """Run a program with the given values at its latent sites.

    Unlike under :func:`pyro.poutine.condition`, the sites stay latent: they are not observed, and
    traces and guides still list them.

    Args:
        values: the values of latent sites, by name. They replace the values that handlers inside
            this one have set.
        otherwise: called with each other latent site that has no value yet. It returns the value,
            or ``None`` to leave the site to the handlers outside and, finally, to its distribution.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def program():
        ...     return pyro.sample("w", dist.Normal(0.0, 1.0))
        >>> with FixedSites({"w": torch.tensor(3.0)}):
        ...     program()
        tensor(3.)
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        otherwise: Callable[[Site], Tensor | None] | None = None,
    ) -> None:
        super().__init__()
        self.values = values
        self.otherwise = otherwise

    def _pyro_sample(self, msg: Site) -> None:
        if msg["is_observed"] or is_subsample(msg):
            return
        value = self.values.get(msg["name"])
        has_value = msg["value"] is not None or msg["done"]
        if value is None and self.otherwise is not None and not has_value:
            value = self.otherwise(msg)
        if value is not None:
            msg["value"] = value
            msg["done"] = True
