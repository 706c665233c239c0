"""Exact k-means: against all clusterings, and against all intervals."""

import pytest
import torch

from pyro_bnn.compression.quantization.exact_k_means import k_means
from tests.compression.quantization.pruned_networks import clusterings


def spread(values, weights, centroids):
    return float((weights * (values[:, None] - centroids).square().amin(1)).sum())


def least_spread(values, weights, levels):
    """Return the least weighted spread over all clusterings."""
    member = clusterings(len(values), levels)
    mass, first, second = ((weights * values**power) @ member for power in range(3))
    return float((second - first.square() / mass.clamp_min(1e-300)).sum(1).min())


@pytest.mark.parametrize(("n", "levels"), [(5, 1), (7, 2), (8, 3), (6, 4), (5, 5), (3, 4)])
@pytest.mark.parametrize("weighted", [False, True])
def test_no_clustering_has_less_spread(n, levels, weighted):
    values = torch.randn(n, dtype=torch.double)
    weights = (
        torch.rand(n, dtype=torch.double) ** 4 + 1e-3
        if weighted
        else torch.ones(n, dtype=torch.double)
    )
    centroids = k_means(values, levels, weights if weighted else None)
    assert len(centroids) == min(n, levels)
    assert torch.equal(centroids, centroids.sort().values)
    assert spread(values, weights, centroids) == pytest.approx(
        least_spread(values, weights, levels), abs=1e-12
    )


def interval_optimum(values, weights, levels):
    """Return the least spread of intervals, by the plain recursion over all starts."""
    x, w = values.sort().values, weights[values.argsort()]
    n = len(x)

    def cost(i, j):
        mean = (w[i:j] * x[i:j]).sum() / w[i:j].sum()
        return float((w[i:j] * (x[i:j] - mean).square()).sum())

    table = [[cost(i, j) if i < j else 0.0 for j in range(n + 1)] for i in range(n + 1)]
    best = table[0]
    for _ in range(levels - 1):
        best = [min((best[i] + table[i][j] for i in range(j)), default=0.0) for j in range(n + 1)]
    return best[n]


def test_no_intervals_have_less_spread():
    values = torch.cat([torch.randn(30), 5 + torch.randn(20), torch.full((10,), 0.25)]).double()
    weights = torch.rand(60, dtype=torch.double).pow(6) + 1e-4
    for levels in (2, 5, 13):
        centroids = k_means(values, levels, weights)
        assert spread(values, weights, centroids) == pytest.approx(
            interval_optimum(values, weights, levels), rel=1e-9
        )


def test_too_many_values_are_merged_first(monkeypatch):
    monkeypatch.setattr("pyro_bnn.compression.quantization.exact_k_means._MAX_POINTS", 500)
    values = torch.randn(20_000)
    monkeypatch.undo()
    exact, ones = k_means(values, 8), torch.ones(20_000)
    monkeypatch.setattr("pyro_bnn.compression.quantization.exact_k_means._MAX_POINTS", 500)
    merged = k_means(values, 8)
    assert not torch.equal(exact, merged)
    assert spread(values, ones, merged) == pytest.approx(spread(values, ones, exact), rel=1e-3)


def test_k_means_needs_values_and_levels():
    with pytest.raises(ValueError, match="values and levels of at least one, got 0 and 3"):
        k_means(torch.tensor([]), 3)
    with pytest.raises(ValueError, match="got 2 and 0"):
        k_means(torch.ones(2), 0)
    assert k_means(torch.ones(5), 3).tolist() == [1.0]
