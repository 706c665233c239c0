"""compare: several inferences of one model side by side, one of them the reference.

Source of the metrics: Izmailov, Vikram, Hoffman & Wilson (2021), https://arxiv.org/abs/2104.14421,
section 4, for agreement, total variation and R-hat in function space; Foong et al. (2019) for the
uncertainty between data.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pyro_bnn.posterior import Posterior, Prediction
from pyro_bnn.posterior.components import Components, function_values
from pyro_bnn.posterior.prediction import summarize
from pyro_bnn.runtime.tensor_dicts import map_tensors
from pyro_bnn.runtime.text_table import Cell, format_markdown_table, format_table

from .findings import (
    Findings,
    chain_findings,
    distance_findings,
    in_sample_findings,
    prediction_findings,
)
from .inference_data import require_same_data
from .model_match import require_same_model

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Comparison", "Curve", "compare"]

VARIATIONAL_DRAWS = 1000


class _Line(NamedTuple):
    """The title of a line of the table, and the format of its numbers."""

    title: str
    number_format: str


LINES = {
    "agreement": _Line("same class as ref", "{:.1%}"),
    "total_variation": _Line("total variation to ref", "{:.3f}"),
    "wasserstein": _Line("W1 of f(x) to ref", "{:.3g}"),
    "sd_ratio_mean": _Line("sd of f(x) / ref, mean", "{:.2f}"),
    "sd_ratio_min": _Line("sd of f(x) / ref, least", "{:.2f}"),
    "test_log_likelihood": _Line("test log-lik., nats/point", "{:.3f}"),
    "calibration_error": _Line("calibration error", "{:.3f}"),
    "coverage_90": _Line("90% interval coverage", "{:.1%}"),
    "elpd_loo": _Line("ELPD, PSIS-LOO, nats", "{:.1f}"),
    "elpd_loo_se": _Line("its standard error", "{:.1f}"),
    "pareto_k_max": _Line("its largest Pareto k", "{:.2f}"),
    "k_hat": _Line("k-hat of the guide", "{:.2f}"),
    "rhat_max": _Line("R-hat of f(x), largest", "{:.3f}"),
    "ess_min": _Line("bulk ESS of f(x), least", "{:.0f}"),
    "ess_max": _Line("bulk ESS of f(x), most", "{:.0f}"),
    "gradients": _Line("gradients", "{:,.0f}"),
    "seconds": _Line("seconds", "{:.1f}"),
}


@dataclass(frozen=True)
class Curve:
    """The functions of one method at the test inputs.

    Attributes:
        mean: the mean of f(x), (n, ...).
        stddev: the standard deviation of f(x), (n, ...).
        interval: lower and upper ends of the 90% intervals of y; ``None`` for classes.
    """

    mean: Tensor
    stddev: Tensor
    interval: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Comparison:
    """A table of methods with notes, and the functions behind it.

    Attributes:
        rows: for each method a dictionary of numbers, ``None`` where one is unknown; ``method`` is
            its name.
        reference: the name of the reference. Its own distances are those between the two halves
            of its draws: the noise below which no distance means anything.
        notes: warnings: chains that do not mix, estimates that are unreliable, numbers that are
            missing and why.
        curves: for each method the moments of f(x) at the test inputs.
        x: test inputs.
        data: training data, if they were passed.
    """

    rows: list[dict[str, str | float | None]]
    reference: str
    notes: list[str]
    curves: dict[str, Curve] = field(repr=False)
    x: Tensor = field(repr=False)
    data: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        table = format_table(self._header(), self._lines())
        return "\n".join([table, "", *self._bullets()]).rstrip()

    def to_markdown(self) -> str:
        """Return the table and the notes in Markdown."""
        table = format_markdown_table(self._header(), self._lines())
        return "\n".join([table, "", *self._bullets()]) + "\n"

    def to_dataframe(self) -> DataFrame:
        """Return the numbers as a ``pandas.DataFrame`` with a row for each method."""
        import pandas

        return pandas.DataFrame(self.rows).set_index("method")

    def _header(self) -> list[str]:
        """Return the titles of the columns, one column for each method."""
        titles = [""]
        for row in self.rows:
            mark = " (ref)" if row["method"] == self.reference else ""
            titles.append(f"{row['method']}{mark}")
        return titles

    def _lines(self) -> list[list[Cell]]:
        """Return the table as text, without the numbers that no method has."""
        lines: list[list[Cell]] = []
        for key, line in LINES.items():
            numbers = [row.get(key) for row in self.rows]
            if set(numbers) != {None}:
                lines.append([line.title, *_format_numbers(numbers, line.number_format)])
        return lines

    def _bullets(self) -> list[str]:
        return [f"- {note}" for note in self.notes]


def _format_numbers(numbers: list[str | float | None], number_format: str) -> list[Cell]:
    cells: list[Cell] = []
    for number in numbers:
        cells.append(None if number is None else number_format.format(number))
    return cells


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
    r"""Compare inferences of one model with a reference, by their functions and predictions.

    f(x) is the quantity that the likelihood is built on: class probabilities, the probability of a
    one, or the mean of real data. For each method the table has:

    - the distance of its predictions to those of the reference, averaged over the test points:
      total variation of class probabilities or of the predictive densities of a Gaussian
      likelihood, and the 1-Wasserstein distance of f(x) in the units of f;
    - the ratio of its standard deviation of f(x) to that of the reference, its mean and its least
      over the points; the least shows the uncertainty between the data;
    - the test log-likelihood, :math:`\frac1n \sum_n \log \frac1S \sum_s p(y_n \mid x_n, w_s)`, in
      nats;
    - the calibration error (20 bins of equal counts) or the coverage of the 90% intervals;
    - with training data, the ELPD by PSIS-LOO in nats, and k-hat of a guide;
    - of chains, the largest R-hat and the least and largest effective sample size over up to a
      hundred values f(x), rank-normalized;
    - the cost: gradients and seconds.

    Args:
        posteriors: at least two, by the names that appear in the table.
        x: test inputs (n, ...).
        y: test data (n,).
        reference: one of the names.
        data: the training data (x, y), for ELPD and k-hat.
        draws: the last n draws of each chain, all by default; of a guide n draws, 1000 by default.
        seed: the seed of a guide's draws.

    Raises:
        ValueError: if there are fewer than two posteriors or none has the name of the reference,
            if the posteriors are of different models, of one model with different learned
            parameters, or of different data, or if x and y do not match.
    """
    _require_comparable(posteriors, x, y, reference, data)
    y = y.cpu()
    notes: list[str] = []
    rows: list[dict[str, str | float | None]] = []
    curves: dict[str, Curve] = {}
    functions = {}
    for name, posterior in posteriors.items():
        functions[name] = _functions(posterior, x, _num_draws(posterior, draws), seed)
    reference_draws = _pool(functions[reference])
    for name, posterior in posteriors.items():
        pooled = _pool(functions[name])
        prediction = _predict(pooled)
        pair = (pooled, reference_draws)
        if name == reference:
            pair = _halves(functions[name])
        findings = distance_findings(*pair, prediction.kind)
        findings |= prediction_findings(prediction, y)
        if data is not None:
            num = _num_draws(posterior, draws)
            findings |= in_sample_findings(posterior, data, num, seed)
        findings |= chain_findings(posterior, function_values(functions[name]).double())
        rows.append(_row(name, findings, posterior))
        curves[name] = _curve(pooled, prediction)
        for note in (*findings.notes, *posterior.facts.get("warnings", ())):
            notes.append(f"{name}: {note}")
    notes.append(
        f"{reference}: its own distances are those between the two halves of its draws, the noise "
        "of the distances"
    )
    if data is None:
        notes.append("ELPD and k-hat need the training data: compare(..., data=(x_train, y_train))")
    return Comparison(rows, reference, notes, curves, x, data)


# --- pieces ---------------------------------------------------------------------------------------


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
            f"compare: expected the name of a posterior as reference, one of "
            f"{', '.join(posteriors)}; got {reference!r}; did you mean {near[0]!r}?"
        )
    if len(x) != len(y) or len(x) < 1 or not bool(torch.isfinite(x).all()):
        raise ValueError(
            "compare: expected finite x and y of the same length, at least one example, "
            f"got {len(x)} and {len(y)} examples"
        )
    digests = {}
    for name, posterior in posteriors.items():
        if "data" in posterior.facts:
            digests[name] = posterior.facts["data"]
        if data is not None:
            require_same_data(f"compare: {name}", posterior, data)
    if len(set(digests.values())) > 1:
        listed = ", ".join(f"{name} ({digest[:8]})" for name, digest in digests.items())
        raise ValueError(f"compare: the posteriors were made from different data: {listed}")
    require_same_model(posteriors, x, y)


def _num_draws(posterior: Posterior, draws: int | None) -> int:
    """Return the number of draws of each chain that are compared."""
    if draws is not None:
        return draws
    stored = posterior.source.stored
    return VARIATIONAL_DRAWS if stored is None else stored.per_chain


def _functions(posterior: Posterior, x: Tensor, num: int, seed: int) -> Components:
    """Return the predictions of every draw at x, (chain, draw, n, ...), on the CPU."""
    functions = posterior.functions(x.to(posterior.source.device), num, seed)
    return map_tensors(Tensor.cpu, functions)


def _pool(functions: Components) -> Components:
    """Return the draws of all chains along one axis."""
    return map_tensors(lambda value: value.flatten(0, 1), functions)


def _halves(functions: Components) -> tuple[Components, Components]:
    """Return the two halves of the chains, or of a single chain its first and its last draws."""
    chains = len(function_values(functions))
    axis = 0 if chains > 1 else 1
    first, second = {}, {}
    for name, value in functions.items():
        first[name], second[name] = value.tensor_split(2, axis)
    return _pool(first), _pool(second)


def _predict(pooled: Components) -> Prediction:
    return summarize(lambda: iter([pooled]))


def _curve(pooled: Components, prediction: Prediction) -> Curve:
    values = function_values(pooled).double()
    stddev = values.std(0, correction=min(1, len(values) - 1))
    interval = prediction.interval(0.9) if prediction.kind == "real" else None
    return Curve(values.mean(0), stddev, interval)


def _row(name: str, findings: Findings, posterior: Posterior) -> dict[str, str | float | None]:
    row: dict[str, str | float | None] = {"method": name}
    row.update(findings.numbers)
    for cost in ("gradients", "seconds"):
        row[cost] = posterior.facts.get(cost)
    return row
