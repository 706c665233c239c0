"""Priors of independent weights: their distributions, arguments and fitted scales."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import optimize, stats
from torch import nn

from pyro_bnn import ELBO, BayesianNet, likelihoods, priors
from tests.priors.draws import SHAPE, assert_follows, draw


@pytest.mark.parametrize(
    ("prior", "cdf"),
    [
        (priors.Normal(0.3, loc=-1.0), stats.norm(-1.0, 0.3).cdf),
        (priors.LearnedNormal(2.0), stats.norm(0.0, 2.0).cdf),
        (priors.Elementwise(dist.StudentT(3.0, 0.5, 0.1)), stats.t(3, 0.5, 0.1).cdf),
        (priors.Elementwise(torch.distributions.Laplace(0.5, 2.0)), stats.laplace(0.5, 2.0).cdf),
        (priors.Elementwise(torch.distributions.HalfNormal(0.2)), stats.halfnorm(0, 0.2).cdf),
        (priors.Elementwise(torch.distributions.Gamma(2.0, 4.0)), stats.gamma(2, scale=0.25).cdf),
        (priors.Elementwise(dist.Uniform(-1.0, 3.0)), stats.uniform(-1, 4).cdf),
    ],
)
def test_draws_follow_the_distribution_of_the_prior(prior, cdf):
    sites = draw(prior)
    assert list(sites) == ["w"]
    assert sites["w"].shape == SHAPE
    assert_follows(sites["w"].detach(), cdf)


def test_the_gaussian_mixture_has_its_distribution_and_density():
    prior = priors.GaussianMixture([0.1, 2], probs=[3, 1], locs=[1, 0])
    assert_follows(
        draw(prior)["w"],
        lambda w: 0.75 * stats.norm.cdf(w, 1, 0.1) + 0.25 * stats.norm.cdf(w, 0, 2),
    )
    fn = poutine.trace(lambda: prior("w", torch.Size([2, 3]), 1)).get_trace().nodes["w"]["fn"]
    value = torch.randn(2, 3)
    density = 0.75 * stats.norm.pdf(value, 1, 0.1) + 0.25 * stats.norm.pdf(value, 0, 2)
    assert float(fn.log_prob(value)) == pytest.approx(
        float(torch.as_tensor(density).log().sum()), rel=1e-5
    )


def test_every_weight_tensor_has_its_own_learned_scale():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    prior = priors.LearnedNormal(0.3)
    model = BayesianNet(net, prior, likelihoods.Gaussian(1.0), num_data=1)
    learned = [p for name, p in model.named_parameters() if name.endswith("log_scale")]
    assert len(learned) == 2
    for log_scale in learned:
        assert log_scale is not prior.log_scale
        assert float(log_scale.detach().exp()) == pytest.approx(0.3)


def test_the_learned_scale_maximizes_the_evidence():
    # y_i = w_i + noise, one observation of each weight: the mean-field posterior is exact and
    # y_i ~ N(0, s^2 + noise^2)
    torch.manual_seed(1)
    n, noise = 40, 0.5
    y = (1.5 * torch.randn(n) + noise * torch.randn(n)).double()

    def model():
        w = learned("w", torch.Size([n]), None)
        pyro.sample("y", dist.Normal(w, noise).to_event(1), obs=y)

    def guide():
        # the exact posterior at the current scale, so that the ELBO is the evidence
        variance = 1 / (1 / noise**2 + (-2 * learned.log_scale).exp())
        pyro.sample(
            "w", dist.Normal(y * variance / noise**2, variance.sqrt().expand(n)).to_event(1)
        )

    learned = priors.LearnedNormal(0.5).double()
    loss = ELBO(model, guide)

    def evidence(log_s):
        return -stats.norm.logpdf(y, 0, math.hypot(math.exp(log_s), noise)).sum()

    best = optimize.minimize_scalar(
        evidence, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}
    ).x
    assert math.exp(2 * best) == pytest.approx(float((y**2).mean()) - noise**2, rel=1e-5)
    for log_s in (best, best - 0.5):
        learned.log_scale.data.fill_(log_s)
        drawn = torch.stack([loss().detach() for _ in range(100)])
        gradients = torch.stack(
            [torch.autograd.grad(loss(), learned.log_scale)[0] for _ in range(100)]
        )
        assert abs(float(drawn.mean()) - evidence(log_s)) < 5 * float(drawn.std()) / 10
        slope = (evidence(log_s + 1e-5) - evidence(log_s - 1e-5)) / 2e-5
        assert abs(float(gradients.mean()) - slope) < 5 * float(gradients.std()) / 10
        assert float(gradients.std()) / 10 < 2  # at best - 0.5 the slope is tens


@pytest.mark.parametrize(
    "wrong",
    [
        1.0,
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(2)),
            torch.distributions.Normal(torch.zeros(2), 1.0),
        ),
    ],
)
def test_elementwise_raises_for_what_is_not_a_distribution_over_one_number(wrong):
    with pytest.raises(TypeError, match="Elementwise: expected"):
        priors.Elementwise(wrong)
