"""How a posterior does on test data: metrics, and a table for people."""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bnn import compression
from pyro_bnn.datasets import Dataset
from pyro_bnn.metrics import classification_error, error_of, interval_coverage
from pyro_bnn.posterior import Posterior, Prediction

__all__ = ["Evaluation", "FileEvaluation", "evaluate", "evaluate_file"]


@dataclass(frozen=True)
class Evaluation:
    """How a posterior does on test data.

    Attributes:
        metrics: what goes into ``metrics.json``.
        prediction: of the averaged draws.
        pruned: the pruned network; ``None`` for a point estimate, which has no variance to prune by, and where pruning
            would leave nothing.
    """

    metrics: dict[str, Any]
    prediction: Prediction
    pruned: compression.Pruned | None

    def __str__(self) -> str:
        rows = _rows(self.metrics)
        width = max(len(name) for name, *_ in rows)
        lines = [f"{name.ljust(width)}  {first:>8}  {second:>14}" for name, first, second in rows]
        lines += ["", *_sentences(self.metrics["uncertainty"])]
        if self.pruned:
            lines += ["", str(self.pruned)]
        elif "not_pruned" in self.metrics:
            lines += ["", f"not pruned: {self.metrics['not_pruned']}"]
        return "\n".join(lines)


@torch.no_grad()
def evaluate(posterior: Posterior, data: Dataset, draws: int = 50) -> Evaluation:
    """Return the metrics of one network, that at the posterior means after pruning, and of the average over draws.

    For classes: accuracy, error (fractions) and negative log-likelihood (nats per example). For regression: root mean
    squared error and log-likelihood (nats per example) in the original units, and the fraction of test points that the
    50% and 90% intervals hold.

    Args:
        posterior: of a ``BayesianNet``.
        data: its test part is used.
        draws: how many networks the average is over.
    """
    x, y = data.test
    pruned, why_not = _pruned(posterior)
    network = pruned.module.eval() if pruned else posterior.mean_network().eval()
    outputs = torch.cat([network(part) for part in x.split(1000)])
    single = posterior.model.likelihood(outputs)
    prediction = posterior.predict(x, draws)
    score = _regression if data.classes is None else _classification
    center = single.mean if data.classes is None else outputs
    metrics: dict[str, Any] = {
        "data": data.name,
        "test_examples": len(x),
        "network": "pruned posterior mean" if pruned else "posterior mean",
        "mean_network": score(center, single.log_prob(y), data),
        "draws": {"number": draws, **score(prediction.mean, prediction.log_prob(y), data)},
        "uncertainty": _uncertainty(prediction, data),
    }
    if pruned:
        layers = [
            {**asdict(layer), "shape": list(layer.shape), "sparsity": layer.sparsity}
            for layer in pruned.report
        ]
        metrics["sparsity"] = {
            "ratio": pruned.ratio,
            "dense_ratio": pruned.dense_ratio,
            "layers": layers,
        }
    elif why_not:
        metrics["not_pruned"] = why_not
    return Evaluation(metrics, prediction, pruned)


def _pruned(posterior: Posterior) -> tuple[compression.Pruned | None, str]:
    """Return the pruned network, or ``None`` and why an empty one would be left."""
    if not any(bool(variance.any()) for _, variance in posterior.moments().values()):
        return None, ""
    try:
        return compression.prune(posterior), ""
    except compression.EmptyNetworkError as error:
        return None, str(error)


def _classification(scores: Tensor, log_prob: Tensor, data: Dataset) -> dict[str, float]:
    error = classification_error(scores, data.y_test)
    return {"accuracy": 1 - error, "error": error, "nll": -float(log_prob.double().mean())}


def _regression(mean: Tensor, log_prob: Tensor, data: Dataset) -> dict[str, float]:
    # y = y_std y' + y_mean, so p(y) = p(y') / y_std
    rmse = float((mean - data.y_test).double().square().mean().sqrt()) * data.y_std
    return {"rmse": rmse, "log_likelihood": float(log_prob.double().mean()) - math.log(data.y_std)}


def _uncertainty(prediction: Prediction, data: Dataset) -> dict[str, Any]:
    """Return averages over the test data: entropies in nats for classes, else standard deviations in original units."""
    parts = {key: getattr(prediction, key) for key in ("total", "aleatoric", "epistemic")}
    if data.classes is None:
        deviations = {
            key: float(value.double().mean().sqrt()) * data.y_std for key, value in parts.items()
        }
        return {
            **deviations,
            "coverage": {
                f"{level:.0%}": interval_coverage(prediction, data.y_test, level)
                for level in (0.5, 0.9)
            },
        }
    right = prediction.mean.argmax(-1) == data.y_test
    by_outcome = {
        "epistemic_right": parts["epistemic"][right],
        "epistemic_wrong": parts["epistemic"][~right],
    }
    return {
        key: float(value.double().mean()) if len(value) else None
        for key, value in (parts | by_outcome).items()
    }


# --- networks without a posterior -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileEvaluation:
    """How a compressed file does on test data.

    Attributes:
        path: of the file.
        bytes: its size.
        error: the fraction of test examples that its network gets wrong.
        examples: how many there are.
        data: their name.
        nonzero: weights of the decoded network that are not zero.
        weights: of the original network, biases not counted; ``None``: not known.
        original: what the original network is.
    """

    path: str
    bytes: int
    error: float
    examples: int
    data: str
    nonzero: int
    weights: int | None = None
    original: str = ""

    @property
    def rate(self) -> float | None:
        """4 bytes for each weight of the original network over the bytes of the file."""
        return None if self.weights is None else 4 * self.weights / self.bytes

    def __str__(self) -> str:
        wrong = f"{round(self.error * self.examples):,} of {self.examples:,} test examples of {self.data}"
        lines = [f"{self.path}: {self.bytes:,} bytes, {self.nonzero:,} weights that are not zero"]
        lines.append(f"test error {self.error:.2%} ({wrong})")
        if self.weights is None:
            lines.append(
                "compression rate: not known; say of which network it is, --model lenet-300-100"
            )
        else:
            original = f"4 bytes for each of the {self.weights:,} weights of {self.original}"
            lines.append(
                f"compression rate {self.rate:,.1f}: {original}, over the bytes of the file"
            )
        return "\n".join(lines)


def evaluate_file(
    path: Path, data: Dataset, network: nn.Module, weights: int | None, original: str
) -> FileEvaluation:
    """Return how the network that was decoded from a file does on test data.

    Args:
        path: of the file.
        data: of classes; its test part is used.
        network: what :func:`~pyro_bnn.compression.load` returned.
        weights: of the original network, biases not counted, if known.
        original: its name.

    Raises:
        ValueError: data of real numbers; inputs that the network does not take.
    """
    if data.classes is None:
        raise ValueError(
            f"{path}: the test error is that of classes, the targets of {data.name} are real numbers"
        )
    try:
        with contextlib.redirect_stderr(
            io.StringIO()
        ):  # torch.fx prints the traceback of what fails
            error = error_of(network, data.test)
    except (RuntimeError, IndexError) as failure:
        inputs = "x".join(map(str, data.x_test.shape[1:]))
        raise ValueError(
            f"{path}: its network does not take the inputs of {data.name}, {inputs} numbers each; take the data that "
            f"it was trained on ({failure})"
        ) from failure
    nonzero = sum(int(value.count_nonzero()) for value in network.parameters() if value.dim() > 1)
    return FileEvaluation(
        str(path),
        path.stat().st_size,
        error,
        len(data.x_test),
        data.name,
        nonzero,
        weights,
        original,
    )


def _rows(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return a row of names, and one each for the network at the means and for the draws."""
    head = f"{metrics['data']}, {metrics['test_examples']} test examples"
    named = {
        f"{metrics['network']}, no sampling": metrics["mean_network"],
        f"average of {metrics['draws']['number']} posterior draws": metrics["draws"],
    }
    if "rmse" in metrics["draws"]:
        rows = [
            (name, f"{row['rmse']:.4g}", f"{row['log_likelihood']:.3f}")
            for name, row in named.items()
        ]
        return [(head, "RMSE", "log-likelihood"), *rows]
    rows = [(name, f"{row['accuracy']:.2%}", f"{row['nll']:.4f}") for name, row in named.items()]
    return [(head, "accuracy", "NLL (nats)"), *rows]


def _sentences(u: dict[str, Any]) -> list[str]:
    """Return what there is to say of the uncertainty."""
    if "coverage" in u:
        held = ", ".join(
            f"the {level} intervals hold {held:.1%}" for level, held in u["coverage"].items()
        )
        parts = f"total {u['total']:.3g}, aleatoric {u['aleatoric']:.3g}, epistemic {u['epistemic']:.3g}"
        return [f"predictive standard deviation: {parts}", f"of the test points {held}"]
    parts = (
        f"total {u['total']:.4f} = aleatoric {u['aleatoric']:.4f} + epistemic {u['epistemic']:.4f}"
    )
    by_outcome = [(outcome, u[f"epistemic_{outcome}"]) for outcome in ("right", "wrong")]
    where = ", ".join(
        f"{mean:.4f} where the answer is {outcome}"
        for outcome, mean in by_outcome
        if mean is not None
    )
    return [f"uncertainty in nats: {parts}", f"epistemic part: {where}"]
