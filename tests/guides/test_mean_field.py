"""MeanField on any program."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_bnn import ELBO, BayesianNet, fit, likelihoods
from pyro_bnn.guides import (
    MeanField,
)
from pyro_bnn.models import hidden_layer_regression, linear_regression


def test_hand_written_programs_need_example_arguments():
    x, y = torch.randn(5, 3), torch.randn(5)
    model = linear_regression(num_data=5, inputs=3)
    with pytest.raises(ValueError, match=r"example arguments, MeanField\(model, x, y\).*'x'"):
        MeanField(model)
    guide = MeanField(model, x, y=y)
    assert list(guide.families()) == ["weight", "bias"]
    assert ELBO(model, guide)(x, y).isfinite()


def test_a_program_without_arguments_needs_no_example():
    def model():
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    assert ELBO(model, MeanField(model, init_scale=1.0))().item() < 5


def test_positive_sites_get_log_normals_and_bounded_sites_are_an_error():
    x, y = torch.randn(5, 1), torch.randn(5)
    model = hidden_layer_regression(num_data=5, hidden=3)
    kinds = {
        name: type(family).__name__ for name, family in MeanField(model, x, y).families().items()
    }
    assert kinds == {**dict.fromkeys(["w1", "b1", "w2", "b2"], "Gaussian"), "noise": "LogNormal"}
    for support, distribution in (
        ("Interval", dist.Uniform(0.0, 1.0)),
        ("Simplex", dist.Dirichlet(torch.ones(2))),
    ):
        with pytest.raises(ValueError, match=f"site 'u' has the support {support}"):
            MeanField(lambda d=distribution: pyro.sample("u", d))
    with pytest.raises(ValueError, match="init_scale above zero"):
        MeanField(model, x, y, init_scale=0.0)
    with pytest.raises(ValueError, match="no latent site"):
        MeanField(lambda: None)


def test_a_local_latent_of_a_minibatch_is_an_error():
    def model(x):
        with pyro.plate("data", 10, subsample=range(len(x))):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match="'z' lies in a subsampled plate"):
        MeanField(model, torch.zeros(4))


def test_building_a_guide_leaves_the_parameter_store_empty():
    def model(x):
        loc = pyro.param("prior.loc", torch.zeros(()))
        pyro.sample("w", dist.Normal(loc, 1.0))

    MeanField(model, torch.zeros(4))
    assert not list(pyro.get_param_store().keys())


def test_the_name_of_a_site_may_begin_with_the_name_of_another():
    def prior(name, shape, group_dim):
        scale = pyro.sample(f"{name}.s", dist.HalfNormal(torch.ones(shape)).to_event(len(shape)))
        return pyro.sample(name, dist.Normal(torch.zeros(shape), scale).to_event(len(shape)))

    model = BayesianNet(nn.Linear(2, 1), prior, likelihoods.Gaussian(0.1), num_data=3)
    assert set(MeanField(model).distributions()) == {"weight.s", "weight"}


def test_mean_field_of_weights_in_plates_has_the_exact_optimum():
    torch.manual_seed(0)
    x = torch.randn(30, 4)
    x = torch.linalg.qr(x)[0] * 3  # orthogonal inputs: the posterior factorises
    y = x @ torch.tensor([1.0, -1.0, 0.5, 0.0]) + 0.2 * torch.randn(30)

    def model(x, y=None):
        with pyro.plate("groups", 2, dim=-2), pyro.plate("members", 2, dim=-1):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
        bias = pyro.sample("bias", dist.Normal(torch.zeros(1), 1e-3).to_event(1))
        with pyro.plate("data", 30):
            pyro.sample("y", dist.Normal(x @ w.flatten() + bias, 0.2), obs=y)

    guide = MeanField(model, x, y)
    result = fit(
        model,
        guide,
        (x, y),
        epochs=1200,
        learning_rate=lambda e: 0.03 * (1 - e / 1200),
        progress=False,
    )
    mean, variance = result.posterior.moments()["w"]
    precision = 9 / 0.2**2 + 1
    # half a posterior standard deviation for the noise of the steps
    torch.testing.assert_close(mean.flatten(), x.T @ y / 0.2**2 / precision, atol=0.03, rtol=0)
    torch.testing.assert_close(variance * precision, torch.ones(2, 2), atol=0.15, rtol=0)
    assert result.posterior.sample(7)["w"].shape == (7, 2, 2)
