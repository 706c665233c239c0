"""compare: several inferences of one model, side by side, one of them the reference.

Source of the metrics: Izmailov, Vikram, Hoffman & Wilson (2021), https://arxiv.org/abs/2104.14421, section 4, for
agreement, total variation and R-hat in function space; Foong et al. (2019) for the uncertainty between data.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_bnn.metrics import expected_calibration_error, interval_coverage
from pyro_bnn.posterior import Posterior
from pyro_bnn.posterior.prediction import Prediction, summarize

from . import arviz_versions, distances, importance
from .densities import log_densities, variational_draws
from .inference_data import require_same_data
from .same_model import require_same_model

if TYPE_CHECKING:
    pass

__all__ = ["Comparison", "Curve", "compare"]

VARIATIONAL_DRAWS = 1000
MIN_CHAIN = 25  # below, R-hat of independent draws exceeds its threshold by chance
FUNCTIONS = 100  # for R-hat and effective numbers of draws that many function values are enough, and take a second

# What a row of the table is called, and how its numbers are written
LABELS = {
    "agreement": ("same class as ref", "{:.1%}"),
    "total_variation": ("total variation to ref", "{:.3f}"),
    "wasserstein": ("W1 of f(x) to ref", "{:.3g}"),
    "sd_ratio_mean": ("sd of f(x) / ref, mean", "{:.2f}"),
    "sd_ratio_min": ("sd of f(x) / ref, least", "{:.2f}"),
    "test_log_likelihood": ("test log-lik., nats/point", "{:.3f}"),
    "calibration_error": ("calibration error", "{:.3f}"),
    "coverage_90": ("90% intervals hold", "{:.1%}"),
    "elpd_loo": ("ELPD, PSIS-LOO, nats", "{:.1f}"),
    "elpd_loo_se": ("its standard error", "{:.1f}"),
    "pareto_k_max": ("its largest Pareto k", "{:.2f}"),
    "k_hat": ("k-hat of the guide", "{:.2f}"),
    "rhat_max": ("R-hat of f(x), largest", "{:.3f}"),
    "ess_min": ("bulk ESS of f(x), least", "{:.0f}"),
    "ess_max": ("bulk ESS of f(x), most", "{:.0f}"),
    "gradients": ("gradients", "{:,.0f}"),
    "seconds": ("seconds", "{:.1f}"),
}


@dataclass(frozen=True)
class Curve:
    """What a method says of the functions at the test inputs: moments of f(x), (n, ...), and its 90% intervals of y."""

    mean: Tensor
    stddev: Tensor
    interval: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Comparison:
    """A table of methods, what is to be said of it, and a figure.

    Attributes:
        rows: for each method a dictionary of numbers, ``None`` where one is not known; ``method`` is its name.
        reference: the name of the reference. Its own distances are those of one half of its draws to the other: the
            noise below which no distance means anything.
        notes: what must not be overlooked: chains that do not mix, estimates that are not to be relied on, what is
            missing and why.
        curves: for each method the moments of f(x) at the test inputs.
        x: test inputs.
        data: training data, if they were given.
    """

    rows: list[dict[str, Any]]
    reference: str
    notes: list[str]
    curves: dict[str, Curve] = field(repr=False)
    x: Tensor = field(repr=False)
    data: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        lines = [
            "  ".join(
                [
                    row[0].ljust(widths[0]),
                    *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
                ]
            )
            for row in cells
        ]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip()

    def to_markdown(self) -> str:
        """Return the table and the notes in Markdown."""
        head, *body = (f"| {' | '.join(row)} |" for row in self._cells())
        ruler = f"|{'---|' * (len(self.rows) + 1)}"
        return "\n".join([head, ruler, *body, "", *(f"- {note}" for note in self.notes)]) + "\n"

    def to_dataframe(self) -> Any:
        """Return the numbers as a ``pandas.DataFrame``, a row for each method."""
        import pandas

        return pandas.DataFrame(self.rows).set_index("method")

    def _cells(self) -> list[list[str]]:
        """Return the table as text, a column for each method."""
        there = [key for key in LABELS if any(row.get(key) is not None for row in self.rows)]
        names = [
            f"{row['method']} (ref)" if row["method"] == self.reference else row["method"]
            for row in self.rows
        ]
        body = [
            [LABELS[key][0], *(_written(key, row.get(key)) for row in self.rows)] for key in there
        ]
        return [["", *names], *body]


@torch.no_grad()
def compare(
    posteriors: Mapping[str, Posterior],
    x: Tensor,
    y: Tensor,
    reference: str,
    *,
    data: tuple[Tensor, Tensor] | None = None,
    draws: int | None = None,
    seed: int = 0,
) -> Comparison:
    r"""Compare inferences of one model with a reference, in the space of functions and predictions.

    f(x) is what the likelihood is built on: class probabilities, the probability of a one, or the mean of real data.
    For each method: the distance of its predictions to the reference's, in total variation (of class probabilities, or
    of the predictive densities of a Gaussian likelihood), and the 1-Wasserstein distance of its f(x) in the units of f,
    both averaged over the test points; the ratio of the standard deviations of f(x), its mean and its least over the
    points, for where the data are not; the test log-likelihood,
    :math:`\frac1n \sum_n \log \frac1S \sum_s p(y_n \mid x_n, w_s)`, in nats; calibration error (20 bins of equal
    counts), or how many test data the 90% intervals hold; with training data the ELPD by PSIS-LOO in nats and k-hat of
    a guide; of chains the largest R-hat and the least and largest effective number of draws over (up to a hundred)
    values f(x), rank-normalised; and what was spent.

    Args:
        posteriors: at least two, by the names that the table is to have.
        x: test inputs (n, ...).
        y: test data (n,).
        reference: one of the names.
        data: the training data (x, y), which ELPD and k-hat need.
        draws: for each chain the last so many, all by default; of a guide so many, 1000 by default.
        seed: of a guide's draws.

    Raises:
        ValueError: fewer than two posteriors; a reference that is none of them; posteriors of different models, of one
            model with different learned parameters, or of different data; x and y that do not belong together.
    """
    _require_comparable(posteriors, x, y, reference, data)
    y = y.cpu()
    notes: list[str] = []
    seen = {name: _look(posterior, x, draws, seed) for name, posterior in posteriors.items()}
    rows, curves = [], {}
    for name, posterior in posteriors.items():
        functions, prediction = seen[name]
        pair = (
            _halves(functions)
            if name == reference
            else (_pooled(functions), _pooled(seen[reference][0]))
        )
        said: list[str] = []
        row = (
            {"method": name}
            | _distances(*pair, prediction.kind, said)
            | _quality(prediction, y, said)
        )
        row |= _in_sample(posterior, data, draws, seed, said) if data is not None else {}
        row |= _chains(posterior, functions, said)
        row |= {key: posterior.facts.get(key) for key in ("gradients", "seconds")}
        notes += [f"{name}: {note}" for note in (*said, *posterior.facts.get("warnings", ()))]
        values = _values(_pooled(functions))
        interval = prediction.interval(0.9) if prediction.kind == "real" else None
        curves[name] = Curve(
            values.mean(0), values.std(0, correction=min(1, len(values) - 1)), interval
        )
        rows.append(row)
    notes.append(
        f"{reference}: its own distances are those of one half of its draws to the other, the noise in them"
    )
    if data is None:
        notes.append("ELPD and k-hat need the training data: compare(..., data=(x_train, y_train))")
    return Comparison(rows, reference, notes, curves, x, data)


# --- what is compared -------------------------------------------------------------------------------------------------


def _require_comparable(
    posteriors: Mapping[str, Posterior],
    x: Tensor,
    y: Tensor,
    reference: str,
    data: tuple[Tensor, Tensor] | None,
) -> None:
    if len(posteriors) < 2:
        raise ValueError(
            f"compare: expected at least two posteriors, got {', '.join(posteriors) or 'none'}"
        )
    if reference not in posteriors:
        near = difflib.get_close_matches(str(reference), posteriors, n=1, cutoff=0.0)
        raise ValueError(
            f"compare: there is no posterior {reference!r} to be the reference; there are {', '.join(posteriors)}; "
            f"did you mean {near[0]!r}?"
        )
    if len(x) != len(y) or len(x) < 1 or not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"compare: expected finite x and y of one length above 0, got {len(x)} and {len(y)} examples"
        )
    known = {
        name: posterior.facts["data"]
        for name, posterior in posteriors.items()
        if "data" in posterior.facts
    }
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{name} ({digest[:8]})" for name, digest in known.items())
        raise ValueError(f"compare: the posteriors were made from different data: {listed}")
    for name, posterior in posteriors.items() if data is not None else ():
        try:
            require_same_data(posterior, data)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"compare: {name}: {error}") from None
    require_same_model(posteriors, x, y)


def _look(
    posterior: Posterior, x: Tensor, draws: int | None, seed: int
) -> tuple[dict[str, Tensor], Prediction]:
    """Return the functions of the draws at x, and the prediction that they make."""
    if posterior.guide is not None and draws is None:
        draws = VARIATIONAL_DRAWS
    found = posterior.functions(x.to(posterior.source.device), draws, seed)
    functions = {key: value.cpu() for key, value in found.items()}
    return functions, summarize(lambda: iter([_pooled(functions)]))


def _pooled(functions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.flatten(0, 1) for key, value in functions.items()}


def _halves(functions: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return one half of the chains and the other; of a single chain its first draws and its last."""
    axis = 0 if next(iter(functions.values())).shape[0] > 1 else 1
    parts = [
        {key: value.tensor_split(2, axis)[half] for key, value in functions.items()}
        for half in (0, 1)
    ]
    return _pooled(parts[0]), _pooled(parts[1])


def _values(functions: Mapping[str, Tensor]) -> Tensor:
    """Return f(x) in double precision."""
    return next(functions[key] for key in ("probs", "prob", "mean") if key in functions).double()


# --- metrics ----------------------------------------------------------------------------------------------------------


def _distances(
    one: dict[str, Tensor], other: dict[str, Tensor], kind: str, notes: list[str]
) -> dict[str, Any]:
    a, b = _values(one), _values(other)
    row: dict[str, Any] = {}
    if kind in ("classes", "binary"):
        p, q = (values.mean(0) for values in (a, b))
        if kind == "binary":
            p, q = (torch.stack([1 - values, values], -1) for values in (p, q))
        row["agreement"] = distances.agreement(p, q)
        row["total_variation"] = float(distances.total_variation(p, q).mean())
    elif kind == "real":
        row["total_variation"] = float(distances.total_variation_of_mixtures(one, other).mean())
    row["wasserstein"] = float(distances.wasserstein_1(a, b).mean())
    if min(len(a), len(b)) < 2:
        notes.append(f"{min(len(a), len(b))} draw has no standard deviation; expected at least two")
        return row | {"sd_ratio_mean": None, "sd_ratio_min": None}
    there = (
        b.std(0) > 0.01 * b.std(0).max()
    )  # a class that both are sure is not there would divide rounding by rounding
    ratio = (a.std(0) / b.std(0))[there]
    if not bool(there.all()):
        notes.append(
            f"no ratio of sds at {int((~there).sum())} of {there.numel()} values: the reference has next to none there"
        )
    if not len(ratio):
        return row | {"sd_ratio_mean": None, "sd_ratio_min": None}
    return row | {"sd_ratio_mean": float(ratio.mean()), "sd_ratio_min": float(ratio.min())}


def _quality(prediction: Prediction, y: Tensor, notes: list[str]) -> dict[str, Any]:
    """Return how well the test data are predicted."""
    if prediction.kind == "other":
        notes.append(
            "the test log-likelihood is known for categorical, Bernoulli and Gaussian data only"
        )
        return {"test_log_likelihood": None}
    row = {"test_log_likelihood": float(prediction.log_prob(y).double().mean())}
    if prediction.kind == "real":
        return row | {"coverage_90": interval_coverage(prediction, y, 0.9)}
    if prediction.mean.shape == y.shape and y.dim() > 1:  # several yes-or-no labels
        return row | {
            "calibration_error": expected_calibration_error(prediction.mean.flatten(), y.flatten())
        }
    return row | {"calibration_error": expected_calibration_error(prediction.mean, y)}


def _in_sample(
    posterior: Posterior,
    data: tuple[Tensor, Tensor],
    draws: int | None,
    seed: int,
    notes: list[str],
) -> dict[str, Any]:
    """Return what needs the training data: leave-one-out densities, and how far a guide is from its posterior."""
    row: dict[str, Any] = dict.fromkeys(("elpd_loo", "elpd_loo_se", "pareto_k_max", "k_hat"))
    log_q, reason, chains = None, "", 1
    if posterior.guide is not None:
        sites, log_q, reason = variational_draws(posterior, draws or VARIATIONAL_DRAWS, seed)
    else:
        chains, there = next(iter(posterior.draws.values())).shape[:2]
        last = slice(there - (draws or there), None)
        sites = {name: value[:, last].flatten(0, 1) for name, value in posterior.draws.items()}
    num = len(next(iter(sites.values())))
    if num < importance.MIN_DRAWS:
        notes.append(
            f"{num} draws are too few for PSIS, no ELPD and no k-hat; expected {importance.MIN_DRAWS}"
        )
        return row
    found = log_densities(
        posterior, sites, tuple(part.to(posterior.source.device) for part in data)
    )
    pointwise = torch.cat(
        [
            value.flatten(2).sum(2) if value.dim() > 2 else value
            for value in found.log_likelihood.values()
        ],
        1,
    )
    loo = importance.leave_one_out(
        pointwise.unflatten(0, (chains, num // chains)), posterior.guide is not None
    )
    row |= {
        "elpd_loo": loo.elpd,
        "elpd_loo_se": loo.standard_error,
        "pareto_k_max": float(loo.k.max()),
    }
    bad = int((loo.k > loo.threshold).sum())
    if bad:
        notes.append(
            f"ELPD is not to be relied on: Pareto k above {loo.threshold:.2f} at {bad} of {len(loo.k)} examples"
        )
    if reason:
        notes.append(f"no k-hat: {reason}")
    if log_q is not None:
        row["k_hat"] = importance.pareto_k(found.log_joint, log_q)
        if row["k_hat"] > 0.7:
            notes.append(
                f"k-hat {row['k_hat']:.2f} is above 0.7: over the weights the guide is far from the posterior"
            )
    return row


def _chains(
    posterior: Posterior, functions: Mapping[str, Tensor], notes: list[str]
) -> dict[str, Any]:
    """Return how well the chains mix, judged by the functions: weights are not identifiable."""
    row: dict[str, Any] = dict.fromkeys(("rhat_max", "ess_min", "ess_max"))
    if posterior.guide is not None:
        return row
    steps = posterior.statistics.get("step_size")
    exact = (
        "acceptance_rate" in posterior.statistics
    )  # a draw that was accepted needs no weight, whatever the step
    if steps is not None and not exact and bool((steps != steps.flatten()[0]).any()):
        notes.append("its step size changes from draw to draw; its draws are taken without weights")
    diverged = (
        int(posterior.statistics["diverging"].sum()) if "diverging" in posterior.statistics else 0
    )
    if diverged:
        notes.append(f"{diverged} draws diverged: regions of high curvature may be missing")
    values = _values(functions).flatten(2)
    chains, num = values.shape[:2]
    if chains < 2 or num < MIN_CHAIN:
        notes.append(
            f"no R-hat and no ESS of {chains} chains of {num} draws: expected at least 2 of {MIN_CHAIN}"
        )
        return row
    moving = (values.flatten(0, 1).amax(0) > values.flatten(0, 1).amin(0)).nonzero().flatten()
    if not len(moving):
        notes.append("no R-hat and no ESS: f(x) is the same in every draw")
        return row
    some = moving[torch.linspace(0, len(moving) - 1, min(FUNCTIONS, len(moving))).long()]
    array = values[..., some].cpu().numpy()
    rhat, ess = arviz_versions.rank_rhat(array), arviz_versions.bulk_ess(array)
    still = np.isnan(rhat) | np.isnan(ess)
    if still.any():
        notes.append(
            f"no R-hat or no ESS at {int(still.sum())} of {len(still)} values f(x): chains that stand still"
        )
    if still.all():
        return row
    rhat, ess = rhat[~still], ess[~still]
    worst = float(rhat.max())
    if worst > 1.05:
        notes.append(
            f"the chains do not mix: R-hat of f(x) is up to {worst:.2f}, above 1.05; do not rely on this row"
        )
    return {"rhat_max": worst, "ess_min": float(ess.min()), "ess_max": float(ess.max())}


def _written(key: str, value: Any) -> str:
    return "-" if value is None else LABELS[key][1].format(value)
