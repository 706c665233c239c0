"""The ranks of a simulation-based calibration, and tests of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyro_bnn.runtime.text_table import Cell, format_table

__all__ = ["LIKELIHOOD", "Simulation"]

LIKELIHOOD = "log p(y|x,w)"


@dataclass(frozen=True)
class Simulation:
    """The ranks of true values among posterior draws, and tests of them.

    Attributes:
        ranks: for each scalar quantity, such as ``"weight[0,3]"`` or ``"f(x)[2]"``, its rank in
            each simulation, from 0 to ``draws``, (simulations,).
        draws: the number L of draws among which a true value is ranked.
        correlation: the mean correlation of neighboring draws, 0 for independent ones. Where it
            is large, the ranks of a correct inference are not uniform either: thin more.
    """

    ranks: dict[str, Tensor]
    draws: int
    correlation: float = 0.0

    @property
    def num_simulations(self) -> int:
        """The number of simulated data sets."""
        return len(next(iter(self.ranks.values())))

    @property
    def bins(self) -> int:
        """The number of bins of the chi-square test, at least five simulations per bin."""
        most = min(20, self.num_simulations // 5)
        divisors = [bins for bins in range(2, most + 1) if (self.draws + 1) % bins == 0]
        return max(divisors, default=2)

    @property
    def p_values(self) -> dict[str, float]:
        r"""For each quantity, the p-value of the chi-square test that its ranks are uniform.

        .. math::

            \chi^2 = \sum_b (n_b - e_b)^2 / e_b,
            \qquad e_b = \text{simulations} \cdot |b| / (L + 1)

        A correct inference has a p-value below 0.01 in about one quantity of a hundred: see
        :meth:`failures`.
        """
        edges = torch.linspace(0, self.draws + 1, self.bins + 1, dtype=torch.float64).round()
        return {name: _p_value_of_uniformity(ranks, edges) for name, ranks in self.ranks.items()}

    @property
    def asymmetry(self) -> dict[str, float]:
        r"""For each quantity, the p-value of the test that its ranks are symmetric.

        A variational posterior seldom has the right width, which the chi-square test detects;
        asymmetry of :math:`p_i = P_q(\theta < \theta_0)` around 1/2 shows that it is shifted. The
        test uses Wilcoxon's signed ranks of :math:`p_i - 1/2`, whose level is exact for every
        symmetric distribution; the Kolmogorov-Smirnov test of the paper treats the mirrored sample
        as an independent one. The likelihood is left out: its ranks are asymmetric wherever the
        width is wrong.
        """
        p_values = {}
        for name, ranks in self.ranks.items():
            if name != LIKELIHOOD:
                p_values[name] = _p_value_of_symmetry(ranks, self.draws)
        return p_values

    def failures(
        self, level: float = 0.01, test: Literal["uniform", "symmetric"] = "uniform"
    ) -> dict[str, float]:
        """Return the quantities that fail a test, with their p-values.

        With Bonferroni's correction, at most the fraction ``level`` of correct inferences has any
        failure.

        Args:
            level: the false-alarm rate of the whole simulation.
            test: ``"uniform"`` or ``"symmetric"``.

        Raises:
            ValueError: if ``test`` is neither.
        """
        if test not in ("uniform", "symmetric"):
            raise ValueError(f"failures: expected the test 'uniform' or 'symmetric', got {test!r}")
        p_values = self.p_values if test == "uniform" else self.asymmetry
        return {name: p for name, p in p_values.items() if p < level / len(p_values)}

    def ecdf(self, name: str) -> Tensor:
        """Return the fraction of simulations of rank below each of 0, 1, ..., L + 1, (L + 2,)."""
        ranks = self.ranks[name]
        counts = ranks.bincount(minlength=self.draws + 1).double()
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)]) / len(ranks)

    def band(self, level: float = 0.95, repetitions: int = 2000) -> tuple[Tensor, Tensor]:
        r"""Return a simultaneous band around the ECDF of uniform ranks.

        Its half-width is :math:`h(z) = c \sqrt{z(1 - z) / n}` with n the number of simulations.
        The factor c, computed by simulation, is such that the ECDF of uniform ranks is inside the
        band at all z with probability ``level``.

        Args:
            level: the level of the band as a whole.
            repetitions: the number of simulated ECDFs.

        Returns:
            The points z = r / (L + 1) and the half-widths h(z), both (L + 2,).
        """
        num, points = self.num_simulations, self.draws + 1
        position = torch.arange(points + 1, dtype=torch.float64) / points
        width = (position * (1 - position) / num).sqrt()
        generator = torch.Generator().manual_seed(0)
        ranks = torch.randint(points, (repetitions, num), generator=generator)
        counts = torch.zeros(repetitions, points, dtype=torch.float64)
        counts.scatter_add_(1, ranks, torch.ones(repetitions, num, dtype=torch.float64))
        ecdfs = counts.cumsum(1)[:, :-1] / num
        gaps = (ecdfs - position[1:-1]).abs() / width[1:-1]
        factor = float(gaps.amax(1).quantile(level))
        return position, factor * width

    def __str__(self) -> str:
        symmetric = self.asymmetry
        rows: list[list[Cell]] = []
        for name, p in self.p_values.items():
            rows.append([name, p, symmetric.get(name)])
        table = format_table(["quantity", "p uniform", "p symmetric"], rows)
        failures = ", ".join(self.failures())
        verdict = f"{failures} fail" if failures else "nothing fails"
        lines = [
            table,
            f"{self.num_simulations} simulations, {self.draws} draws each: {verdict} "
            "(false alarms: 1% over all quantities)",
        ]
        if self.correlation > 0.1:
            lines.append(
                f"neighboring draws correlate by {self.correlation:.2f}: "
                "thin more before relying on this"
            )
        return "\n".join(lines)


def _p_value_of_uniformity(ranks: Tensor, edges: Tensor) -> float:
    """Return the p-value of the chi-square test in the bins between these edges."""
    from scipy.stats import chi2

    bins = len(edges) - 1
    counts = torch.bucketize(ranks.double() + 0.5, edges[1:-1]).bincount(minlength=bins).double()
    expected = len(ranks) * edges.diff() / edges[-1]
    statistic = float(((counts - expected).square() / expected).sum())
    return float(chi2.sf(statistic, bins - 1))


def _p_value_of_symmetry(ranks: Tensor, draws: int) -> float:
    """Return the p-value of Wilcoxon's test that ranks are symmetric around half the draws."""
    from scipy.stats import wilcoxon

    centered = (ranks.double() - draws / 2).numpy()
    if not centered.any():
        return 1.0
    return float(wilcoxon(centered, zero_method="zsplit").pvalue)
