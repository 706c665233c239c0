"""Evaluate a posterior on test data: metrics for a file, and a report for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_bnn import compression
from pyro_bnn.datasets import Dataset
from pyro_bnn.metrics import classification_error, interval_coverage
from pyro_bnn.posterior import Posterior, Prediction
from pyro_bnn.runtime.text_table import format_table

from .folders import JsonValue

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a posterior on test data.

    Attributes:
        metrics: the content of ``metrics.json``.
        prediction: the average over posterior draws.
        pruned: the pruned network; ``None`` for a point estimate, which has no variance to prune
            by, and where pruning would remove every weight.
    """

    metrics: dict[str, Any]
    prediction: Prediction
    pruned: compression.Pruned | None

    def __str__(self) -> str:
        paragraphs = [_score_table(self.metrics), _describe_uncertainty(self.metrics)]
        if self.pruned:
            paragraphs.append(str(self.pruned))
        elif "not_pruned" in self.metrics:
            paragraphs.append(f"not pruned: {self.metrics['not_pruned']}")
        return "\n\n".join(paragraphs)


# --- metrics --------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(posterior: Posterior, data: Dataset, draws: int = 50) -> Evaluation:
    """Return the metrics of the pruned mean network and of the average over posterior draws.

    For classes: accuracy and error (fractions) and negative log-likelihood (nats per example). For
    regression: root mean squared error and log-likelihood (nats per example), in the original
    units, and the coverage of the 50% and 90% predictive intervals.

    Args:
        posterior: of a ``BayesianNet``.
        data: its test part is used.
        draws: the number of networks in the average.
    """
    x, y = data.test
    pruned, reason = _prune(posterior)
    network = posterior.mean_network() if pruned is None else pruned.module
    network.eval()
    outputs = torch.cat([network(batch) for batch in torch.split(x, 1000)])
    single = posterior.model.likelihood(outputs)
    average = posterior.predict(x, draws)
    if data.classes is None:
        mean_scores = _regression_scores(single.mean, single.log_prob(y), data)
        draw_scores = _regression_scores(average.mean, average.log_prob(y), data)
        uncertainty = _regression_uncertainty(average, data)
    else:
        mean_scores = _class_scores(outputs, single.log_prob(y), data)
        draw_scores = _class_scores(average.mean, average.log_prob(y), data)
        uncertainty = _class_uncertainty(average, data)
    metrics: dict[str, Any] = {
        "data": data.name,
        "test_examples": len(x),
        "network": "posterior mean" if pruned is None else "pruned posterior mean",
        "mean_network": mean_scores,
        "draws": {"number": draws, **draw_scores},
        "uncertainty": uncertainty,
    }
    if pruned is not None:
        metrics["sparsity"] = _sparsity(pruned)
    elif reason:
        metrics["not_pruned"] = reason
    return Evaluation(metrics, average, pruned)


def _prune(posterior: Posterior) -> tuple[compression.Pruned | None, str]:
    """Return the pruned network, or ``None`` and the reason why there is none."""
    has_variance = False
    for _, variance in posterior.moments().values():
        has_variance = has_variance or bool(variance.any())
    if not has_variance:
        return None, ""
    try:
        return compression.prune(posterior), ""
    except compression.EmptyNetworkError as error:
        return None, str(error)


def _sparsity(pruned: compression.Pruned) -> dict[str, JsonValue]:
    layers = []
    for layer in pruned.report:
        facts = {**asdict(layer), "shape": list(layer.shape), "sparsity": layer.sparsity}
        layers.append(facts)
    return {"ratio": pruned.ratio, "dense_ratio": pruned.dense_ratio, "layers": layers}


def _mean(values: Tensor) -> float:
    """Return the mean, computed in double precision."""
    return float(values.double().mean())


def _class_scores(scores: Tensor, log_prob: Tensor, data: Dataset) -> dict[str, float]:
    error = classification_error(scores, data.y_test)
    return {"accuracy": 1 - error, "error": error, "nll": -_mean(log_prob)}


def _regression_scores(mean: Tensor, log_prob: Tensor, data: Dataset) -> dict[str, float]:
    # y = y_std y' + y_mean, so p(y) = p(y') / y_std
    rmse = math.sqrt(_mean((mean - data.y_test).double().square())) * data.y_std
    return {"rmse": rmse, "log_likelihood": _mean(log_prob) - math.log(data.y_std)}


def _class_uncertainty(prediction: Prediction, data: Dataset) -> dict[str, JsonValue]:
    """Return mean entropies in nats, the epistemic part also for right and for wrong answers."""
    right = prediction.mean.argmax(-1) == data.y_test
    entropies = {
        "total": prediction.total,
        "aleatoric": prediction.aleatoric,
        "epistemic": prediction.epistemic,
        "epistemic_right": prediction.epistemic[right],
        "epistemic_wrong": prediction.epistemic[~right],
    }
    means: dict[str, JsonValue] = {}
    for name, values in entropies.items():
        means[name] = _mean(values) if len(values) else None
    return means


def _regression_uncertainty(prediction: Prediction, data: Dataset) -> dict[str, JsonValue]:
    """Return root mean variances in the original units, and the coverage of intervals."""
    coverage = {}
    for level in (0.5, 0.9):
        coverage[f"{level:.0%}"] = interval_coverage(prediction, data.y_test, level)
    return {
        "total": math.sqrt(_mean(prediction.total)) * data.y_std,
        "aleatoric": math.sqrt(_mean(prediction.aleatoric)) * data.y_std,
        "epistemic": math.sqrt(_mean(prediction.epistemic)) * data.y_std,
        "coverage": coverage,
    }


# --- report ---------------------------------------------------------------------------------------


def _score_table(metrics: Mapping[str, Any]) -> str:
    """Return a table with a row for the network at the means and a row for the draws."""
    title = f"{metrics['data']}, {metrics['test_examples']} test examples"
    single, average = metrics["mean_network"], metrics["draws"]
    names = (
        f"{metrics['network']}, no sampling",
        f"average of {average['number']} posterior draws",
    )
    rows = []
    if "rmse" in average:
        header = (title, "RMSE", "log-likelihood")
        for name, scores in zip(names, (single, average), strict=True):
            rows.append((name, f"{scores['rmse']:.4g}", f"{scores['log_likelihood']:.3f}"))
    else:
        header = (title, "accuracy", "NLL (nats)")
        for name, scores in zip(names, (single, average), strict=True):
            rows.append((name, f"{scores['accuracy']:.2%}", f"{scores['nll']:.4f}"))
    return format_table(header, rows)


def _describe_uncertainty(metrics: Mapping[str, Any]) -> str:
    uncertainty = metrics["uncertainty"]
    total, aleatoric = uncertainty["total"], uncertainty["aleatoric"]
    epistemic = uncertainty["epistemic"]
    if "coverage" in uncertainty:
        intervals = []
        for level, coverage in uncertainty["coverage"].items():
            intervals.append(f"the {level} intervals hold {coverage:.1%}")
        return (
            f"predictive standard deviation: total {total:.3g}, aleatoric {aleatoric:.3g}, "
            f"epistemic {epistemic:.3g}\nof the test points {', '.join(intervals)}"
        )
    outcomes = []
    for outcome in ("right", "wrong"):
        mean = uncertainty[f"epistemic_{outcome}"]
        if mean is not None:
            outcomes.append(f"{mean:.4f} where the answer is {outcome}")
    return (
        f"uncertainty in nats: total {total:.4f} = aleatoric {aleatoric:.4f} "
        f"+ epistemic {epistemic:.4f}\nepistemic part: {', '.join(outcomes)}"
    )
