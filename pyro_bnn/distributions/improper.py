"""The error that improper priors raise for draws, moments and normalizing constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from pyro.distributions.torch_distribution import TorchDistribution

__all__ = ["ImproperPriorError", "refusing"]


class ImproperPriorError(ValueError):
    """Raised for a draw, a moment or a normalizing constant of an improper prior."""


def refusing(explanation: str) -> Callable[..., NoReturn]:
    """Return a method that raises :class:`ImproperPriorError` with this explanation."""

    def refuse(self: TorchDistribution, *args: Any, **kwargs: Any) -> NoReturn:
        raise ImproperPriorError(explanation)

    return refuse
