"""The error that ends a run at the first loss or gradient that is NaN or infinite."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

from .steps import StepStats

__all__ = ["NonFiniteError", "non_finite_error"]


class NonFiniteError(RuntimeError):
    """The loss or a gradient became NaN or infinite; the message names the step and the site."""


def non_finite_error(
    stats: StepStats, step: int, epoch: Fraction, folder: Path | None
) -> NonFiniteError:
    """Return the error for a step whose loss or gradient is not finite.

    Args:
        stats: measurements of the step, which has changed no parameter.
        step: number of the step, from zero.
        epoch: the same number in epochs.
        folder: the folder of the last checkpoint, ``None`` if there is no checkpoint.
    """
    saved = "" if folder is None else f"; the last checkpoint is in {folder}"
    return NonFiniteError(
        f"fit: step {step} (epoch {float(epoch):.2f}): {_culprit(stats)} is not finite{saved}. "
        "Try a smaller learning rate, a smaller init_scale, or scaled inputs"
    )


def _culprit(stats: StepStats) -> str:
    """Return which terms of the loss, or else which gradients, are not finite."""
    terms = _names_of_non_finite(stats.kl)
    if not math.isfinite(stats.data):
        terms.append("the data (log-likelihood)")
    if terms or not math.isfinite(stats.loss):
        return f"the loss, at {', '.join(sorted(terms)) or 'the sum of its terms'}"
    gradients = _names_of_non_finite(stats.gradients)
    return f"the gradient of {', '.join(gradients) or 'all parameters together'}"


def _names_of_non_finite(values: dict[str, float]) -> list[str]:
    return [name for name, value in values.items() if not math.isfinite(value)]
