"""The numbers of one row of a comparison, with notes on how far they can be relied on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pyro_bnn.metrics import expected_calibration_error, interval_coverage
from pyro_bnn.posterior import Posterior, Prediction
from pyro_bnn.posterior.components import Components, Kind, function_values

from . import distances, importance
from .arviz_versions import bulk_ess, rank_rhat
from .densities import log_densities
from .guide_draws import GuideDraws, draw_guide

__all__ = [
    "Findings",
    "chain_findings",
    "distance_findings",
    "in_sample_findings",
    "prediction_findings",
]

MIN_CHAIN = 25  # with fewer draws, R-hat of independent draws exceeds its threshold by chance
MAX_FUNCTIONS = 100  # enough function values for R-hat and ESS, which then take about a second
NEGLIGIBLE_STDDEV = 0.01  # as a fraction of the largest standard deviation
R_HAT_THRESHOLD = 1.05
K_HAT_THRESHOLD = 0.7


@dataclass(frozen=True)
class Findings:
    """Numbers by name, ``None`` where one is unknown, and notes for the reader."""

    numbers: dict[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __or__(self, other: Findings) -> Findings:
        return Findings(self.numbers | other.numbers, [*self.notes, *other.notes])


def distance_findings(draws: Components, reference: Components, kind: Kind) -> Findings:
    """Return the distances between the functions and predictions of two sets of draws.

    Args:
        draws: predictions of each draw, (S, n, ...).
        reference: likewise, (T, n, ...).
        kind: the kind of data.
    """
    values, reference_values = _doubles(draws), _doubles(reference)
    numbers: dict[str, float | None] = {}
    if kind in ("classes", "binary"):
        p, q = _class_probabilities(values, kind), _class_probabilities(reference_values, kind)
        numbers["agreement"] = distances.agreement(p, q)
        numbers["total_variation"] = float(distances.total_variation(p, q).mean())
    elif kind == "real":
        total_variation = distances.total_variation_of_mixtures(draws, reference)
        numbers["total_variation"] = float(total_variation.mean())
    numbers["wasserstein"] = float(distances.wasserstein_1(values, reference_values).mean())
    return Findings(numbers) | _stddev_ratios(values, reference_values)


def prediction_findings(prediction: Prediction, y: Tensor) -> Findings:
    """Return how well test data are predicted."""
    if prediction.kind == "other":
        note = "the test log-likelihood is known for categorical, Bernoulli and Gaussian data only"
        return Findings({"test_log_likelihood": None}, [note])
    numbers: dict[str, float | None] = {
        "test_log_likelihood": float(prediction.log_prob(y).double().mean())
    }
    if prediction.kind == "real":
        numbers["coverage_90"] = interval_coverage(prediction, y, 0.9)
    elif prediction.kind == "binary":
        probabilities, labels = prediction.mean.flatten(), y.flatten()
        numbers["calibration_error"] = expected_calibration_error(probabilities, labels)
    else:
        numbers["calibration_error"] = expected_calibration_error(prediction.mean, y)
    return Findings(numbers)


def in_sample_findings(
    posterior: Posterior, data: tuple[Tensor, Tensor], num: int, seed: int
) -> Findings:
    """Return leave-one-out densities of the training data, and k-hat of a guide.

    Args:
        posterior: the posterior.
        data: the training data.
        num: the last n draws of each chain, or the number of draws of a guide.
        seed: the seed of a guide's draws.
    """
    stored = posterior.source.stored
    if stored is None:
        drawn = draw_guide(posterior, num, seed)
        chains, sites = 1, drawn.sites
    else:
        drawn = None
        chains, sites = stored.chains, stored.take(stored.last(num))
    if chains * num < importance.MIN_DRAWS:
        numbers = dict.fromkeys(("elpd_loo", "elpd_loo_se", "pareto_k_max", "k_hat"))
        note = (
            f"{chains * num} draws are too few for PSIS, no ELPD and no k-hat; "
            f"expected {importance.MIN_DRAWS}"
        )
        return Findings(numbers, [note])
    device = posterior.source.device
    densities = log_densities(posterior, sites, (data[0].to(device), data[1].to(device)))
    by_chain = torch.unflatten(densities.pointwise(), 0, (chains, num))
    findings = _leave_one_out_findings(by_chain, independent=stored is None)
    return findings | _guide_findings(densities.log_joint, drawn)


def chain_findings(posterior: Posterior, functions: Tensor) -> Findings:
    """Return how well chains mix, judged by functions, because weights are not identifiable.

    Args:
        posterior: the posterior. A guide has no chains, so all its numbers are ``None``.
        functions: f(x) of each draw, (chain, draw, n, ...), in double precision.
    """
    numbers: dict[str, float | None] = dict.fromkeys(("rhat_max", "ess_min", "ess_max"))
    if posterior.guide is not None:
        return Findings(numbers)
    notes = _sampler_notes(posterior)
    values = functions.flatten(2)
    chains, num = values.shape[:2]
    if chains < 2 or num < MIN_CHAIN:
        notes.append(
            f"no R-hat and no ESS of {chains} chains of {num} draws: "
            f"expected at least 2 of {MIN_CHAIN}"
        )
        return Findings(numbers, notes)
    pooled = values.flatten(0, 1)
    moving = (pooled.amax(0) > pooled.amin(0)).nonzero().flatten()
    if not len(moving):
        notes.append("no R-hat and no ESS: f(x) is the same in every draw")
        return Findings(numbers, notes)
    selection = torch.linspace(0, len(moving) - 1, min(MAX_FUNCTIONS, len(moving))).long()
    array = values[..., moving[selection]].cpu().numpy()
    rhat, ess = rank_rhat(array), bulk_ess(array)
    defined = ~(np.isnan(rhat) | np.isnan(ess))
    if not defined.all():
        notes.append(
            f"no R-hat or no ESS at {int((~defined).sum())} of {len(defined)} values f(x): "
            "some chains do not move there"
        )
    if defined.any():
        numbers["rhat_max"] = float(rhat[defined].max())
        numbers["ess_min"] = float(ess[defined].min())
        numbers["ess_max"] = float(ess[defined].max())
        if rhat[defined].max() > R_HAT_THRESHOLD:
            notes.append(
                f"the chains do not mix: R-hat of f(x) is up to {rhat[defined].max():.2f}, above "
                f"{R_HAT_THRESHOLD}; do not rely on this row"
            )
    return Findings(numbers, notes)


# --- pieces ---------------------------------------------------------------------------------------


def _leave_one_out_findings(log_likelihood: Tensor, independent: bool) -> Findings:
    """Return the expected log predictive density, from (chain, draw, N) in nats."""
    loo = importance.leave_one_out(log_likelihood, independent)
    numbers: dict[str, float | None] = {
        "elpd_loo": loo.elpd,
        "elpd_loo_se": loo.standard_error,
        "pareto_k_max": float(loo.k.max()),
    }
    unreliable = int((loo.k > loo.threshold).sum())
    if not unreliable:
        return Findings(numbers)
    note = (
        f"ELPD is unreliable: Pareto k above {loo.threshold:.2f} at {unreliable} of "
        f"{len(loo.k)} examples"
    )
    return Findings(numbers, [note])


def _guide_findings(log_joint: Tensor, drawn: GuideDraws | None) -> Findings:
    """Return k-hat of the draws of a guide; it is ``None`` for a sampler."""
    if drawn is None:
        return Findings({"k_hat": None})
    if drawn.log_q is None:
        return Findings({"k_hat": None}, [f"no k-hat: {drawn.reason}"])
    k_hat = importance.pareto_k(log_joint, drawn.log_q)
    notes = []
    if k_hat > K_HAT_THRESHOLD:
        notes.append(
            f"k-hat {k_hat:.2f} is above {K_HAT_THRESHOLD}: in the space of the weights the "
            "guide is far from the posterior"
        )
    return Findings({"k_hat": k_hat}, notes)


def _doubles(draws: Components) -> Tensor:
    return function_values(draws).double()


def _class_probabilities(values: Tensor, kind: Kind) -> Tensor:
    """Return the predictive probabilities of the classes, (n, ..., classes)."""
    probabilities = values.mean(0)
    if kind == "binary":
        return torch.stack([1 - probabilities, probabilities], -1)
    return probabilities


def _stddev_ratios(values: Tensor, reference: Tensor) -> Findings:
    """Return the ratios of the standard deviations of f(x), their mean and their least."""
    numbers: dict[str, float | None] = dict.fromkeys(("sd_ratio_mean", "sd_ratio_min"))
    fewest = min(len(values), len(reference))
    if fewest < 2:
        note = f"{fewest} draw has no standard deviation; expected at least two"
        return Findings(numbers, [note])
    stddev = reference.std(0)
    # where both are certain, as of an impossible class, rounding would be divided by rounding
    notable = stddev > NEGLIGIBLE_STDDEV * stddev.max()
    notes = []
    if not bool(notable.all()):
        notes.append(
            f"no ratio of sds at {int((~notable).sum())} of {notable.numel()} values: "
            "that of the reference is negligible there"
        )
    if bool(notable.any()):
        ratios = (values.std(0) / stddev)[notable]
        numbers["sd_ratio_mean"] = float(ratios.mean())
        numbers["sd_ratio_min"] = float(ratios.min())
    return Findings(numbers, notes)


def _varies(values: Tensor) -> bool:
    return bool((values != values.flatten()[0]).any())


def _sampler_notes(posterior: Posterior) -> list[str]:
    notes = []
    statistics = posterior.statistics
    step_sizes = statistics.get("step_size")
    # draws of a sampler that accepts or rejects need no weights, whatever the step size
    has_rejection = "acceptance_rate" in statistics
    if step_sizes is not None and not has_rejection and _varies(step_sizes):
        notes.append("its step size changes from draw to draw; its draws are used without weights")
    if "diverging" in statistics and bool(statistics["diverging"].any()):
        diverging = int(statistics["diverging"].sum())
        notes.append(f"{diverging} draws diverged: regions of high curvature may be missing")
    return notes
