"""Metrics of predictions: classification error, calibration, coverage, detection of other inputs.

Every part of the library takes its metrics from here, so that a number means the same in a
comparison, in a table of compressed networks and in a report of a run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_bnn.posterior import Prediction

__all__ = [
    "OutOfDistribution",
    "auroc",
    "classification_error",
    "error_of",
    "expected_calibration_error",
    "interval_coverage",
    "out_of_distribution",
]

EXAMPLES_PER_BATCH = 1000


def classification_error(scores: Tensor, labels: Tensor) -> float:
    """Return the fraction of examples whose class of the highest score is not their label.

    Args:
        scores: probabilities, logits or other scores, (n, classes).
        labels: (n,).

    Example:
        >>> classification_error(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1]))
        0.5
    """
    return float((scores.argmax(-1) != labels).double().mean())


@torch.no_grad()
def error_of(network: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Return the classification error of a network, a fraction between 0 and 1.

    The network is put into evaluation mode.

    Args:
        network: maps inputs (n, ...) to scores (n, classes).
        data: inputs, and labels (n,).
    """
    x, labels = data
    network.eval()
    scores = torch.cat([network(batch) for batch in torch.split(x, EXAMPLES_PER_BATCH)])
    return classification_error(scores, labels)


def expected_calibration_error(probs: Tensor, y: Tensor, bins: int = 20) -> float:
    r"""Return the mean gap between confidence and accuracy, a fraction between 0 and 1.

    .. math:: \sum_{b} \frac{|b|}{n} \Big|\, \frac{1}{|b|}\sum_{i \in b} \max_c p_{ic}
        - \frac{1}{|b|}\sum_{i \in b} [\arg\max_c p_{ic} = y_i] \Big|

    The examples are sorted by their confidence and divided into bins of equal counts, so that no
    bin is empty. (Bins of equal width, as in torchmetrics, give another number.) Even a calibrated
    predictor has an error above zero, of about :math:`\sqrt{bins / n} / 2` where it is uncertain.

    Args:
        probs: predictive probabilities (n, classes), or (n,) of a one in binary data.
        y: labels (n,).
        bins: the number of bins, reduced to n where there are fewer examples.

    Raises:
        ValueError: if there are no examples or no bins, or if ``probs`` and ``y`` have different
            numbers of examples.

    Source: Naeini, Cooper & Hauskrecht (2015), section "Calibration metrics"; bins of equal counts
    as in the code of Wilson et al. (2022).

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
        >>> round(expected_calibration_error(probs, torch.tensor([0, 1]), bins=1), 4)
        0.35
    """
    if probs.dim() == 1:
        probs = torch.stack([1 - probs, probs], -1)
    if len(probs) != len(y) or len(y) < 1 or bins < 1:
        raise ValueError(
            "expected_calibration_error: expected probabilities and labels of the same examples "
            f"and at least one bin, got {tuple(probs.shape)}, {tuple(y.shape)} and {bins}"
        )
    confidence, answer = probs.double().max(-1)
    correct = (answer == y).double()
    order = confidence.argsort(stable=True)
    total = 0.0
    for gaps in (confidence - correct)[order].tensor_split(min(bins, len(y))):
        # |b| |mean confidence - mean accuracy| = |sum of their differences|
        total += float(gaps.sum().abs())
    return total / len(y)


def interval_coverage(prediction: Prediction, y: Tensor, level: float = 0.9) -> float:
    """Return the fraction of the data inside the central predictive intervals of a level.

    Args:
        prediction: a prediction of real data.
        y: the data, (n,) or (n, d).
        level: the probability of the intervals, between 0 and 1.

    Raises:
        ValueError: if the level is outside (0, 1), or if the likelihood is not Gaussian.
    """
    lower, upper = prediction.interval(level)
    return float(((lower <= y) & (y <= upper)).double().mean())


def auroc(negatives: Tensor, positives: Tensor) -> float:
    """Return the area under the ROC curve of a score that should be higher for positives.

    It is the probability that a positive example has a higher score than a negative one; equal
    scores count one half.

    Args:
        negatives: scores of n negative examples, (n,).
        positives: scores of m positive examples, (m,).

    Example:
        >>> auroc(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0]))
        0.75
    """
    from sklearn.metrics import roc_auc_score

    labels = torch.cat([torch.zeros(len(negatives)), torch.ones(len(positives))])
    scores = torch.cat([negatives, positives]).cpu()
    return float(roc_auc_score(labels.numpy(), scores.numpy()))


@dataclass(frozen=True)
class OutOfDistribution:
    """How well one measure of uncertainty separates test data from inputs of another kind.

    Attributes:
        test_mean: its mean over the test data.
        other_mean: its mean over the other inputs.
        auroc: the area under the ROC curve, with the other inputs as positives.
    """

    test_mean: float
    other_mean: float
    auroc: float


def out_of_distribution(test: Prediction, other: Prediction) -> dict[str, OutOfDistribution]:
    """Return how well ``"total"`` and ``"epistemic"`` uncertainty detect inputs of another kind.

    Uncertainties are in nats for classes.

    Args:
        test: the prediction at test data of the kind that the model was trained on.
        other: the prediction at inputs of another kind.
    """
    return {
        "total": _separation(test.total, other.total),
        "epistemic": _separation(test.epistemic, other.epistemic),
    }


def _separation(test: Tensor, other: Tensor) -> OutOfDistribution:
    return OutOfDistribution(
        test_mean=float(test.mean()), other_mean=float(other.mean()), auroc=auroc(test, other)
    )
