"""Posteriors of every kind become ArviZ's groups."""

import json
import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta

from pyro_bnn import Posterior, fit, priors
from pyro_bnn.diagnostics import summary, to_arviz
from pyro_bnn.diagnostics.densities import log_densities
from pyro_bnn.guides import MeanField
from pyro_bnn.models import linear_regression
from pyro_bnn.runtime.minibatches import TensorBatches
from tests.diagnostics.networks import CLASSES, network, variational
from tests.diagnostics.regression import DATA, NOISE, N, X, Y, conjugate, exact

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz")


GROUPS = {
    *("posterior", "sample_stats", "log_likelihood", "posterior_predictive"),
    *("prior", "prior_predictive", "observed_data"),
}


def test_a_sampler_fills_every_group():
    statistics = {
        "lp": torch.randn(4, 250),
        "diverging": torch.rand(4, 250) < 0.1,
        "step_size": torch.rand(4, 250),
    }
    facts = {"method": "hmc", "seconds": 1.5, "data": TensorBatches(DATA, None, 0).fingerprint()}
    posterior = exact(statistics=statistics, facts=facts)
    data = to_arviz(posterior, DATA, draws=100, prior_draws=30)
    assert set(data.groups()) == GROUPS
    assert np.array_equal(data["posterior"]["weight"].values, posterior.draws["weight"][:, -100:])
    for name, value in statistics.items():
        assert np.array_equal(data["sample_stats"][name].values, value[:, -100:])
    assert data["sample_stats"]["diverging"].dtype == bool
    assert np.array_equal(data["observed_data"]["y"].values, Y)
    assert data["observed_data"]["y"].dims == ("example",)
    assert data["posterior_predictive"]["y"].shape == (4, 100, N)
    assert data["prior"]["weight"].shape == (1, 30, 1)
    assert data["prior_predictive"]["y"].shape == (1, 30, N)
    attrs = data["posterior"].attrs
    assert attrs["sampler"] == "hmc"
    assert attrs["inference_library"] == "pyro"
    assert attrs["sampling_time"] == 1.5
    assert json.loads(attrs["facts"])["data"] == facts["data"]


def test_a_guide_is_one_chain_with_its_log_density():
    posterior = variational(network(priors.Horseshoe()))
    data = to_arviz(posterior, CLASSES, draws=40, prior_draws=7)
    assert dict(data["posterior"].sizes)["chain"] == 1
    assert set(data["sample_stats"].data_vars) == {"lp", "log_q"}
    assert data["posterior"].attrs["sampler"] == "svi"
    values = data["posterior"]
    assert {"0.weight", "0.weight.unit", "0.weight.scale"} <= set(values.data_vars)
    assert values["0.weight"].dims == ("chain", "draw", "0.weight.output", "0.weight.input")
    product = values["0.weight.unit"].values * values["0.weight.scale"].values
    product = product * values["0.weight.global_scale"].values[..., None, None].reshape(1, 40, 1, 1)
    assert np.allclose(product, values["0.weight"].values, rtol=1e-5)
    assert {"0.weight", "0.weight.unit"} <= set(data["prior"].data_vars)
    sites = {name: torch.as_tensor(values[name].values[0]) for name in posterior.draws}
    assert np.allclose(
        data["sample_stats"]["lp"].values[0], log_densities(posterior, sites, CLASSES).log_joint
    )


def test_the_posterior_of_a_fit_is_converted():
    result = fit(
        linear_regression(N), MeanField(linear_regression(N), *DATA), DATA, epochs=3, progress=False
    )
    data = to_arviz(result.posterior, DATA, draws=20, prior_draws=0)
    assert set(data["posterior"].data_vars) == {"weight", "bias"}


def test_predictions_have_the_moments_of_the_closed_form():
    """Over 1000 draws, 5 standard errors at 20 examples: false-alarm rate below 1e-4."""
    data = to_arviz(exact(), DATA, prior_draws=1000)
    mean, covariance = conjugate()
    design = torch.cat([X, torch.ones_like(X)], 1)
    for group, center, spread in (
        ("posterior_predictive", design @ mean, ((design @ covariance) * design).sum(1)),
        ("prior_predictive", torch.zeros(N), design.square().sum(1)),
    ):
        values = torch.as_tensor(data[group]["y"].values).flatten(0, 1).double()
        variance = spread + NOISE**2
        assert ((values.mean(0) - center).abs() < 5 * (variance / 1000).sqrt()).all()
        assert ((values.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / 1000)).all()


def test_a_program_that_cannot_be_vectorized_is_run_draw_by_draw():
    def model(x, y=None):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        mean = x * weight if float(weight) > 0 else x * 2 * weight
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    x, y = torch.linspace(-1, 1, 5), torch.zeros(5)
    weight = torch.tensor([[1.0, -1.0]])
    data = to_arviz(Posterior.from_draws(model, {"weight": weight}), (x, y), prior_draws=3)
    expected = torch.distributions.Normal(torch.stack([x, -2 * x]), 0.5).log_prob(y)
    assert np.allclose(data["log_likelihood"]["y"].values[0], expected, atol=1e-5)
    assert data["prior"]["weight"].shape == (1, 3)


@pytest.mark.parametrize("prior", [priors.LogUniform(), priors.NormalJeffreys()])
def test_an_improper_prior_is_left_out_with_its_reason(prior):
    data = to_arviz(variational(network(prior)), CLASSES, draws=10)
    for group in ("prior", "prior_predictive"):
        assert group not in data.groups()
        assert "improper" in data["posterior"].attrs[f"{group}_left_out"]
    assert "posterior_predictive" in data.groups()


def test_a_model_without_a_plate_has_no_pointwise_log_likelihood():
    def model(x, y=None):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x * weight, 1.0).to_event(1), obs=y)

    posterior = Posterior.from_draws(model, {"weight": torch.randn(2, 10)})
    with pytest.warns(UserWarning, match="needs a plate over the data"):
        data = to_arviz(posterior, (torch.ones(5), torch.zeros(5)), prior_draws=2)
    assert "log_likelihood" not in data.groups()
    assert "plate" in data["posterior"].attrs["log_likelihood_left_out"]


def test_the_reason_for_a_missing_log_q_is_an_attribute():
    model = linear_regression(N)
    point = AutoDelta(model)
    point(*DATA)
    data = to_arviz(Posterior.from_guide(model, point, *DATA), DATA, draws=10)
    assert set(data["sample_stats"].data_vars) == {"lp"}
    assert "point estimate" in data["posterior"].attrs["log_q_left_out"]


def test_the_random_state_and_the_parameter_store_are_unchanged():
    posterior = variational(network())
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    a, b = (to_arviz(posterior, CLASSES, draws=5, prior_draws=5, seed=1) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert not list(pyro.get_param_store().keys())
    for group in ("posterior", "prior", "posterior_predictive", "prior_predictive"):
        assert a[group].equals(b[group])


def test_data_must_be_those_of_the_posterior():
    posterior = exact(facts={"data": TensorBatches(DATA, None, 0).fingerprint()})
    with pytest.raises(ValueError, match=r"to_arviz: the data are not .* SHA-256 differs"):
        to_arviz(posterior, (X, Y + 1))
    with pytest.raises(ValueError, match=r"to_arviz: .*data=\(x, y\)"):
        to_arviz(posterior, X)
    with pytest.raises(ValueError, match="stands for 20 examples at site 'y', the data have 10"):
        to_arviz(exact(), (X[:10], Y[:10]))


def test_no_more_draws_than_available_can_be_converted():
    with pytest.raises(ValueError, match="from 1 to 250, got 251"):
        to_arviz(exact(), DATA, draws=251)
    with pytest.raises(ValueError, match="at least one draw"):
        to_arviz(variational(network()), CLASSES, draws=0)


def test_arviz_summarises_compares_and_plots_the_result():
    data = to_arviz(exact(), DATA, prior_draws=5)
    table = az.summary(data)
    assert table.loc["bias", "r_hat"] < 1.02
    assert summary(data).equals(table)
    wide = to_arviz(exact(scale=20.0), DATA, prior_draws=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its Pareto shapes are large
        assert list(az.compare({"wide": wide, "exact": data}).index) == ["exact", "wide"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses what matplotlib is about to drop
        assert len(az.plot_trace(data, compact=False)) == 2


def test_independent_draws_have_no_chain_diagnostics():
    table = summary(to_arviz(variational(network()), CLASSES, draws=50, prior_draws=0))
    assert "mean" in table
    assert not {"r_hat", "ess_bulk", "ess_tail"} & set(table)
