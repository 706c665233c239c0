"""The keyword arguments that all samplers have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from pyro_bnn.posterior import Posterior

from .start import HasPosterior, Start

__all__ = ["RunOptions", "errors_named"]

SMALLEST = {"chains": 1, "warmup": 0, "draws": 1, "thin": 1}


@dataclass(frozen=True)
class RunOptions:
    """How many chains a sampler runs, for how long, from where, and where the run is saved.

    Every function of :mod:`pyro_bnn.mcmc` collects its common keyword arguments here, and each
    value is checked once, on creation.

    Attributes:
        caller: Name of the function that the user called, with which messages begin.
        chains: Number of chains.
        warmup: Number of steps before the first draw.
        draws: Number of draws of each chain.
        thin: Number of steps between draws.
        batch_size: B, the number of examples of a minibatch; ``None`` for all the data.
        start: Where the chains start; see :func:`~pyro_bnn.mcmc.start.starting_points`.
        seed: Seed of all random numbers.
        compile: Whether to compile the log density.
        progress: Whether to show a progress bar.
        folder: Where the draws are written while they are made, and the state of the run every
            30 seconds; ``None`` to keep both in memory.
        resume: Whether to continue the run in ``folder``.

    Raises:
        ValueError: A count that is not a whole number or is too small, an unknown ``start``, or
            ``resume=True`` without a folder.
    """

    caller: str
    chains: int
    warmup: int
    draws: int
    thin: int = 1
    batch_size: int | None = None
    start: Start = "prior"
    seed: int = 0
    compile: bool = True
    progress: bool = True
    folder: str | Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for name, smallest in SMALLEST.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or int(value) < smallest:
                raise ValueError(
                    f"{self.caller}: expected {name} to be a whole number of at least {smallest}, "
                    f"got {value!r}"
                )
            object.__setattr__(self, name, int(value))  # of NumPy's integers as well
        if not isinstance(self.seed, Integral):
            raise ValueError(
                f"{self.caller}: expected seed to be a whole number, got {self.seed!r}"
            )
        object.__setattr__(self, "seed", int(self.seed))
        if not _is_start(self.start):
            raise ValueError(
                f'{self.caller}: expected start="prior", a posterior, the result of fit, or values '
                f"of the sites; got {self.start!r}"
            )
        if self.resume and self.folder is None:
            raise ValueError(
                f"{self.caller}: resume=True continues the run in a folder, but no folder was "
                "given; name it, folder=FOLDER"
            )


def _is_start(start: Start) -> bool:
    if isinstance(start, str):
        return start == "prior"
    return isinstance(start, Posterior | HasPosterior | Mapping)


@contextlib.contextmanager
def errors_named(caller: str, *kinds: type[ValueError | RuntimeError]) -> Iterator[None]:
    """Put the name of the function that the user called before messages raised inside."""
    try:
        yield
    except kinds as error:
        raise type(error)(f"{caller}: {error}") from error
