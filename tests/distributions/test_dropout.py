"""Gaussian and binary dropout against their laws and the limit of narrow mixtures.

Statistical tests have fixed seeds, so they pass or fail for good; on a fresh seed each would fail
falsely with a probability of 6e-5 per compared number at 4 standard errors (6e-7 at 5), two-sided,
and 1e-4 where a p-value decides.
"""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import kl_divergence

from pyro_bnn.distributions import (
    BernoulliDropout,
    GaussianDropout,
    LogUniform,
    kl_log_uniform_approximate,
)
from tests.distributions.reference import double


def test_gaussian_dropout_is_a_normal_of_mean_theta_and_variance_alpha_theta_squared():
    loc, log_alpha = torch.tensor([[1.0, -2.0, 0.5]] * 2), torch.tensor([[0.3], [-1.0]])
    q = GaussianDropout(loc, log_alpha)
    assert isinstance(q, torch.distributions.Normal)
    torch.testing.assert_close(q.variance, log_alpha.exp() * loc**2)
    torch.testing.assert_close(q.mean, loc)
    expected = kl_divergence(dist.Normal(q.loc, q.scale), LogUniform())
    torch.testing.assert_close(kl_divergence(q, LogUniform()), expected)
    approximate = kl_divergence(
        q.to_event(2), LogUniform(kl=kl_log_uniform_approximate).expand((2, 3)).to_event(2)
    )
    torch.testing.assert_close(approximate, 3 * kl_log_uniform_approximate(log_alpha).sum())
    torch.manual_seed(0)
    w = q.rsample((100_000,))
    assert ((w.mean(0) - loc).abs() < 4 * q.scale / math.sqrt(len(w))).all()
    assert ((w.var(0) / q.variance - 1).abs() < 4 * math.sqrt(2 / len(w))).all()


def test_gaussian_dropout_masks_means_and_keeps_the_noise():
    loc, keep = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([True, False, True])
    q = GaussianDropout(loc, torch.tensor(0.0), keep)
    assert q.loc.tolist() == [1.0, 0.0, 0.5]
    assert q.scale.tolist() == [1.0, 2.0, 0.5]
    value = kl_divergence(q, LogUniform())
    torch.testing.assert_close(value, torch.full((3,), 0.426686), rtol=0, atol=1e-5)
    grown = q.expand((4, 3))
    assert isinstance(grown, GaussianDropout)
    torch.testing.assert_close(grown.loc, q.loc.expand(4, 3))
    torch.testing.assert_close(grown.scale, q.scale.expand(4, 3))
    torch.testing.assert_close(kl_divergence(grown, LogUniform()), value.expand(4, 3))


def test_gaussian_dropout_has_finite_gradients_at_theta_zero():
    loc, log_alpha = torch.zeros(3, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    q = GaussianDropout(loc, log_alpha)
    value = kl_divergence(q, LogUniform()).sum() + q.rsample().sum()
    gradient = torch.autograd.grad(value, (loc, log_alpha))
    assert all(torch.isfinite(x).all() for x in (value, *gradient))


@pytest.mark.parametrize(("group_dim", "groups"), [(None, 12), (0, 3), (1, 4), (-1, 4)])
def test_bernoulli_dropout_drops_groups_at_its_rate(group_dim, groups):
    torch.manual_seed(1)
    loc = torch.arange(1.0, 13).reshape(3, 4)
    q = BernoulliDropout(loc, 0.3, group_dim)
    assert (q.batch_shape, q.event_shape) == ((), (3, 4))
    w = q.sample((20_000,))
    assert set((w / loc).unique().tolist()) == {0.0, 1.0}
    dropped = w == 0
    if group_dim is not None:
        dropped = dropped.movedim(group_dim % 2 + 1, 1)
        assert (dropped.all(2) == dropped.any(2)).all()
        dropped = dropped[:, :, 0]
    dropped = dropped.reshape(len(w), -1)
    assert dropped.shape[1] == groups
    assert stats.binomtest(int(dropped.sum()), dropped.numel(), 0.3).pvalue > 1e-4
    # different groups fall out independently
    correlation = torch.corrcoef(dropped.T.float()) - torch.eye(groups)
    assert correlation.abs().max() < 5 / math.sqrt(len(w))
    assert ((w.mean(0) - q.mean).abs() < 4 * q.stddev / math.sqrt(len(w))).all()
    torch.testing.assert_close(w.var(0), q.variance, rtol=0.05, atol=0)


def narrow_mixture_kl(theta, rate, prior_mean, prior_scale, width):
    """KL of r N(0, ε²) + (1 - r) N(θ, ε²) from N(m, s²), by quadrature over each peak."""

    def integrand(w):
        log_q = np.logaddexp(
            math.log(rate) + stats.norm.logpdf(w, 0, width),
            math.log1p(-rate) + stats.norm.logpdf(w, theta, width),
        )
        return np.exp(log_q) * (log_q - stats.norm.logpdf(w, prior_mean, prior_scale))

    total = 0.0
    for centre in (0.0, theta):
        w = np.linspace(centre - 12 * width, centre + 12 * width, 4001)
        total += np.trapezoid(integrand(w), w)
    return total


@pytest.mark.parametrize(("prior_mean", "prior_scale"), [(0.0, 1.0), (0.4, 2.5)])
def test_bernoulli_dropout_kl_is_the_limit_of_narrow_mixtures(prior_mean, prior_scale):
    theta, rate = double([0.7, -1.3]), 0.2
    prior = dist.Normal(double(prior_mean), double(prior_scale)).expand((2,)).to_event(1)
    closed = kl_divergence(BernoulliDropout(theta, rate), prior).item()
    gaps = []
    for width in (3e-2, 1e-2, 1e-3):
        mixture = sum(
            narrow_mixture_kl(t, rate, prior_mean, prior_scale, width) for t in theta.tolist()
        )
        gaps.append(abs(mixture - 2 * (-math.log(width) - 0.5) - closed))
    # the remainder is ε²/(2 s²) per weight
    np.testing.assert_allclose(
        gaps[:2], [2 * w * w / (2 * prior_scale**2) for w in (3e-2, 1e-2)], rtol=1e-3
    )
    assert gaps[2] < 1.1e-6


def test_bernoulli_dropout_kl_counts_one_coin_per_group():
    loc = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = dist.Normal(double(0.0), double(1.0)).expand((3, 4)).to_event(2)
    coin = stats.bernoulli(0.2).entropy()
    cost = 0.8 * loc.square().sum().item() / 2
    for group_dim, groups in ((None, 12), (0, 3), (1, 4)):
        value = kl_divergence(BernoulliDropout(loc, 0.2, group_dim), prior).item()
        assert value == pytest.approx(cost - groups * coin)
    assert kl_divergence(BernoulliDropout(loc, 0.0), prior).item() == pytest.approx(cost / 0.8)
    # a rate per group
    rates = double([[0.2], [0.2], [0.5]])
    expected = loc.square().sum(1) @ double([0.8, 0.8, 0.5]) / 2 - 2 * coin - math.log(2)
    torch.testing.assert_close(kl_divergence(BernoulliDropout(loc, rates, 0), prior), expected)
    # a prior with a batch
    batch = (
        dist.Normal(double(0.0), double([1.0, 2.0]).reshape(2, 1, 1)).expand((2, 3, 4)).to_event(2)
    )
    assert kl_divergence(BernoulliDropout(loc, 0.2), batch).shape == (2,)
    assert kl_divergence(BernoulliDropout(loc, 0.2), batch)[0].item() == pytest.approx(
        cost - 12 * coin
    )


def test_gradients_of_bernoulli_dropout_are_exact():
    loc = double([[0.7, -1.3, 0.2]]).requires_grad_()
    scale = double(1.5).requires_grad_()

    def kl(loc, scale):
        prior = dist.Normal(loc.new_zeros(()), scale).expand((1, 3)).to_event(2)
        return kl_divergence(BernoulliDropout(loc, 0.25, 1), prior)

    assert torch.autograd.gradcheck(kl, (loc, scale))
    torch.manual_seed(0)
    q = BernoulliDropout(loc, 0.25, 1)
    w = q.rsample((1000,))
    (gradient,) = torch.autograd.grad(w.sum(), loc)
    torch.testing.assert_close(gradient, (w != 0).sum(0).double())


def test_bernoulli_dropout_raises_for_wrong_arguments_and_priors():
    loc = torch.ones(2, 3)
    with pytest.raises(NotImplementedError, match="no density"):
        BernoulliDropout(loc, 0.5).log_prob(loc)
    with pytest.raises(ValueError, match=r"\[0, 1\]; got 1.5"):
        BernoulliDropout(loc, 1.5)
    with pytest.raises(ValueError, match="rate"):
        BernoulliDropout(loc, torch.tensor(-0.5), validate_args=True)
    with pytest.raises(ValueError, match="an axis of loc"):
        BernoulliDropout(loc, 0.5, group_dim=2)
    with pytest.raises(NotImplementedError, match="not from an independent Laplace"):
        kl_divergence(BernoulliDropout(loc, 0.5), dist.Laplace(loc, 1.0).to_event(2))
    with pytest.raises(NotImplementedError, match="not from an independent LogUniform"):
        kl_divergence(BernoulliDropout(loc, 0.5), LogUniform((2, 3)).to_event(2))
    with pytest.raises(ValueError, match="event shape"):
        kl_divergence(BernoulliDropout(loc, 0.5), dist.Normal(loc, 1.0).to_event(1))
