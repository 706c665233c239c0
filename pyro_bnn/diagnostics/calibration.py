"""Calibration: whether what has a probability of p happens p of the time."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_bnn.metrics import interval_coverage_of
from pyro_bnn.posterior import Prediction

__all__ = ["expected_calibration_error", "interval_coverage"]


def expected_calibration_error(probs: Tensor, y: Tensor, bins: int = 20) -> float:
    r"""Return by how much the confidence in the answer differs from the accuracy, a fraction between 0 and 1.

    .. math:: \sum_{b} \frac{|b|}{n} \Big|\, \frac{1}{|b|}\sum_{i \in b} \max_c p_{ic}
        - \frac{1}{|b|}\sum_{i \in b} [\arg\max_c p_{ic} = y_i] \Big|

    The examples are sorted by their confidence and cut into bins of equal counts, so that no bin is empty. Even a
    calibrated predictor is above zero, by about :math:`\sqrt{bins / n} / 2` where it is unsure.

    Args:
        probs: predictive probabilities (n, classes), or (n,) of a one in yes-or-no data.
        y: labels (n,).
        bins: how many, at most n.

    Raises:
        ValueError: no examples, or labels of another number; no bins.

    Source: Naeini, Cooper & Hauskrecht (2015), section "Calibration metrics"; bins of equal counts as in the code of
    Wilson et al. (2022).

    >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    >>> round(expected_calibration_error(probs, torch.tensor([0, 1]), bins=1), 4)
    0.35
    """
    probs = torch.stack([1 - probs, probs], -1) if probs.dim() == 1 else probs
    if len(probs) != len(y) or len(y) < 1 or bins < 1:
        raise ValueError(
            f"expected_calibration_error: expected probabilities and labels of the same examples and at least one bin, "
            f"got {tuple(probs.shape)}, {tuple(y.shape)} and {bins}"
        )
    confidence, answer = probs.double().max(-1)
    right = (answer == y).double()
    order = confidence.argsort(stable=True)
    gaps = (confidence - right)[order].tensor_split(min(bins, len(y)))
    # |b| |mean confidence - mean accuracy| = |sum of their differences|
    return float(sum(part.sum().abs() for part in gaps) / len(y))


def interval_coverage(prediction: Prediction, y: Tensor, level: float = 0.9) -> float:
    """Return the fraction of the data that the central predictive intervals of this level hold.

    Args:
        prediction: of real data.
        y: the data, (n,) or (n, d).
        level: between 0 and 1.

    Raises:
        ValueError: a level outside (0, 1); classes, or a likelihood that is not Gaussian.
    """
    return interval_coverage_of(prediction, y, level)
