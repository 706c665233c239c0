"""Quantiles found on grids are the roots of the distribution function."""

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from pyro_bnn.posterior.prediction import summarize
from pyro_bnn.posterior.quantile_search import quantiles


def mixture(means, stddevs):
    means, stddevs = torch.as_tensor(means), torch.as_tensor(stddevs)
    return summarize(
        lambda: iter(
            [{"mean": m[None], "stddev": s[None]} for m, s in zip(means, stddevs, strict=True)]
        )
    )


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9, 0.99, 0.9999])
def test_intervals_of_known_mixtures_are_their_quantiles(level):
    """Means and deviations of several scales; against root finding, to 2e-3 of the deviation."""
    generator = torch.Generator().manual_seed(0)
    means = 3 * torch.randn(7, 5, generator=generator, dtype=torch.float64)
    means[:, 0], means[:, 1] = 0.0, 1e4 + means[:, 1]
    stddevs = (2 * torch.randn(7, 5, generator=generator, dtype=torch.float64)).exp()
    stddevs[:, 2] = 1e-3
    prediction = mixture(means, stddevs)
    for got, probability in zip(
        prediction.interval(level), ((1 - level) / 2, (1 + level) / 2), strict=True
    ):
        for j in range(5):
            m, s = means[:, j].numpy(), stddevs[:, j].numpy()
            root = brentq(
                lambda v, m=m, s=s, p=probability: norm.cdf(v, m, s).mean() - p,
                (m - 9 * s).min(),
                (m + 9 * s).max(),
            )
            found = norm.cdf(float(got[j]), m, s).mean()
            near = abs(float(got[j]) - root) < 2e-3 * float(prediction.total[j].sqrt())
            assert near or abs(found - probability) < 1e-4 * (1 - level), (j, float(got[j]), root)


def test_quantiles_of_a_skewed_distribution_lie_in_their_brackets():
    """An exponential distribution has its p-quantile at -log(1 - p)."""

    def cdf(values):
        return 1 - (-values.clamp_min(0)).exp()

    one = torch.ones(3, dtype=torch.float64)
    levels = [0.001, 0.3, 0.5, 0.99]
    exact = -torch.log1p(-torch.tensor(levels, dtype=torch.float64))
    found = quantiles(cdf, one, one, levels)
    assert found.shape == (4, 3)
    assert torch.allclose(found, exact[:, None].expand(4, 3), atol=1e-4)


def test_a_distribution_of_two_points_has_its_quantiles_at_them():
    """Cantelli's inequality is an equality here, so the quantiles are at the ends of brackets."""

    def cdf(values):
        return 0.5 * (values >= -1).double() + 0.5 * (values >= 1).double()

    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    low, high = quantiles(cdf, zero, one, [0.25, 0.75])
    assert float(low) == pytest.approx(-1, abs=1e-3)
    assert float(high) == pytest.approx(1, abs=1e-3)
