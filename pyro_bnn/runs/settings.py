"""What a run was asked to do, and where it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pyro_bnn.training import linear_warmup

__all__ = ["ExecutionConfig", "Settings", "schedules"]


@dataclass(frozen=True)
class Settings:
    """What makes a run the run that it is; equal settings in equal places give equal posteriors, bit for bit."""

    model: str
    prior: str = "log-uniform"
    guide: str = "sparse-vd"
    data: str = "digits"
    split: int = 0
    hold_out: int = 0
    hidden: str = ""
    prior_scale: float = 1.0
    dropout: float = 0.5
    tricks: bool = True
    epochs: int = 200
    batch_size: int = 100
    learning_rate: float = 1e-3
    schedule: str = "half-linear"
    kl_warmup: str = "5:20"
    seed: int = 0


@dataclass(frozen=True)
class ExecutionConfig:
    """Where and how a run is computed, and what is kept of it; none of it changes what is computed, rounding apart."""

    device: str = "cpu"
    threads: int | None = None
    data_dir: str | None = None
    checkpoint_every: int = 1
    snapshots: int = 0


def schedules(settings: Settings) -> tuple[Callable[[float], float], Callable[[float], float]]:
    r"""Return learning rate and KL weight as functions of the epoch, constant within each epoch e = 0, 1, ..., E - 1.

    The rate is :math:`\eta` (``constant``), :math:`\eta(1 - e/E)` (``linear``), or :math:`\eta\min(2 - 2e/E, 1)`
    (``half-linear``). A warm-up ``A:B`` is a KL weight of zero up to epoch A that reaches one at epoch B; ``none`` is
    one throughout.

    Raises:
        ValueError: an unknown schedule, a warm-up of another form, a learning rate that is not positive.
    """
    rate, epochs = settings.learning_rate, settings.epochs
    if not 0 < rate < math.inf or epochs < 1:
        raise ValueError(
            f"expected a learning rate above zero and at least one epoch, got {rate} and {epochs}"
        )
    factors: dict[str, Callable[[int], float]] = {
        "constant": lambda epoch: 1.0,
        "linear": lambda epoch: 1 - epoch / epochs,
        "half-linear": lambda epoch: min(2 - 2 * epoch / epochs, 1.0),
    }
    if settings.schedule not in factors:
        raise ValueError(
            f"schedule: expected one of {', '.join(factors)}, got {settings.schedule!r}"
        )
    factor, warmup = factors[settings.schedule], _warmup(settings.kl_warmup)
    # an epoch need not be a whole number of steps: what lies a rounding error below it counts as the epoch
    return lambda epoch: rate * factor(int(epoch + 1e-9)), lambda epoch: warmup(int(epoch + 1e-9))


def _warmup(text: str) -> Callable[[float], float]:
    if text == "none":
        return lambda epoch: 1.0
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError:
        start, end = 0.0, -1.0
    if not 0 <= start < end < math.inf:
        meaning = "the epochs where the KL weight leaves 0 and reaches 1"
        raise ValueError(
            f"kl-warmup: expected A:B with 0 <= A < B, {meaning}, or none; got {text!r}"
        )
    return linear_warmup(start, end)
