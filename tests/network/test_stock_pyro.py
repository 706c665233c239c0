"""BayesianNet under Pyro's own guides, objective, predictive and traces."""

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_bnn import BayesianNet, likelihoods, priors
from pyro_bnn.distributions import ImproperPriorError
from tests.network.networks import bayesian


def test_stock_svi_with_a_stock_guide_learns_the_exact_posterior():
    # one weight, known noise: precision 1 / s^2 + sum x^2 / noise^2
    x = torch.linspace(-1, 1, 20)[:, None]
    y = 0.7 * x[:, 0] + 0.1 * torch.randn(20)
    model = BayesianNet(
        nn.Linear(1, 1, bias=False), priors.Normal(1.0), likelihoods.Gaussian(0.5), num_data=20
    )
    guide = AutoNormal(model)
    svi = SVI(
        model,
        guide,
        pyro.optim.Adam({"lr": 0.05}),
        Trace_ELBO(num_particles=3, vectorize_particles=False),
    )
    for _ in range(150):
        svi.step(x, y)
    precision = 1 + (x.square().sum() / 0.25).item()
    mean = (x[:, 0] @ y / 0.25).item() / precision
    with torch.no_grad():
        q = poutine.trace(guide).get_trace(x, y).nodes["weight_unconstrained"]["fn"].base_dist
    assert abs(q.loc.item() - mean) < 0.2 * precision**-0.5
    assert abs(q.scale.item() / precision**-0.5 - 1) < 0.2
    samples = Predictive(model, guide=guide, num_samples=50)(x)
    assert samples["weight"].numel() == 50
    assert samples["y"].shape == (50, 20)


def test_stock_svi_learns_the_free_parameters():
    x, y = torch.randn(20, 3), torch.randn(20) + 3
    model = BayesianNet(nn.Linear(3, 1), priors.Normal(1.0), likelihoods.Gaussian(), num_data=20)
    guide = AutoNormal(model)
    before = {name: value.detach().clone() for name, value in model.free_parameters().items()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(30):
        svi.step(x, y)
    assert all(
        (value - before[name]).abs().min() > 0.1 for name, value in model.free_parameters().items()
    )


def test_the_log_joint_is_prior_plus_likelihood():
    model = BayesianNet(
        nn.Linear(3, 1),
        {"*": priors.Normal()},
        likelihoods.Gaussian(dist.HalfNormal(1.0)),
        num_data=6,
    )
    x, y = torch.randn(6, 3), torch.randn(6)
    trace = poutine.trace(model).get_trace(x, y)
    sites = [
        name for name, site in trace.nodes.items() if site["type"] == "sample" and name != "data"
    ]
    assert sites == ["weight", "bias", "noise", "y"]
    values = {name: trace.nodes[name]["value"] for name in ("weight", "bias", "noise")}
    expected = (
        dist.Normal(F.linear(x, values["weight"], values["bias"])[:, 0], values["noise"])
        .log_prob(y)
        .sum()
    )
    expected = expected + sum(
        dist.Normal(0.0, 1.0).log_prob(values[name]).sum() for name in ("weight", "bias")
    )
    expected = expected + dist.HalfNormal(1.0).log_prob(values["noise"])
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_the_prior_predictive_raises_for_improper_priors():
    x = torch.randn(5, 3)
    proper = bayesian(nn.Linear(3, 2), priors.Horseshoe())
    assert Predictive(proper, num_samples=4)(x)["y"].shape == (4, 5)
    for improper in (priors.LogUniform(), priors.NormalJeffreys()):
        model = bayesian(nn.Linear(3, 2), improper)
        with pytest.raises(ImproperPriorError, match="LogUniform has no"):
            Predictive(model, num_samples=4)(x)
        with pytest.raises(ImproperPriorError, match="LogUniform has no"):
            model(x)
