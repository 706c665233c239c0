"""The settings of a run, and where it is executed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pyro_bnn.training import linear_warmup

__all__ = ["ExecutionConfig", "Schedules", "Settings", "schedules"]


@dataclass(frozen=True)
class Settings:
    """The settings that determine the posterior of a run.

    Equal settings give equal posteriors, bit for bit, on one device and release of torch. The names
    in ``model``, ``prior``, ``guide`` and ``data`` are those of :mod:`pyro_bnn.runs.names`; the
    fields are the options of ``pyro-bnn fit``.
    """

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
    """Where and how a run is executed, and which intermediate results it keeps.

    None of these fields changes the posterior, except for rounding.
    """

    device: str = "cpu"
    threads: int | None = None
    data_dir: str | None = None
    checkpoint_every: int = 1
    snapshots: int = 0


class Schedules(NamedTuple):
    """Learning rate and weight of the KL term as functions of the epoch."""

    learning_rate: Callable[[float], float]
    kl_weight: Callable[[float], float]


def schedules(settings: Settings) -> Schedules:
    r"""Return learning rate and KL weight, constant within each epoch e = 0, 1, ..., E - 1.

    The rate is :math:`\eta` (``constant``), :math:`\eta(1 - e/E)` (``linear``), or
    :math:`\eta\min(2 - 2e/E, 1)` (``half-linear``). A warm-up ``A:B`` is a KL weight of zero up to
    epoch A that grows linearly to one at epoch B; ``none`` is a KL weight of one throughout.

    Raises:
        ValueError: if the schedule is unknown, the warm-up is malformed, the learning rate is not
            positive, or there is no epoch.
    """
    rate, epochs = settings.learning_rate, settings.epochs
    if not 0 < rate < math.inf or epochs < 1:
        raise ValueError(
            "schedules: expected a learning rate above zero and at least one epoch, "
            f"got {rate} and {epochs}"
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
    factor = factors[settings.schedule]
    warmup = _warmup(settings.kl_warmup)
    return Schedules(
        learning_rate=lambda epoch: rate * factor(_whole_epoch(epoch)),
        kl_weight=lambda epoch: warmup(_whole_epoch(epoch)),
    )


def _whole_epoch(epoch: float) -> int:
    """Return the epoch that a step belongs to, forgiving rounding just below its start."""
    return int(epoch + 1e-9)


def _warmup(text: str) -> Callable[[float], float]:
    if text == "none":
        return lambda epoch: 1.0
    try:
        start, end = map(float, text.split(":"))
    except ValueError:
        raise _warmup_error(text) from None
    if not 0 <= start < end < math.inf:
        raise _warmup_error(text)
    return linear_warmup(start, end)


def _warmup_error(text: str) -> ValueError:
    return ValueError(
        "kl-warmup: expected A:B with 0 <= A < B, the epochs where the KL weight leaves 0 and "
        f"reaches 1, or none; got {text!r}"
    )
