"""What a sampler is: settings with the few functions that the loop of all samplers calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from .noise import Numbers

__all__ = ["Batch", "ConvergenceWarning", "Gradient", "Sampler", "SamplingError", "Update"]


class SamplingError(RuntimeError):
    """Sampling cannot go on: every chain diverges, the step size falls to zero, or it was stopped before any draw."""


class ConvergenceWarning(UserWarning):
    """The draws may not represent the posterior; also told in ``posterior.facts["warnings"]``."""


Gradient = Callable[..., tuple[Tensor, Tensor]]
Update = Callable[..., tuple[Tensor, ...]]
Batch = tuple[Tensor, ...]


class Sampler(Protocol):
    """The settings of a sampler, and what it does with them; one file each, all of this shape.

    ``function`` returns the work on tensors of one step, given log-density and gradient; it is compiled by the caller,
    with ``examples`` for its arguments. ``init`` returns the first state, all that the next step needs, and ``step``
    the state after that, with what a person wants to see of the step: a named tuple of numbers, one for each chain or
    one for all.
    """

    @property
    def name(self) -> str:
        """What people call the method."""

    def chosen(self, curvature: Callable[[], float], share: float) -> Sampler:
        """Return the settings with what was left open, given the curvature of the density and the share B/N."""

    def function(self, gradient: Gradient) -> Update:
        """Return the work of one step as a function of tensors."""

    def examples(self, position: Tensor, batch: Batch) -> list[Tensor]:
        """Return arguments of that function."""

    def init(self, gradient: Gradient, update: Update, position: Tensor, batch: Batch) -> Any:
        """Return the state at these positions (chains, D)."""

    def step(
        self, update: Update, state: Any, number: int, random: Numbers, batch: Batch
    ) -> tuple[Any, Any]:
        """Return the state after step ``number``, and information on it."""
