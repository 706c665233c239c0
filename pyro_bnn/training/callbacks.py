"""Callbacks: functions that observe a run after each epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pyro_bnn.posterior import Posterior

__all__ = ["Callback", "Progress"]


@dataclass(frozen=True)
class Progress:
    """The progress of a run at the end of an epoch, as callbacks see it.

    Attributes:
        epoch: number of the epoch that has just ended, from 1.
        history: the values of :attr:`Fit.history <pyro_bnn.training.Fit>` so far; a copy.
        posterior: returns the present posterior when it is called. It consists of copies, which
            later training does not change; a callback that only reads the history need not pay for
            them.
    """

    epoch: int
    history: dict[str, list[float]]
    posterior: Callable[[], Posterior]


class Callback(Protocol):
    """A function that :func:`~pyro_bnn.fit` calls after each epoch.

    It may draw random numbers and evaluate the posterior: the run is the same with and without it.
    An error that it raises ends the run, and a ``KeyboardInterrupt`` stops it as Ctrl-C does.
    """

    def __call__(self, progress: Progress, /) -> None:
        """Observe the run."""
