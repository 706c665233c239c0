"""Moments of scale mixtures against Monte Carlo and quadrature."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate

from pyro_bnn.posterior.scale_mixture_moments import weight_moments


def double(values):
    return torch.as_tensor(values, dtype=torch.float64)


def test_a_site_without_scales_is_a_weight():
    q = dist.Normal(double([1.0, -2.0]), double([0.5, 3.0])).to_event(1)
    mean, variance = weight_moments({"fc.weight": q})["fc.weight"]
    assert torch.equal(mean, double([1.0, -2.0]))
    assert torch.equal(variance, double([0.25, 9.0]))


def test_the_normal_jeffreys_posterior_has_the_formula_of_the_paper():
    m, v, mu, sigma2 = 0.7, 0.3, double([1.5, -0.2]), double([0.4, 0.1])
    sites = {
        "w.scale": dist.Normal(double([m]), math.sqrt(v)).to_event(1),
        "w.unit": dist.Normal(mu, sigma2.sqrt()).to_event(1),
    }
    mean, variance = weight_moments(sites)["w"]
    assert torch.allclose(mean, m * mu)
    assert torch.allclose(variance, v * mu**2 + m**2 * sigma2 + v * sigma2)


def log_normal(loc, scale):
    return dist.LogNormal(double([loc]), double(scale)).to_event(1)


@pytest.mark.parametrize("slab", [None, 0.8])
@pytest.mark.parametrize("decomposed", [False, True])
def test_horseshoe_posteriors_against_quadrature(slab, decomposed):
    mu, sigma = 1.5, 0.4
    sites = {"w.unit": dist.Normal(double([mu]), sigma).to_event(1)}
    if decomposed:
        parts = {"scale.gamma": (0.3, 0.5), "scale.inverse_gamma": (-0.2, 0.9)}
        parts |= {"global_scale.gamma": (-1.0, 0.4), "global_scale.inverse_gamma": (0.6, 0.2)}
        power = 0.5
    else:
        parts, power = {"scale": (0.3, 0.5), "global_scale": (-0.4, 0.7)}, 1.0
    sites |= {f"w.{name}": log_normal(*part) for name, part in parts.items()}
    mean, variance = weight_moments(sites, {} if slab is None else {"w": double(slab)})["w"]

    # log lambda is normal
    m, sd = (
        power * sum(p[0] for p in parts.values()),
        power * math.sqrt(sum(p[1] ** 2 for p in parts.values())),
    )

    def scale(n):
        free = math.exp(m + sd * n)
        return free if slab is None else slab * free / math.hypot(slab, free)

    def moment(k):
        return integrate.quad(
            lambda n: scale(n) ** k * math.exp(-n * n / 2) / math.sqrt(2 * math.pi), -12, 12
        )[0]

    first, second = moment(1), moment(2)
    assert float(mean) == pytest.approx(mu * first, rel=1e-6)
    assert float(variance) == pytest.approx(
        (sigma**2 + mu**2) * second - (mu * first) ** 2, rel=1e-6
    )


def test_scales_belong_to_the_weight_of_their_own_name():
    # "a.scaled" is a weight of its own and not one of the scales of "a"
    sites = {
        "a.unit": dist.Normal(double([1.0]), 0.1),
        "a.scale": dist.LogNormal(double([0.0]), 0.1),
        "a.scaled.unit": dist.Normal(double([5.0]), 0.1),
        "a.scaled.scale": dist.LogNormal(double([1.0]), 0.1),
        "b": dist.Normal(double([2.0]), 0.3),
    }
    moments = weight_moments(sites)
    assert set(moments) == {"a", "a.scaled", "b"}
    assert float(moments["a"][0]) == pytest.approx(math.exp(0.005))
    assert float(moments["a.scaled"][0]) == pytest.approx(5 * math.exp(1.005))


def test_variances_are_never_negative():
    tiny = {
        "w.unit": dist.Normal(torch.tensor([1e3]), 1e-6),
        "w.scale": dist.LogNormal(torch.tensor([0.0]), 1e-7),
    }
    for slabs in ({}, {"w": torch.tensor(0.5)}):
        _, variance = weight_moments(tiny, slabs)["w"]
        assert np.isfinite(float(variance))
        assert variance >= 0
