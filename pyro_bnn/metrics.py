"""Error, coverage and separation of predictions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_bnn.posterior import Prediction

__all__ = ["error_of", "interval_coverage_of", "out_of_distribution"]


def interval_coverage_of(prediction: Prediction, y: Tensor, level: float) -> float:
    """Return the fraction of the data inside the central predictive intervals of this level."""
    lower, upper = prediction.interval(level)
    return float(((lower <= y) & (y <= upper)).double().mean())


@torch.no_grad()
def error_of(network: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Return the fraction of examples that a network of classes gets wrong.

    Args:
        network: from inputs (n, ...) to scores (n, classes).
        data: inputs, and labels (n,).
    """
    x, y = data
    network.eval()
    wrong = sum(
        int((network(part).argmax(-1) != labels).sum())
        for part, labels in zip(x.split(1000), y.split(1000), strict=True)
    )
    return wrong / len(x)


def out_of_distribution(known: Prediction, unknown: Prediction) -> dict[str, float]:
    """Return how well uncertainty tells test data from inputs of another kind.

    Mean entropies in nats, and areas under the ROC curve, for the total uncertainty and for its epistemic part.
    """
    from sklearn.metrics import roc_auc_score

    found: dict[str, float] = {}
    for key in ("total", "epistemic"):
        values = [getattr(prediction, key).cpu() for prediction in (known, unknown)]
        strange = torch.cat([torch.zeros(len(values[0])), torch.ones(len(values[1]))])
        found |= {f"{key}_test": float(values[0].mean()), f"{key}_ood": float(values[1].mean())}
        found[f"{key}_auroc"] = float(roc_auc_score(strange.numpy(), torch.cat(values).numpy()))
    return found
