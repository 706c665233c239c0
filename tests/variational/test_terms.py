"""The terms of the loss, for programs of every structure."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate
from torch import nn

from pyro_bnn import ELBO, BayesianNet, likelihoods, local_reparameterization, priors
from pyro_bnn.guides import (
    BernoulliDropout,
    GaussianDropout,
    MeanField,
)
from tests.variational.estimates import agree, double, estimate

pytestmark = pytest.mark.usefixtures("store_stays_empty")


def test_the_terms_sum_to_the_loss(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.Horseshoe(), likelihoods.Gaussian(), num_data=9)
    loss = ELBO(model, MeanField(model))
    for weight in (1.0, 0.25, 0.0):
        loss.kl_weight = weight
        torch.manual_seed(3)
        value = loss(*toy).item()
        torch.manual_seed(3)
        terms = loss.terms(*toy)
        assert set(terms.kl) == {"weight.global_scale", "weight.scale", "weight.unit"}
        assert value == pytest.approx(
            (terms.data + weight * sum(terms.kl.values())).item(), rel=1e-6
        )


def test_an_auxiliary_site_of_the_guide_adds_its_entropy():
    y = double(0.4)

    def model():
        z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    def guide():
        u = pyro.sample("u", dist.Normal(double(0.2), 0.6), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(0.5 * u, 0.7))

    # -E log p(y, z) + E log q(u) + E log q(z | u), by hand: z ~ N(0.1, 0.3^2 + 0.7^2)
    m, v = 0.1, 0.09 + 0.49
    normal = math.log(2 * math.pi) / 2
    energy = ((0.4 - m) ** 2 + v) / 0.5 + math.log(0.5) + normal + (m**2 + v) / 2 + normal
    entropy = math.log(0.6) + math.log(0.7) + 1 + 2 * normal
    loss = ELBO(model, guide)
    agree(estimate(loss, 200_000), (energy - entropy, 0.0), errors=4)
    assert set(loss.terms().kl) == {"u", "z"}


def test_factors_of_model_and_guide_enter_the_loss():
    def model():
        z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
        pyro.factor("potential", -0.5 * (z - 1) ** 2)

    def guide():
        # z = sinh(u), u ~ N(0, 1/4): log q(z) = log q(u) - log(dz / du)
        u = pyro.sample("u", dist.Normal(double(0.0), 0.5), infer={"is_auxiliary": True})
        z = torch.sinh(u)
        pyro.factor("jacobian", -torch.cosh(u).log(), has_rsample=True)
        pyro.sample("z", dist.Delta(z))

    def integrand(u):
        q = math.exp(-2 * u * u) / (0.5 * math.sqrt(2 * math.pi))
        z = math.sinh(u)
        log_p = -0.5 * z * z - 0.5 * math.log(2 * math.pi) - 0.5 * (z - 1) ** 2
        return q * (math.log(q) - math.log(math.cosh(u)) - log_p)

    exact = integrate.quad(integrand, -5, 5)[0]
    agree(estimate(ELBO(model, guide), 200_000), (exact, 0.0), errors=4)


def test_local_latents_carry_the_scale_and_the_mask_of_their_plate():
    n, batch = 12, 4
    mask = torch.tensor([True, True, False, True])
    loc = double([0.3, -0.5, 2.0, 1.0])

    def model(y):
        with pyro.plate("data", n, subsample=range(batch)), pyro.poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y):
        with pyro.plate("data", n, subsample=range(batch)), pyro.poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(loc, 0.5))

    y = double([0.0, 1.0, -3.0, 0.5])
    terms = ELBO(model, guide).terms(y)
    kl = (math.log(2) + (0.25 + loc**2) / 2 - 0.5)[mask].sum() * n / batch
    assert float(terms.kl["z"]) == pytest.approx(float(kl), rel=1e-12)
    data = (((y - loc) ** 2 + 0.25) / 2 + 0.5 * math.log(2 * math.pi))[mask].sum() * n / batch
    loss = ELBO(model, guide)
    agree(estimate(lambda: loss.terms(y).data, 100_000), (float(data), 0.0), errors=4)


def test_a_site_scaled_in_one_program_alone_is_weighted_as_in_pyro():
    def model():
        with pyro.poutine.scale(scale=0.1):
            pyro.sample("z", dist.Normal(double(1.0), 2.0))

    def guide():
        pyro.sample("z", dist.Normal(double(0.0), 1.0))

    # E log q - E log p / 10
    exact = -0.5 * math.log(2 * math.pi * math.e) + 0.1 * (
        math.log(2) + 0.5 * math.log(2 * math.pi) + 2 / 8
    )
    agree(estimate(ELBO(model, guide), 200_000), (exact, 0.0), errors=4)


def test_a_guide_in_another_order_is_estimated_by_monte_carlo():
    # The model draws z, then w given z; the guide w, then z given w. KL(q(w) || p(w | z)) at a
    # z that was drawn given w would be wrong: given z, w is no longer distributed as q(w).
    def model():
        z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
        pyro.sample("w", dist.Normal(z, 1.0))

    def guide():
        w = pyro.sample("w", dist.Normal(double(0.5), 0.8))
        pyro.sample("z", dist.Normal(0.9 * w, 0.3))

    # z ~ N(0.45, v), v = (0.9 * 0.8)^2 + 0.3^2; w - z ~ N(0.05, (0.1 * 0.8)^2 + 0.3^2)
    log_2_pi = math.log(2 * math.pi)
    z2, difference2 = 0.45**2 + 0.72**2 + 0.09, 0.05**2 + 0.08**2 + 0.09
    exact = log_2_pi + (z2 + difference2) / 2 - (log_2_pi + 1 + math.log(0.8) + math.log(0.3))
    naive = exact + 0.5 * (
        (0.5 - 0.45) ** 2 + 0.72**2 + 0.09 + 0.64 - difference2
    )  # w drawn again, independent of z
    assert naive - exact > 0.3
    agree(estimate(ELBO(model, guide), 200_000), (exact, 0.0), errors=4)


def test_a_guide_in_the_order_of_the_model_has_closed_divergences():
    def model():
        z = pyro.sample("z", dist.Normal(double(0.0), 1.0))
        pyro.sample("w", dist.Normal(z, 1.0))

    def guide():
        z = pyro.sample("z", dist.Normal(double(0.5), 0.8))
        pyro.sample("w", dist.Normal(0.9 * z, 0.3))

    log_2_pi = math.log(2 * math.pi)
    z2, difference2 = 0.25 + 0.64, 0.01 * (0.25 + 0.64) + 0.09
    exact = log_2_pi + (z2 + difference2) / 2 - (log_2_pi + 1 + math.log(0.8) + math.log(0.3))
    value, error = estimate(ELBO(model, guide), 100_000)
    agree((value, error), (exact, 0.0), errors=4)
    # given z, both divergences are closed: only (z - 0.9 z)^2 / 2 is random
    assert error * math.sqrt(100_000) < 0.02


def test_a_materialized_weight_enters_the_loss_by_its_value():
    # the same hierarchy in the other order, with vectors that local reparameterization defers
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        pyro.sample("w", dist.Normal(z, 1.0).to_event(1))

    def guide():
        w = pyro.sample(
            "w", dist.Normal(torch.full((2,), 0.5, dtype=torch.float64), 0.8).to_event(1)
        )
        pyro.sample("z", dist.Normal(torch.tanh(w), 0.3).to_event(1))

    deferred = local_reparameterization(guide)
    with pytest.warns(UserWarning, match="drawn once"):
        ELBO(model, deferred)()
    agree(estimate(ELBO(model, deferred), 100_000), estimate(ELBO(model, guide), 100_000))


def test_binary_dropout_under_a_prior_without_closed_divergence_is_an_error(toy):
    model = BayesianNet(
        nn.Linear(3, 1),
        priors.Elementwise(dist.Laplace(0.0, 1.0)),
        likelihoods.Gaussian(1.0),
        num_data=6,
    )
    with pytest.raises(NotImplementedError, match="no density"):
        ELBO(model, BernoulliDropout(model))(*toy)


def test_the_divergence_of_fixed_noise_has_no_gradient(toy):
    model = BayesianNet(nn.Linear(3, 1), priors.LogUniform(), likelihoods.Gaussian(1.0), num_data=6)
    guide = GaussianDropout(model, alpha=0.5)
    kl = ELBO(model, guide).terms(*toy).kl["weight"]
    assert (
        not kl.requires_grad
        or float(torch.autograd.grad(kl, guide.sites.weight.loc)[0].abs().max()) == 0
    )
