"""Sites without a reparameterized sampler: their gradient equals exact enumeration."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_bnn import ELBO
from tests.variational.estimates import (
    agree,
    double,
    estimate,
    gradients,
)

pytestmark = pytest.mark.usefixtures("store_stays_empty")


def discrete_model(n=2, batch=2):
    def model():
        with pyro.plate("data", n, subsample=range(batch)):
            z = pyro.sample("z", dist.Bernoulli(double(0.3)))
            pyro.sample("y", dist.Normal(2 * z, 1.0), obs=double([1.5] * batch))

    return model


@pytest.mark.parametrize("kl_weight", [1.0, 0.5])
@pytest.mark.parametrize("n", [2, 10])
def test_the_gradient_of_a_discrete_site_equals_enumeration(n, kl_weight):
    batch = 2
    logits = nn.Parameter(double([0.2, -0.7]))

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = logits

        def forward(self):
            with pyro.plate("data", n, subsample=range(batch)):
                pyro.sample("z", dist.Bernoulli(logits=self.logits))

    q = torch.sigmoid(logits)
    cost = [((1.5 - 2 * z) ** 2) / 2 + 0.5 * math.log(2 * math.pi) for z in (0, 1)]
    kl = q * (q / 0.3).log() + (1 - q) * ((1 - q) / 0.7).log()
    exact = n / batch * ((1 - q) * cost[0] + q * cost[1] + kl_weight * kl).sum()
    (gradient,) = torch.autograd.grad(exact, logits)
    loss = ELBO(discrete_model(n, batch), Guide(), kl_weight=kl_weight)
    agree(estimate(loss, 100_000), (exact.item(), 0.0), errors=4)
    mean, error = gradients(loss, [logits], 100_000)
    assert ((mean - gradient).abs() < 5 * error).all()
    assert (gradient.abs() > 20 * error).any()  # zero would not pass


def test_a_discrete_site_estimated_without_closed_divergence_has_the_same_gradient():
    logits = nn.Parameter(double([0.2, -0.7]))

    def guide():
        # two factors of one density: a coin drawn by hand and declared by a factor
        with pyro.plate("data", 2, subsample=range(2)):
            z = torch.bernoulli(torch.sigmoid(logits)).detach()
            pyro.factor("coin", dist.Bernoulli(logits=logits).log_prob(z), has_rsample=False)
            pyro.sample("z", dist.Delta(z))

    q = torch.sigmoid(logits)
    cost = [((1.5 - 2 * z) ** 2) / 2 for z in (0, 1)]
    kl = q * (q / 0.3).log() + (1 - q) * ((1 - q) / 0.7).log()
    (gradient,) = torch.autograd.grad(((1 - q) * cost[0] + q * cost[1] + kl).sum(), logits)
    loss = ELBO(discrete_model(), guide)
    mean, error = gradients(loss, [logits], 100_000)
    assert ((mean - gradient).abs() < 5 * error).all()
    assert (gradient.abs() > 20 * error).any()
