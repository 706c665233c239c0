"""Automatic relevance determination: its divergences, the law of what it prunes, and what it refuses.

The statistical tests have fixed seeds; their tolerances are five standard errors (a false alarm once in 2e6).
"""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import optimize
from torch import nn
from torch.distributions import kl_divergence

from pyro_bnn import ELBO, BayesianNet, fit, likelihoods, mcmc, priors
from pyro_bnn.distributions import (
    AutomaticRelevance,
    GaussianDropout,
    ImproperPriorError,
    kl_automatic_relevance,
)
from pyro_bnn.guides import GaussianDropout as GaussianDropoutGuide
from pyro_bnn.guides import MeanField, SparseVariationalDropout


def double(values):
    return torch.as_tensor(values, dtype=torch.float64)


# --- the divergence


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


def test_the_divergence_is_that_of_the_best_gaussian():
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
    assert torch.allclose(kl_divergence(with_log_alpha, AutomaticRelevance(groups=[1, 4, 1])).sum((0, 2)),
                          kl_divergence(q, AutomaticRelevance(groups=[1, 4, 1])).sum((0, 2)), rtol=1e-5)  # fmt: skip


def test_groups_of_one_are_single_weights():
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


# --- what it prunes


def optimum(z, prior, steps=1500):
    """Maximise E log p(y | w) - KL for weights of maximum-likelihood values z and standard error 1."""
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


def test_a_weight_survives_where_it_lies_beyond_one_standard_error():
    # The law of the relevance vector machine. For r = 1 / z^2 < 1 the optimum is 1/tau = z^2 - 1, theta = z (1 - r) and
    # sigma^2 = 1 - r, so log alpha = log r / (1 - r); for r >= 1 tau is infinite, theta and sigma vanish.
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


@pytest.mark.parametrize("kind", [MeanField, SparseVariationalDropout])
def test_training_prunes_by_the_law_on_an_orthogonal_design(kind):
    torch.manual_seed(1)
    n, noise = 64, 0.5
    x = torch.linalg.qr(torch.randn(n, 6))[0] * math.sqrt(n)
    error = noise / math.sqrt(n)
    ratios = torch.tensor(
        [0.1, 0.4, 2.0, 4.0, 10.0, -0.3]
    )  # of the maximum-likelihood value to its error
    residual = torch.randn(n)
    residual -= x @ (x.T @ residual) / n  # orthogonal to the inputs, so that the ratios are exact
    y = x @ (ratios * error) + noise * residual
    net = nn.Linear(6, 1, bias=False)
    nn.init.constant_(net.weight, 0.1)
    model = BayesianNet(net, priors.AutomaticRelevance(), likelihoods.Gaussian(noise), num_data=n)
    options = {"clip": None, "mask": None} if kind is SparseVariationalDropout else {}
    result = fit(
        model,
        kind(model, **options),
        (x, y),
        epochs=1200,
        learning_rate=lambda e: 0.02 * (1 - e / 1200),
        progress=False,
    )
    mean, variance = result.posterior.moments()["weight"]
    log_alpha = (variance / mean.square()).log().flatten()
    alive = ratios.abs() > 1
    assert (log_alpha[~alive] > 3).all()
    r = 1 / ratios[alive] ** 2
    assert torch.allclose(
        log_alpha[alive], (r / (1 - r)).log(), atol=0.6
    )  # a step's noise in a scale of 4 nats
    assert (log_alpha[alive] < 1).all()


def test_a_group_goes_together():
    z = torch.full((10, 2), 0.05).double()
    z[0, 0] = 1.1  # alone it survives; nine weights beside it are nothing
    z[:, 1] = 2.0
    _, apart = optimum(z, AutomaticRelevance())
    assert apart[0, 0].item() == pytest.approx(math.log(1 / (1.1**2 - 1)), abs=1e-3)
    assert (apart[1:, 0] > 3).all()
    _, together = optimum(z, AutomaticRelevance(groups=[1, 2]))
    assert (together[:, 0] > 3).all()
    # the common 1/tau is mean z^2 - 1 here, so that theta = z (1 - 1/4) and sigma^2 = 3/4 as for a single weight
    assert torch.allclose(together[:, 1], double(-math.log(3)), atol=1e-3)


# --- as a prior


def model_of(prior, n=8):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    return BayesianNet(net, prior, likelihoods.Categorical(), n)


X, Y = torch.linspace(-1, 1, 8 * 16).reshape(8, 1, 4, 4), torch.arange(8) % 2


@pytest.mark.parametrize("kind", [MeanField, SparseVariationalDropout, GaussianDropoutGuide])
def test_guides_find_the_closed_divergence(kind):
    model = model_of(priors.AutomaticRelevance())
    guide = kind(model)
    kl = ELBO(model, guide).terms(X, Y).kl
    for name, (mean, variance) in guide.moments().items():
        if kind is SparseVariationalDropout:
            variance = (guide.log_alpha()[name]).exp() * mean.square()
        expected = 0.5 * torch.log1p(mean.square() / variance).sum()
        assert kl[name].item() == pytest.approx(expected.item(), rel=1e-3)


def test_groups_are_input_units_and_output_channels():
    model = model_of(priors.AutomaticRelevance(group=True))
    guide = MeanField(model, init_scale=0.3)
    kl = ELBO(model, guide).terms(X, Y).kl
    for name, axis in (("0.weight", 0), ("3.weight", 1)):
        mean, variance = (t.double() for t in guide.moments()[name])
        square = mean.square() + variance
        pooled = square.movedim(axis, 0).flatten(1).mean(1)
        size = square.numel() // square.shape[axis]
        expected = 0.5 * (size * pooled.log().sum() - variance.log().sum())
        assert kl[name].item() == pytest.approx(expected.item(), rel=1e-5)
    whole = BayesianNet(
        nn.Linear(3, 2), {"*": priors.AutomaticRelevance(group=True)}, likelihoods.Categorical(), 8
    )
    assert ELBO(whole, MeanField(whole))(
        X.flatten(1)[:, :3], Y
    ).isfinite()  # biases: each a group of its own


@pytest.mark.parametrize("ask", ["sample", "rsample", "log_prob", "mean", "variance", "entropy"])
def test_it_has_neither_draws_nor_a_density(ask):
    prior = AutomaticRelevance([2])
    with pytest.raises(ImproperPriorError, match=r"AutomaticRelevance[\s\S]*LearnedNormal"):
        getattr(prior, ask)(torch.zeros(2)) if ask == "log_prob" else getattr(prior, ask)()


def test_samplers_and_prior_predictives_refuse_it():
    model = model_of({"*": priors.AutomaticRelevance()})
    with pytest.raises(ImproperPriorError, match=r"LearnedNormal"):
        model(X)
    with pytest.raises(ImproperPriorError, match=r"LearnedNormal"):
        mcmc.hmc(model, (X, Y), chains=1, warmup=1, draws=1, progress=False)
