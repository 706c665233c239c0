r"""Simulation-based calibration: does an inference find what the prior hid?

Draw :math:`\theta_0 \sim p(\theta)` and :math:`y \sim p(y \mid \theta_0, x)`, run the inference on (x, y). If it
returns the posterior, :math:`\theta_0` is one more draw from it, and its rank among L independent draws is uniform on
0 ... L.

An inference that answers with the prior passes this too, for all that the data do not enter. So the log-likelihood of
the data, :math:`\log p(y \mid x, \theta_0)` among :math:`\log p(y \mid x, \theta_l)`, is ranked as well: its rank
is uniform for the posterior alone.

Source: Talts et al. (2018), https://arxiv.org/abs/1804.06788, algorithm 2; Yao et al. (2018),
https://arxiv.org/abs/1802.02538, section 3.2, for the variational form; Säilynoja, Bürkner & Vehtari (2022),
https://arxiv.org/abs/2103.10522, for the band; Modrák et al. (2023), https://arxiv.org/abs/2211.02383, for the
log-likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior
from pyro_bnn.posterior.draw_source import DrawSource
from pyro_bnn.runtime.copying import deepcopy_together

from .densities import Run, log_densities

if TYPE_CHECKING:
    pass

__all__ = ["Inference", "Simulation", "simulate"]

Inference = Callable[[Any, tuple[Tensor, Tensor], int], Posterior]

LIKELIHOOD = "log p(y|x,w)"


@dataclass(frozen=True)
class Simulation:
    """The ranks of the true values, and what they say.

    Attributes:
        ranks: for each scalar quantity, ``"weight[0,3]"`` or ``"f(x)[2]"``, its rank in each simulation, from 0 to
            ``draws``, (simulations,).
        draws: L.
        correlation: the mean correlation of neighbouring draws that were ranked among, 0 for independent ones. Where it
            is large the ranks of a correct inference are not uniform either: thin more.
    """

    ranks: dict[str, Tensor]
    draws: int
    correlation: float = field(default=0.0)

    @property
    def bins(self) -> int:
        """How many bins of ranks the chi-square test counts: at least five simulations are expected in each."""
        most = min(20, len(next(iter(self.ranks.values()))) // 5)
        return max((b for b in range(2, max(most, 2) + 1) if (self.draws + 1) % b == 0), default=2)

    @property
    def p_values(self) -> dict[str, float]:
        r"""For each quantity the p-value of the chi-square test that its ranks are uniform.

        .. math:: \chi^2 = \sum_b (n_b - e_b)^2 / e_b, \qquad e_b = \text{simulations} \cdot |b| / (L + 1)

        A correct inference has a p-value below 0.01 in about one quantity of a hundred: see :meth:`failures`.
        """
        from scipy.stats import chi2

        edges = torch.linspace(0, self.draws + 1, self.bins + 1, dtype=torch.float64).round()
        found = {}
        for name, ranks in self.ranks.items():
            counts = (
                torch.bucketize(ranks.double() + 0.5, edges[1:-1])
                .bincount(minlength=self.bins)
                .double()
            )
            expected = len(ranks) * edges.diff() / (self.draws + 1)
            found[name] = float(
                chi2.sf(float(((counts - expected).square() / expected).sum()), self.bins - 1)
            )
        return found

    @property
    def asymmetry(self) -> dict[str, float]:
        r"""For each quantity but the likelihood the p-value of the test that :math:`p_i = P_q(\theta < \theta_0)` is
        symmetric around 1/2: variational simulation-based calibration.

        A variational posterior is seldom of the right width, and the chi-square test says so; asymmetry says that it is
        shifted. By Wilcoxon's signed ranks of :math:`p_i - 1/2`, whose level is exact whatever the symmetric
        distribution; the paper's Kolmogorov-Smirnov test takes the mirrored sample for an independent one.
        """
        from scipy.stats import wilcoxon

        found = {}
        for name, ranks in self.ranks.items():
            if name == LIKELIHOOD:  # its ranks are lopsided wherever the width is wrong
                continue
            centred = (ranks.double() - self.draws / 2).numpy()
            found[name] = (
                float(wilcoxon(centred, zero_method="zsplit").pvalue) if centred.any() else 1.0
            )
        return found

    def failures(self, level: float = 0.01, test: str = "uniform") -> dict[str, float]:
        """Return the quantities that fail, with their p-values.

        By Bonferroni's correction: of correct inferences at most the fraction ``level`` has any failure.

        Args:
            level: the false-alarm rate of the whole simulation.
            test: ``"uniform"`` or ``"symmetric"``.

        Raises:
            ValueError: another test.
        """
        if test not in ("uniform", "symmetric"):
            raise ValueError(f"failures: expected the test 'uniform' or 'symmetric', got {test!r}")
        p_values = self.p_values if test == "uniform" else self.asymmetry
        return {name: p for name, p in p_values.items() if p < level / len(p_values)}

    def ecdf(self, name: str) -> Tensor:
        """Return the fraction of simulations whose rank is below each of 0, 1, ..., L + 1, (L + 2,)."""
        ranks = self.ranks[name]
        counts = ranks.bincount(minlength=self.draws + 1).double()
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)]) / len(ranks)

    def band(self, level: float = 0.95, repetitions: int = 2000) -> tuple[Tensor, Tensor]:
        r"""Return the points z = r / (L + 1) and the half-width h(z) of a band around the uniform ECDF.

        :math:`h(z) = c \sqrt{z(1 - z) / n}`; c is such that the ECDF of uniform ranks stays inside at all z with
        probability ``level``, found by simulation.

        Args:
            level: of the band as a whole.
            repetitions: simulated ECDFs.
        """
        num, points = len(next(iter(self.ranks.values()))), self.draws + 1
        at = torch.arange(points + 1, dtype=torch.float64) / points
        width = (at * (1 - at) / num).sqrt()
        generator = torch.Generator().manual_seed(0)
        ranks = torch.randint(points, (repetitions, num), generator=generator)
        counts = torch.zeros(repetitions, points, dtype=torch.float64).scatter_add_(
            1, ranks, torch.ones(repetitions, num, dtype=torch.float64)
        )
        gaps = ((counts.cumsum(1) / num)[:, :-1] - at[1:-1]).abs() / width[1:-1]
        return at, float(gaps.amax(1).quantile(level)) * width

    def __str__(self) -> str:
        uniform, symmetric = self.p_values, self.asymmetry
        width = max(map(len, [*uniform, "quantity"]))
        lines = [f"{'quantity'.ljust(width)}  {'p uniform':>9}  {'p symmetric':>11}"]
        for name, p in uniform.items():
            lines.append(
                f"{name.ljust(width)}  {p:9.3g}  {format(symmetric[name], '11.3g') if name in symmetric else '-':>11}"
            )
        failed = self.failures()
        verdict = ", ".join(failed) + " fail" if failed else "nothing fails"
        num = len(next(iter(self.ranks.values())))
        lines.append(
            f"{num} simulations, {self.draws} draws each: {verdict} (false alarms: 1% over all quantities)"
        )
        if self.correlation > 0.1:
            lines.append(
                f"neighbouring draws correlate by {self.correlation:.2f}: thin more before relying on this"
            )
        return "\n".join(lines)


def simulate(
    model: Callable[..., Any],
    inference: Inference,
    x: Tensor,
    num_simulations: int = 100,
    seed: int = 0,
    *,
    sites: Iterable[str] | None = None,
    functions_at: Tensor | None = None,
    draws: int = 63,
    progress: bool = True,
) -> Simulation:
    """Run simulation-based calibration of any inference on any model with a proper prior.

    Args:
        model: a program, called as ``model(x)`` and ``model(x, y)``.
        inference: called as ``inference(model, (x, y), seed)``; returns a :class:`~pyro_bnn.Posterior`.
        x: inputs of the simulated data sets, (n, ...).
        num_simulations: how many data sets; each is an inference.
        seed: of it all; simulation i has seeds of its own.
        sites: the latent sites whose elements are ranked; all if left out, none for ``()``. The likelihood is always.
        functions_at: inputs x* whose f(x*) is ranked too, (m, ...): weights of networks are not identifiable.
        draws: L, how many draws of each posterior the true value is ranked among. Of a sampler's they are taken at even
            distances, over all chains; L + 1 should have small divisors.
        progress: whether to show a bar.

    Raises:
        ValueError: an improper prior, which cannot be simulated; parameters without a prior; an inference that returns
            fewer than L draws; sites that are not there.

    >>> from pyro_bnn.models import linear_regression
    >>> def prior(model, data, seed):  # the prior in place of the posterior
    ...     torch.manual_seed(seed)
    ...     return Posterior.from_draws(model, {"weight": torch.randn(1, 99, 1), "bias": torch.randn(1, 99)})
    >>> found = simulate(linear_regression(8), prior, torch.randn(8, 1), 20, draws=9, progress=False)
    >>> found.ranks["bias"].shape
    torch.Size([20])
    """
    sites = None if sites is None else list(sites)
    _require_proper(model, num_simulations, draws)
    program = DrawSource(deepcopy_together(model)[0])
    ranked: dict[str, list[Tensor]] = {}
    correlations = []
    for index in tqdm(range(num_simulations), desc="simulations", disable=not progress):
        truth, y = _simulated(program, x, seed * 1_000_003 + 2 * index)
        try:
            posterior = inference(model, (x, y), seed * 1_000_003 + 2 * index + 1)
        except Exception as error:
            error.add_note(f"simulate: in simulation {index} of {num_simulations}, seed {seed}")
            raise
        wanted = list(truth) if sites is None else sites
        found, true = _quantities(posterior, truth, (x, y), wanted, functions_at, draws)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        for name, value in found.items():
            ranked.setdefault(name, []).append(_rank(true[name], value, generator))
            correlations.append(_neighbours(value))
    together = {name: torch.stack(parts) for name, parts in ranked.items()}
    correlation = float(torch.cat(correlations).nanmean()) if correlations else 0.0
    return Simulation(_scalars(together), draws, correlation)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _require_proper(model: Any, num_simulations: int, draws: int) -> None:
    if num_simulations < 10 or draws < 1:
        raise ValueError(
            f"simulate: expected 10 simulations and 1 draw or more, got {num_simulations} and {draws}"
        )
    free = list(model.free_parameters()) if isinstance(model, BayesianNet) else []
    if free:
        raise ValueError(
            f"simulate: {', '.join(free)} have no prior to be drawn from; give them one, {{'*': prior}}, or hold them "
            "fixed, model.freeze()"
        )


def _simulated(program: DrawSource, x: Tensor, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return values of the latent sites drawn from the prior, and data drawn given them."""
    try:
        with program.isolated(seed), Run({}) as run:
            program.model(x)
    except (ImproperPriorError, NotImplementedError) as error:
        raise ValueError(f"simulate: the prior cannot be drawn from: {error}") from error
    drawn = {name: site["value"] for name, site in run.sites.items() if not site["is_observed"]}
    if len(drawn) < 2:
        raise ValueError(
            f"simulate: expected latent sites and data, unobserved, in model(x); got {', '.join(drawn)}"
        )
    *latent, observed = drawn
    return {name: drawn[name] for name in latent}, drawn[observed]


def _quantities(
    posterior: Posterior,
    truth: Mapping[str, Tensor],
    data: tuple[Tensor, Tensor],
    sites: list[str],
    at: Tensor | None,
    draws: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return L draws of each quantity, (L, ...), and its true value."""
    if posterior.guide is None:
        chosen = _spread_out(posterior, draws)
        drawn = {name: value.flatten(0, 1)[chosen] for name, value in posterior.draws.items()}
    else:
        chosen, sampled = torch.arange(draws), posterior.sample(draws)
        drawn = {name: sampled[name] for name in truth}
    true = {name: _required(truth, name) for name in sites}
    found = {name: drawn[name] for name in sites}
    both = {name: torch.cat([value, truth[name][None].to(value)]) for name, value in drawn.items()}
    terms = log_densities(posterior, both, data).log_likelihood.values()
    likelihood = torch.stack([value.flatten(1).sum(1) for value in terms]).sum(0)
    found[LIKELIHOOD], true[LIKELIHOOD] = likelihood[:-1], likelihood[-1]
    if at is not None:
        known = Posterior.from_draws(
            posterior.model, {name: value[None, None] for name, value in truth.items()}
        )
        there = posterior.functions(at, draws if posterior.guide is not None else None)
        key = next(key for key in ("probs", "prob", "mean") if key in there)
        found["f(x)"], true["f(x)"] = (
            there[key].flatten(0, 1)[chosen],
            known.functions(at)[key][0, 0],
        )
    return found, true


def _required(values: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in values:
        raise ValueError(f"simulate: there is no site {name!r}; there are {', '.join(values)}")
    return values[name]


def _spread_out(posterior: Posterior, draws: int) -> Tensor:
    """Return which draws of all chains, laid end to end, to take: at even distances."""
    there = next(iter(posterior.draws.values())).shape[:2].numel()
    if there < draws:
        raise ValueError(
            f"simulate: expected posteriors of at least {draws} draws, got one of {there}; see draws="
        )
    return (torch.arange(draws, dtype=torch.float64) * there / draws).long()


def _rank(true: Tensor, found: Tensor, generator: torch.Generator) -> Tensor:
    """Return the rank of each element among its draws; between equal ones chance decides, so that it is uniform."""
    below, equal = (found < true).sum(0), (found == true).sum(0)
    return (below + (torch.rand(below.shape, generator=generator) * (equal + 1)).long()).cpu()


def _neighbours(found: Tensor) -> Tensor:
    """Return the correlation of neighbouring draws of each element; unbiased for independent ones, to order 1/L."""
    values = found.double().reshape(len(found), -1)
    centred = values - values.mean(0)
    return (centred[1:] * centred[:-1]).sum(0) / centred.square().sum(0) + 1 / len(found)


def _scalars(ranks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the ranks of each scalar element, (simulations,), under names like ``weight[0,3]``."""
    found = {}
    for name, value in ranks.items():
        for index in range(math.prod(value.shape[1:])):
            place = (
                torch.unravel_index(torch.tensor(index), value.shape[1:]) if value.dim() > 1 else ()
            )
            suffix = f"[{','.join(str(int(i)) for i in place)}]" if value.dim() > 1 else ""
            found[f"{name}{suffix}"] = value.flatten(1)[:, index] if value.dim() > 1 else value
    return found
