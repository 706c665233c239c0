"""Distances against integrals and closed forms."""

import math

import pytest
import torch
from torch.distributions import Normal

from pyro_bnn.diagnostics.distances import (
    agreement,
    total_variation,
    total_variation_of_mixtures,
    wasserstein_1,
)


@pytest.mark.parametrize("sizes", [(300, 300), (500, 300), (7, 11), (1, 4)])
def test_wasserstein_is_the_area_between_distribution_functions(sizes):
    a, b = (
        torch.randn(size, 3, dtype=torch.float64) * (1 + k) + 2 * k for k, size in enumerate(sizes)
    )
    # W1 is also the integral of |F - G| over the values
    values = torch.cat([a, b]).sort(0).values
    gaps = [
        ((part.T[:, None, :] <= values.T[:, :-1, None]).double().mean(-1)).T for part in (a, b)
    ]  # distribution functions between neighbors
    expected = ((gaps[0] - gaps[1]).abs() * values.diff(dim=0)).sum(0)
    assert torch.allclose(wasserstein_1(a, b), expected, rtol=1e-9)


def test_wasserstein_of_shifted_and_of_scaled_samples():
    a = torch.randn(4000, 2, dtype=torch.float64)
    assert torch.allclose(wasserstein_1(a, a - 1.7), torch.tensor([1.7, 1.7]).double())
    assert torch.allclose(wasserstein_1(a, 2 * a), a.abs().mean(0))
    # of two normals of equal variance the difference of the means; 4000 draws, 5 standard errors
    b = 3 + torch.randn(4000, 2, dtype=torch.float64)
    assert (wasserstein_1(a, b) - 3).abs().max() < 5 * math.sqrt(2 / 4000)


def test_total_variation_and_agreement_of_classes_by_hand():
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    q = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    assert total_variation(p, q).tolist() == pytest.approx([0.3, 1.0])
    p = torch.tensor([[0.6, 0.4], [0.6, 0.4]])
    q = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    assert agreement(p, q) == 0.5


@pytest.mark.parametrize(("shift", "scale"), [(0.5, 1.0), (2.0, 0.3), (0.0, 0.01)])
def test_total_variation_of_shifted_gaussians_is_known(shift, scale):
    """Of N(0, s) and N(d, s) it is 2 Phi(d / 2s) - 1."""
    one = {"mean": torch.zeros(3, 1), "stddev": torch.full((3, 1), scale)}
    other = {"mean": torch.full((2, 1), shift), "stddev": torch.full((2, 1), scale)}
    expected = 2 * Normal(0.0, 1.0).cdf(torch.tensor(shift / scale / 2)) - 1
    distance = total_variation_of_mixtures(one, other)
    assert distance.item() == pytest.approx(float(expected), abs=1e-3)


def test_total_variation_of_scaled_gaussians_is_known():
    """The densities of N(0, 1) and N(0, 2) cross at x^2 = (8 / 3) ln 2."""
    cross = torch.tensor(math.sqrt(8 / 3 * math.log(2)))
    expected = 2 * (Normal(0.0, 1.0).cdf(cross) - Normal(0.0, 2.0).cdf(cross))
    one = {"mean": torch.zeros(1, 2), "stddev": torch.full((1, 2), 1.0)}
    other = {"mean": torch.zeros(1, 2), "stddev": torch.full((1, 2), 2.0)}
    distances = total_variation_of_mixtures(one, other)
    assert torch.allclose(distances, expected.double(), atol=1e-3)
