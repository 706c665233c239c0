"""ArviZ: groups, densities against formulas, both interfaces, files.

The conjugate regression has an exact posterior, so leave-one-out densities are known in closed form.
"""

import importlib.util
import json
import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import nn

from pyro_bnn import BayesianNet, Posterior, fit, likelihoods, priors
from pyro_bnn.diagnostics import arviz_versions, save_netcdf, summary, to_arviz
from pyro_bnn.diagnostics.densities import log_densities
from pyro_bnn.diagnostics.guide_draws import draw_guide
from pyro_bnn.diagnostics.importance import leave_one_out, pareto_k
from pyro_bnn.guides import MeanField
from pyro_bnn.models import linear_regression
from pyro_bnn.runtime.minibatches import TensorBatches

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz")

N, NOISE = 20, 0.3
X = torch.linspace(-1, 1, N, dtype=torch.float64)[:, None]
Y = (
    0.7 * X[:, 0]
    - 0.2
    + NOISE * torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
)
DATA = (X, Y)


def conjugate(x=X, y=Y):
    """Mean and covariance of (weights, bias) under standard normal priors."""
    design = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    covariance = torch.linalg.inv(
        design.T @ design / NOISE**2 + torch.eye(design.shape[1], dtype=x.dtype)
    )
    return covariance @ design.T @ y / NOISE**2, covariance


def exact(chains=4, num=250, scale=1.0, seed=0, **more):
    mean, covariance = conjugate()
    noise = torch.randn(
        chains, num, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    draws = mean + scale * noise @ torch.linalg.cholesky(covariance).T
    return Posterior.from_draws(
        linear_regression(N), {"weight": draws[..., :1], "bias": draws[..., 1]}, **more
    )


def network(prior=None, **more):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return BayesianNet(net, prior or priors.Normal(1.0), likelihoods.Categorical(), 10, **more)


GROUPS = {
    *("posterior", "sample_stats", "log_likelihood", "posterior_predictive"),
    *("prior", "prior_predictive", "observed_data"),
}
CLASSES = (torch.linspace(-1, 1, 30).reshape(10, 3), torch.tensor([0, 1] * 5))


def variational(model, data=CLASSES, guide=MeanField, **more):
    return Posterior.from_guide(model, guide(model, **more) if more else guide(model), *data)


# --- densities -------------------------------------------------------------------------------------------------------


def test_log_likelihoods_and_joint_by_hand():
    posterior = exact(2, 30)
    weight, bias = posterior.draws["weight"][..., 0], posterior.draws["bias"]
    data = to_arviz(posterior, DATA, prior_draws=5)
    normal = torch.distributions.Normal(weight[..., None] * X[:, 0] + bias[..., None], NOISE)
    assert np.allclose(data["log_likelihood"]["y"].values, normal.log_prob(Y), rtol=1e-12)
    sites = {name: value.flatten(0, 1) for name, value in posterior.draws.items()}
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = normal.log_prob(Y).sum(-1) + prior.log_prob(weight) + prior.log_prob(bias)
    assert torch.allclose(
        log_densities(posterior, sites, DATA).log_joint, expected.flatten(), rtol=1e-12
    )


def hand_written(x, y=None, batch=None, scale=1.0, mask=None):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    plate, scaled = pyro.plate("data", len(x), subsample_size=batch), poutine.scale(scale=scale)
    with plate as index, scaled, poutine.mask(mask=True if mask is None else mask[index]):
        pyro.sample("y", dist.Normal(x[index] @ weight, 0.5), obs=None if y is None else y[index])


@pytest.mark.parametrize("batch", [None, 1, 4, 7, 10])
def test_every_example_counts_once_whatever_the_plate_draws(batch):
    x, y = torch.linspace(-1, 1, 10)[:, None], torch.linspace(0, 1, 10)
    weight = torch.randn(6, 1)
    posterior = Posterior.from_draws(
        lambda x, y=None: hand_written(x, y, batch, scale=0.5), {"weight": weight[None]}
    )
    found = log_densities(posterior, {"weight": weight}, (x, y))
    terms = torch.distributions.Normal(weight * x[:, 0], 0.5).log_prob(y)
    assert torch.allclose(found.log_likelihood["y"], terms.double(), atol=1e-5)
    # the program's own scale belongs to the joint density, that of the plate does not
    joint = 0.5 * terms.sum(1) + torch.distributions.Normal(0.0, 1.0).log_prob(weight[:, 0])
    assert torch.allclose(found.log_joint, joint.double(), rtol=1e-5)
    assert found.num_data == {"y": 10}


def test_a_network_that_draws_minibatches():
    whole, part = (variational(network(**more)) for more in ({}, {"subsample_size": 3}))
    sites = draw_guide(whole, 20, 0).sites
    a, b = (log_densities(posterior, sites, CLASSES) for posterior in (whole, part))
    assert torch.allclose(a.log_likelihood["y"], b.log_likelihood["y"], atol=1e-5)
    assert torch.allclose(a.log_joint, b.log_joint, rtol=1e-5)
    data = to_arviz(part, CLASSES, draws=10)
    assert data["log_likelihood"]["y"].shape == (1, 10, 10)
    assert data["posterior_predictive"]["y"].shape == (1, 10, 10)


def test_masked_examples_say_nothing():
    x, y, mask = torch.linspace(-1, 1, 10)[:, None], torch.zeros(10), torch.arange(10) > 2
    posterior = Posterior.from_draws(
        lambda x, y=None: hand_written(x, y, 4, mask=mask), {"weight": torch.ones(1, 3, 1)}
    )
    found = log_densities(posterior, {"weight": torch.ones(3, 1)}, (x, y)).log_likelihood["y"]
    assert (found[:, :3] == 0).all()
    assert (found[:, 3:] != 0).all()


def test_a_program_that_cannot_be_vectorised():
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


@pytest.mark.parametrize("guide", [AutoNormal, AutoMultivariateNormal, MeanField])
def test_the_density_of_a_guide(guide):
    """log q of a positive site and a real one, drawn again and evaluated by the moments of their logarithms."""

    def model(x, y=None):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(loc * x, scale), obs=y)

    data = (torch.ones(4), torch.zeros(4))
    made = guide(model, *data) if guide is MeanField else guide(model, init_scale=0.3)
    made(*data)
    drawn = draw_guide(Posterior.from_guide(model, made, *data), 2000, 0)
    values = torch.stack([drawn.sites["scale"].log(), drawn.sites["loc"]], 1).double()
    normal = torch.distributions.MultivariateNormal(values.mean(0), values.T.cov())
    # the density of a log-normal is the normal one of its logarithm, over the value; moments of 2000 draws are known
    # to 5 / sqrt(2000) sd and 5 sqrt(2 / 2000) of a variance, false alarms below 1e-5
    expected = normal.log_prob(values) - values[:, 0]
    assert drawn.reason == ""
    assert (drawn.log_q - expected).mean().abs() < 0.2
    assert torch.corrcoef(torch.stack([drawn.log_q, expected]))[0, 1] > 0.98


def test_guides_without_a_density():
    model = linear_regression(N)
    point = AutoDelta(model)
    point(*DATA)
    posterior = Posterior.from_guide(model, point, *DATA)
    drawn = draw_guide(posterior, 3, 0)
    assert drawn.log_q is None
    assert drawn.reason == "the guide is a point estimate, which has no density"
    data = to_arviz(posterior, DATA, draws=10)
    assert set(data["sample_stats"].data_vars) == {"lp"}
    assert "point estimate" in data["posterior"].attrs["log_q_left_out"]


# --- groups ----------------------------------------------------------------------------------------------------------


def test_groups_of_a_sampler():
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
    assert (attrs["sampler"], attrs["inference_library"], attrs["sampling_time"]) == (
        "hmc",
        "pyro",
        1.5,
    )
    assert json.loads(attrs["facts"])["data"] == facts["data"]


def test_predictions_have_their_moments():
    """Means and variances over 1000 draws, 5 standard errors at 20 examples: false-alarm rate below 1e-4."""
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


def test_groups_of_a_guide():
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


@pytest.mark.parametrize("prior", [priors.LogUniform(), priors.NormalJeffreys()])
def test_an_improper_prior_is_left_out_and_said(prior):
    data = to_arviz(variational(network(prior)), CLASSES, draws=10)
    for group in ("prior", "prior_predictive"):
        assert group not in data.groups()
        assert "improper" in data["posterior"].attrs[f"{group}_left_out"]
    assert "posterior_predictive" in data.groups()


def test_a_model_without_a_plate_has_no_examples():
    def model(x, y=None):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x * weight, 1.0).to_event(1), obs=y)

    posterior = Posterior.from_draws(model, {"weight": torch.randn(2, 10)})
    with pytest.warns(UserWarning, match="needs a plate over the data"):
        data = to_arviz(posterior, (torch.ones(5), torch.zeros(5)), prior_draws=2)
    assert "log_likelihood" not in data.groups()
    assert "plate" in data["posterior"].attrs["log_likelihood_left_out"]


def test_nothing_outside_changes():
    posterior = variational(network())
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    a, b = (to_arviz(posterior, CLASSES, draws=5, prior_draws=5, seed=1) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert not list(pyro.get_param_store().keys())
    for group in ("posterior", "prior", "posterior_predictive", "prior_predictive"):
        assert a[group].equals(b[group])


def test_what_is_refused():
    posterior = exact(facts={"data": TensorBatches(DATA, None, 0).fingerprint()})
    with pytest.raises(ValueError, match="SHA-256 differs"):
        to_arviz(posterior, (X, Y + 1))
    with pytest.raises(ValueError, match=r"data=\(x, y\)"):
        to_arviz(posterior, X)
    with pytest.raises(ValueError, match="stands for 20 examples at site 'y', the data have 10"):
        to_arviz(exact(), (X[:10], Y[:10]))
    with pytest.raises(ValueError, match="from 1 to 250, got 251"):
        to_arviz(exact(), DATA, draws=251)
    with pytest.raises(ValueError, match="at least one draw"):
        to_arviz(variational(network()), CLASSES, draws=0)
    with pytest.raises(ValueError, match=r"got \(20, 1\)"):
        to_arviz(exact(), (X, Y[:, None]))
    with pytest.raises(ValueError, match="but bias have none; there are draws of weight"):
        to_arviz(
            Posterior.from_draws(linear_regression(N), {"weight": torch.zeros(1, 5, 1).double()}),
            DATA,
        )


# --- what ArviZ makes of it ------------------------------------------------------------------------------------------


def leave_one_out_exactly():
    """log p(y_n | all others) of the conjugate regression, by N refits."""
    terms = []
    for n in range(N):
        keep = torch.arange(N) != n
        mean, covariance = conjugate(X[keep], Y[keep])
        row = torch.tensor([float(X[n, 0]), 1.0], dtype=X.dtype)
        terms.append(
            torch.distributions.Normal(
                row @ mean, (row @ covariance @ row + NOISE**2).sqrt()
            ).log_prob(Y[n])
        )
    return torch.stack(terms)


def test_psis_against_exact_leave_one_out():
    """Each example within 0.05 nats; over seeds the largest error of 4000 independent draws is about 0.01."""
    posterior = exact(4, 1000)
    log_likelihood = torch.as_tensor(
        to_arviz(posterior, DATA, prior_draws=0)["log_likelihood"]["y"].values
    )
    found = leave_one_out(log_likelihood)
    assert (found.pointwise - leave_one_out_exactly()).abs().max() < 0.05
    assert found.k.max() < found.threshold == 0.7
    # not the trivial answer, the density of the data in the posterior that has seen them
    seen = log_likelihood.flatten(0, 1).logsumexp(0) - math.log(4000)
    assert (seen - leave_one_out_exactly()).abs().max() > 0.1
    # ArviZ estimates the number of effective draws otherwise, which moves the tail
    theirs = az.loo(to_arviz(posterior, DATA, prior_draws=0))
    assert found.elpd == pytest.approx(theirs.elpd_loo, abs=0.02)
    assert found.standard_error == pytest.approx(theirs.se, abs=0.02)


def test_arviz_works_on_it():
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


def test_no_chain_diagnostics_for_independent_draws():
    table = summary(to_arviz(variational(network()), CLASSES, draws=50, prior_draws=0))
    assert "mean" in table
    assert not {"r_hat", "ess_bulk", "ess_tail"} & set(table)


def test_k_hat_of_good_and_bad_guides():
    """log p - log q of exact draws is constant; draws of a third of the width miss the tails.

    In ten dimensions k-hat of 2000 draws is above 1 at a third of the width and below 0.2 at 1.05 times it, over seeds.
    """
    torch.manual_seed(0)
    x, y = torch.randn(N, 9, dtype=X.dtype), Y
    mean, covariance = conjugate(x, y)
    noise = torch.randn(2000, 10, dtype=X.dtype) @ torch.linalg.cholesky(covariance).T
    found = {}
    for scale in (1.0, 1.05, 0.3):
        draws = mean + scale * noise
        q = torch.distributions.MultivariateNormal(mean, scale**2 * covariance)
        sites = {"weight": draws[:, :-1], "bias": draws[:, -1]}
        posterior = Posterior.from_draws(
            linear_regression(N, 9), {name: value[None] for name, value in sites.items()}
        )
        found[scale] = pareto_k(
            log_densities(posterior, sites, (x, y)).log_joint, q.log_prob(draws)
        )
    assert found[1.0] == 0.0
    assert found[1.05] < 0.5
    assert found[0.3] > 0.7
    with pytest.raises(ValueError, match="at least 25 draws .* got 24"):
        pareto_k(torch.zeros(24), torch.zeros(24))
    with pytest.raises(ValueError, match="NaN or infinity"):
        pareto_k(torch.full((30,), math.inf), torch.zeros(30))


# --- files and versions ----------------------------------------------------------------------------------------------


def test_files_come_back_and_are_never_overwritten(tmp_path):
    data = to_arviz(
        exact(2, 10, statistics={"diverging": torch.zeros(2, 10, dtype=torch.bool)}),
        DATA,
        prior_draws=3,
    )
    path = save_netcdf(data, tmp_path / "deep" / "a.nc")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"a\.nc: this file exists already; .*overwrite=True"):
        save_netcdf(data, path)
    assert path.read_bytes() == before
    assert save_netcdf(data, path, overwrite=True) == path
    assert [file.name for file in path.parent.iterdir()] == ["a.nc"]
    again = az.from_netcdf(str(path))
    assert again["posterior"].equals(data["posterior"])
    assert again["sample_stats"].equals(data["sample_stats"])
    assert again["posterior"].attrs["sampler"] == "unknown"


def test_ratios_without_a_tail():
    weights, shapes = arviz_versions.pareto_smoothed(np.full((2, 50), 3.0))
    assert np.ptp(weights) == 0
    assert (shapes == 0).all()
    tied = np.where(np.arange(100) < 60, 1.0, 0.0) + 1e-3 * (np.arange(100) > 60)
    assert (
        arviz_versions.pareto_smoothed(tied[None])[1][0] > 0.7
    )  # not a good one: it cannot be fitted


@pytest.mark.skipif(importlib.util.find_spec("arviz_base") is None, reason="needs arviz_base")
def test_the_interface_of_arviz_1(monkeypatch, tmp_path):
    import arviz_base
    import arviz_stats

    posterior = exact(4, 1000, statistics={"diverging": torch.zeros(4, 1000, dtype=torch.bool)})
    monkeypatch.setattr(arviz_versions, "is_version_1", lambda: True)
    data = to_arviz(posterior, DATA, prior_draws=5)
    assert type(data).__name__ == "DataTree"
    assert set(data.children) == GROUPS
    assert data["posterior"].attrs["sampler"] == "unknown"
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "example")
    assert float(arviz_stats.loo(data).elpd) == pytest.approx(
        float(leave_one_out_exactly().sum()), abs=0.1
    )
    assert "r_hat" in summary(data)
    independent = to_arviz(variational(network()), CLASSES, draws=50, prior_draws=0)
    assert "r_hat" not in summary(independent)
    path = save_netcdf(data, tmp_path / "b.nc")
    again = arviz_base.from_netcdf(str(path)) if hasattr(arviz_base, "from_netcdf") else None
    assert again is None or again["posterior"]["bias"].equals(data["posterior"]["bias"])
    values = np.random.default_rng(0).normal(size=(4, 200, 2))
    new = [
        f(values)
        for f in (arviz_versions.rank_rhat, arviz_versions.bulk_ess, arviz_versions.mean_ess)
    ]
    ratios = 0.5 * np.random.default_rng(0).normal(size=(2, 2000))
    smoothed = arviz_versions.pareto_smoothed(ratios)
    monkeypatch.setattr(arviz_versions, "is_version_1", lambda: False)
    old = [
        f(values)
        for f in (arviz_versions.rank_rhat, arviz_versions.bulk_ess, arviz_versions.mean_ess)
    ]
    assert np.allclose(new, old, rtol=1e-6)
    theirs = arviz_versions.pareto_smoothed(ratios)
    assert np.allclose(smoothed[1], theirs[1], atol=0.05)
    assert np.allclose(np.exp(smoothed[0]), np.exp(theirs[0]), atol=1e-4)


def test_a_fit_goes_in_whole():
    result = fit(
        linear_regression(N), MeanField(linear_regression(N), *DATA), DATA, epochs=3, progress=False
    )
    data = to_arviz(result.posterior, DATA, draws=20, prior_draws=0)
    assert set(data["posterior"].data_vars) == {"weight", "bias"}
