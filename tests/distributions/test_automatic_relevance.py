"""The divergence from the automatic relevance prior, and the weights that it prunes."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import optimize
from torch.distributions import kl_divergence

from pyro_bnn.distributions import (
    AutomaticRelevance,
    GaussianDropout,
    ImproperPriorError,
    kl_automatic_relevance,
)


def double(values):
    return torch.as_tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("log_alpha", "expected"), [(0.0, 0.34657), (3.0, 0.02429), (-5.0, 2.50336)]
)
def test_the_divergence_has_the_published_values(log_alpha, expected):
    assert kl_automatic_relevance(double(log_alpha)).item() == pytest.approx(expected, abs=5e-6)
    theta = double([0.3, -7.0])
    sigma = theta.abs() * math.exp(log_alpha / 2)
    for q in (dist.Normal(theta, sigma), GaussianDropout(theta, double(log_alpha))):
        assert torch.allclose(kl_divergence(q, AutomaticRelevance()), double(expected), atol=5e-6)


def best_scale(q):
    """Minimise KL(q || N(0, s^2)) over s with the divergence of torch, one group of weights."""

    def total(log_s):
        return kl_divergence(q, dist.Normal(double(0.0), math.exp(log_s))).sum().item()

    return optimize.minimize_scalar(
        total, bounds=(-12, 6), method="bounded", options={"xatol": 1e-9}
    ).fun


def test_the_divergence_is_that_of_the_best_gaussian_prior():
    for theta, sigma in ((0.3, 0.2), (-2.0, 0.01), (0.0, 0.5), (1e-3, 3.0)):
        q = dist.Normal(double([theta]), double([sigma]))
        assert kl_divergence(q, AutomaticRelevance()).item() == pytest.approx(
            best_scale(q), abs=1e-8
        )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_divergence_of_a_group_is_that_of_the_best_common_gaussian(axis):
    torch.manual_seed(0)
    loc, scale = torch.randn(3, 4, 2).double(), torch.randn(3, 4, 2).double().exp()
    q = dist.Normal(loc, scale)
    kl = kl_divergence(
        q, AutomaticRelevance(groups=[n if i == axis else 1 for i, n in enumerate(loc.shape)])
    )
    assert kl.shape == loc.shape
    for index in range(loc.shape[axis]):
        group = dist.Normal(loc.select(axis, index), scale.select(axis, index))
        assert kl.select(axis, index).sum().item() == pytest.approx(best_scale(group), abs=1e-7)
    with_log_alpha = GaussianDropout(loc, 2 * scale.log() - (loc.square() + 1e-8).log())
    prior = AutomaticRelevance(groups=[1, 4, 1])
    by_log_alpha = kl_divergence(with_log_alpha, prior).sum((0, 2))
    assert torch.allclose(by_log_alpha, kl_divergence(q, prior).sum((0, 2)), rtol=1e-5)


def test_groups_of_one_weight_equal_single_weights():
    q = dist.Normal(torch.randn(4, 3).double(), torch.rand(4, 3).double() + 0.1)
    assert torch.allclose(
        kl_divergence(q, AutomaticRelevance(groups=[4, 3])), kl_divergence(q, AutomaticRelevance())
    )
    assert torch.allclose(
        kl_divergence(q, AutomaticRelevance(weight=2.5)),
        2.5 * kl_divergence(q, AutomaticRelevance()),
    )


def test_the_divergence_is_finite_at_the_extremes():
    for theta in (0.0, 1e-30, 1e10):
        for log_sigma in (-30.0, 30.0):
            loc = torch.tensor(theta, requires_grad=True)
            log_scale = torch.tensor(log_sigma, requires_grad=True)
            kl = kl_divergence(dist.Normal(loc, log_scale.exp()), AutomaticRelevance())
            kl.backward()
            assert kl.isfinite()
            assert kl >= 0
            assert loc.grad.isfinite()
            assert log_scale.grad.isfinite()
    assert kl_automatic_relevance(torch.tensor([-200.0, 200.0])).tolist() == pytest.approx(
        [100.0, 0.0]
    )


def optimum(z, prior, steps=1500):
    """Maximize E log p(y | w) - KL for weights with maximum-likelihood values z and error 1."""
    loc = double(z).clone().requires_grad_()
    log_scale = torch.full_like(loc, -1.0).requires_grad_()
    optimizer = torch.optim.Adam([loc, log_scale])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        optimizer.zero_grad()
        q = dist.Normal(loc, log_scale.exp(), validate_args=False)
        loss = ((loc - double(z)).square() + q.variance).sum() / 2 + kl_divergence(q, prior).sum()
        loss.backward()
        optimizer.step()
    return loc.detach(), (2 * log_scale - loc.square().log()).detach()  # theta, log alpha


def test_a_weight_survives_if_it_exceeds_one_standard_error():
    # The rule of the relevance vector machine. For r = 1 / z^2 < 1 the optimum is 1/tau = z^2 - 1,
    # theta = z (1 - r) and sigma^2 = 1 - r, so log alpha = log r / (1 - r); for r >= 1 tau is
    # infinite, and theta and sigma vanish.
    z = double([0.2, 0.5, 0.9, 1.05, 1.2, 2.0, 10.0])
    loc, log_alpha = optimum(z, AutomaticRelevance())
    r = 1 / z**2
    alive = r < 1
    assert alive.tolist() == [False] * 3 + [True] * 4
    assert torch.allclose(loc[alive], (z * (1 - r))[alive], atol=1e-5)
    assert torch.allclose(log_alpha[alive], (r / (1 - r)).log()[alive], atol=1e-3)
    assert (loc[~alive].abs() < 1e-2).all()
    assert (log_alpha[~alive] > 3).all()
    # counted as pruned from log alpha = 3 on: r / (1 - r) >= e^3, that is z^2 <= 1 + e^-3
    threshold = math.sqrt(1 + math.exp(-3))
    _, near = optimum(
        double([threshold - 0.004, threshold + 0.004]), AutomaticRelevance(), steps=4000
    )
    assert near[0] > 3 > near[1]


def test_the_weights_of_a_group_are_pruned_together():
    z = torch.full((10, 2), 0.05).double()
    z[0, 0] = 1.1  # alone it survives, but not with nine weights near zero beside it
    z[:, 1] = 2.0
    _, apart = optimum(z, AutomaticRelevance())
    assert apart[0, 0].item() == pytest.approx(math.log(1 / (1.1**2 - 1)), abs=1e-3)
    assert (apart[1:, 0] > 3).all()
    _, together = optimum(z, AutomaticRelevance(groups=[1, 2]))
    assert (together[:, 0] > 3).all()
    # the common 1/tau is mean z^2 - 1 here, so that theta = z (1 - 1/4) and sigma^2 = 3/4
    assert torch.allclose(together[:, 1], double(-math.log(3)), atol=1e-3)


@pytest.mark.parametrize("ask", ["sample", "rsample", "log_prob", "mean", "variance", "entropy"])
def test_the_prior_has_neither_draws_nor_a_density(ask):
    prior = AutomaticRelevance([2])
    with pytest.raises(ImproperPriorError, match=r"AutomaticRelevance[\s\S]*LearnedNormal"):
        getattr(prior, ask)(torch.zeros(2)) if ask == "log_prob" else getattr(prior, ask)()
