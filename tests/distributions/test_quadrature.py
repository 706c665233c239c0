"""Numerical integration against a standard normal distribution."""

import math

import pytest
import torch

from pyro_bnn.distributions import normal_quadrature


@pytest.mark.parametrize(("power", "moment"), [(0, 1), (1, 0), (2, 1), (3, 0), (4, 3), (6, 15)])
def test_moments_of_the_standard_normal_are_exact(power, moment):
    nodes, weights = normal_quadrature(torch.zeros((), dtype=torch.float64))
    assert (weights * nodes**power).sum().item() == pytest.approx(moment, rel=1e-6, abs=1e-6)


def test_the_mean_of_a_log_normal_is_exact():
    rule = normal_quadrature(torch.zeros((), dtype=torch.float64))
    mean = (rule.weights * (0.5 * rule.nodes).exp()).sum().item()
    assert mean == pytest.approx(math.exp(0.125), abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rule_has_the_dtype_of_its_argument(dtype):
    rule = normal_quadrature(torch.zeros(3, dtype=dtype))
    assert rule.nodes.dtype == rule.weights.dtype == dtype
