"""The log-uniform prior as a distribution.

Statistical tests have fixed seeds, so they pass or fail for good; on a fresh seed each would fail
falsely with a probability of 6e-5 per compared number at 4 standard errors (6e-7 at 5), two-sided,
and 1e-4 where a p-value decides.
"""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_bnn.distributions import (
    ImproperPriorError,
    LogUniform,
    kl_log_uniform,
    kl_log_uniform_approximate,
)
from tests.distributions.reference import double


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 3.0])
def test_the_closed_divergence_is_the_mean_log_ratio(log_alpha):
    torch.manual_seed(0)
    q = dist.Normal(double(0.3), double(0.3 * math.exp(log_alpha / 2)))
    p = LogUniform()
    w = q.sample((400_000,))
    ratio = q.log_prob(w) - p.log_prob(w)
    assert abs(ratio.mean() - kl_divergence(q, p)) < 4 * ratio.std() / math.sqrt(len(w))


@pytest.mark.parametrize("kl", [kl_log_uniform, kl_log_uniform_approximate])
def test_the_divergence_ignores_scale_and_sign(kl):
    p = LogUniform(kl=kl)
    loc, scale = double([0.3, 1e-5, 2.0]), double([0.1, 3e-5, 5.0])
    value = kl_divergence(dist.Normal(loc, scale), p)
    torch.testing.assert_close(kl_divergence(dist.Normal(-loc, scale), p), value, rtol=0, atol=0)
    for c in (1e-6, 7.0, 1e6):
        torch.testing.assert_close(kl_divergence(dist.Normal(c * loc, c * scale), p), value)


def test_a_traced_graph_computes_the_same_divergence():
    def loss_and_gradient(loc, log_scale):
        def loss(loc, log_scale):
            return kl_divergence(
                dist.Normal(loc, log_scale.exp(), validate_args=False), LogUniform()
            ).sum()

        return torch.func.grad_and_value(loss, argnums=(0, 1))(loc, log_scale)

    torch.manual_seed(0)
    first, second = (torch.randn(2, 5), torch.randn(2, 5)), (torch.randn(2, 5), torch.randn(2, 5))
    graph = make_fx(loss_and_gradient)(*first)
    torch.testing.assert_close(graph(*second), loss_and_gradient(*second))

    def stepwise(log_alpha):  # as autograd traces it, without torch.func
        log_alpha = log_alpha.detach().requires_grad_()
        return torch.autograd.grad(kl_log_uniform(log_alpha).sum(), log_alpha)

    torch.testing.assert_close(make_fx(stepwise)(first[0])(second[0]), stepwise(second[0]))


def test_the_density_gives_every_octave_the_same_measure():
    w = double([0.5, -0.5, 3.0])
    log_density = LogUniform().log_prob(w)
    torch.testing.assert_close(log_density[0], log_density[1])
    # the measure of [a, 2a] is the same for every a
    torch.testing.assert_close(log_density[0] - log_density[2], double(math.log(6)))
    assert LogUniform((2, 3)).log_prob(w).shape == (2, 3)
    assert LogUniform().log_prob(torch.tensor(0.0)) == torch.inf


@pytest.mark.parametrize(
    "ask",
    [
        lambda p: p.sample(),
        lambda p: p.rsample((3,)),
        lambda p: p(),
        lambda p: p.mean,
        lambda p: p.variance,
        lambda p: p.stddev,
        lambda p: p.entropy(),
        lambda p: p.cdf(torch.tensor(1.0)),
        lambda p: p.icdf(torch.tensor(0.5)),
        lambda p: p.normalizer,
    ],
)
def test_draws_moments_and_quantiles_raise(ask):
    with pytest.raises(ImproperPriorError, match=r"LogUniform has no .* improper .* Horseshoe"):
        ask(LogUniform((2,)))


def test_an_expanded_prior_keeps_its_divergence():
    p = LogUniform(kl=kl_log_uniform_approximate).expand((4, 3))
    assert isinstance(p, LogUniform)
    assert p.batch_shape == (4, 3)
    assert isinstance(p.expand_by([2]), LogUniform)
    q = dist.Normal(torch.full((4, 3), 2.0), torch.full((4, 3), 2.0))
    torch.testing.assert_close(kl_divergence(q, p), torch.full((4, 3), 0.43124), rtol=0, atol=1e-5)
    joint = kl_divergence(q.to_event(2), p.to_event(2))
    torch.testing.assert_close(joint, torch.tensor(12 * 0.43124), rtol=0, atol=1e-4)
    # torch's own classes, and a batch that only the prior has
    assert kl_divergence(torch.distributions.Normal(1.0, 1.0), LogUniform((5,))).shape == (5,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_divergence_is_finite_at_zero_mean(dtype):
    loc = torch.tensor([0.0, 1e-30, 1e-6, 1.0], dtype=dtype, requires_grad=True)
    scale = torch.tensor([1e-3, 1e-3, 1.0, 1e3], dtype=dtype, requires_grad=True)
    value = kl_divergence(dist.Normal(loc, scale), LogUniform())
    gradient = torch.autograd.grad(value.sum(), (loc, scale))
    assert value.dtype == dtype
    assert all(torch.isfinite(x).all() for x in (value, *gradient))
    assert value[0].item() < 1e-30  # tiny in log(θ² + tiny) is all that is left
    assert gradient[0][0] == 0
