"""Simulation-based calibration passes the exact posterior and detects wrong ones.

Seeds are fixed. A test at level 0.001 over all quantities has a false alarm in at most one of a
thousand seeds; the power against each defect is given where it is tested.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, fit, likelihoods, priors
from pyro_bnn.diagnostics import simulate
from pyro_bnn.guides import MeanField
from pyro_bnn.models import hidden_layer_regression, linear_regression

N, NOISE = 12, 0.3
MODEL = linear_regression(N)
X = torch.linspace(-1, 2, N)[:, None]
AT = torch.tensor([[-1.0], [0.5], [4.0]])


def conjugate(scale=1.0, shift=0.0, num=63, chains=1, thin=1):
    """Return an inference that gives exact draws, or draws of another width or place.

    Shifts are in posterior standard deviations. With ``thin`` above 1 the draws are an
    autoregression with a correlation of 1 - 1 / thin between neighbors.
    """

    def inference(model, data, seed):
        x, y = (part.double() for part in data)
        design = torch.cat([x, torch.ones_like(x)], 1)
        covariance = torch.linalg.inv(design.T @ design / NOISE**2 + torch.eye(2).double())
        mean = covariance @ design.T @ y / NOISE**2
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(chains, num, 2, dtype=torch.float64, generator=generator)
        rho = 1 - 1 / thin
        for step in range(1, num):
            if rho:
                noise[:, step] = rho * noise[:, step - 1] + (1 - rho**2) ** 0.5 * noise[:, step]
        draws = mean + (scale * noise + shift) @ torch.linalg.cholesky(covariance).T
        return Posterior.from_draws(
            model, {"weight": draws[..., :1].float(), "bias": draws[..., 1].float()}
        )

    return inference


def run(inference, simulations=200, seed=0, **more):
    return simulate(MODEL, inference, X, simulations, seed, functions_at=AT, progress=False, **more)


QUANTITIES = {"log p(y|x,w)", "weight[0]", "bias", "f(x)[0]", "f(x)[1]", "f(x)[2]"}


def test_the_exact_posterior_passes():
    """Both tests at level 0.001: at most two false alarms in a thousand seeds."""
    found = run(conjugate())
    assert set(found.ranks) == QUANTITIES
    assert all(
        ranks.shape == (200,) and 0 <= int(ranks.min()) <= int(ranks.max()) <= 63
        for ranks in found.ranks.values()
    )
    assert found.failures(0.001) == {}
    assert found.failures(0.001, "symmetric") == {}
    # the mean of 200 x 6 correlations of standard error 1 / 8, many of them dependent
    assert abs(found.correlation) < 0.03
    at, half = found.band(0.999)
    for name in QUANTITIES:  # and none of six ECDFs leaves a band of 99.9%
        assert (found.ecdf(name) - at).abs().le(half + 1e-12).all(), name


def test_the_exact_posterior_passes_in_four_chains():
    """As above, level 0.001."""
    assert run(conjugate(num=100, chains=4)).failures(0.001) == {}


def test_draws_are_taken_at_equal_distances():
    """Neighbors in the chain correlate by 0.9, draws twenty apart by 0.12."""
    assert abs(run(conjugate(num=1260, thin=10), 12).correlation - 0.9**20) < 0.05


def prior(model, data, seed):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(1, 63, 2, generator=generator)
    return Posterior.from_draws(model, {"weight": draws[..., :1], "bias": draws[..., 1]})


@pytest.mark.parametrize("scale", [0.7, 2.0])
def test_a_wrong_width_is_caught(scale):
    """Over five seeds the p-value of the likelihood was below 1e-16, all others below 0.004."""
    found = run(conjugate(scale))
    assert set(found.failures(0.001)) == QUANTITIES
    assert found.failures(0.001, "symmetric") == {}


def test_a_shift_is_caught_by_both_tests():
    """Half a standard deviation of the weight; over five seeds both p-values were below 1e-5."""
    found = run(conjugate(shift=torch.tensor([0.5, 0.0]).double()))
    assert "weight[0]" in found.failures(0.001)
    assert "weight[0]" in found.failures(0.001, "symmetric")


def test_the_prior_in_place_of_the_posterior_is_caught_by_the_likelihood_alone():
    """Among draws from the prior a draw from the prior has a uniform rank, whatever the data.

    But the true value explains the data better than nearly all of them: the p-value of the
    likelihood is below 1e-100.
    """
    assert set(run(prior).failures(0.001)) == {"log p(y|x,w)"}


def test_correlated_draws_are_reported():
    found = run(conjugate(thin=20, num=63), 30)
    assert found.correlation > 0.5
    assert "thin more" in str(found)
    assert "thin more" not in str(run(conjugate(), 30))


def test_mean_field_of_a_correlated_posterior_is_too_narrow_but_not_shifted():
    """The optimum has the inverse of the precision's diagonal: 0.55 of the marginal widths."""

    def inference(model, data, seed):
        x, y = data
        design = torch.cat([x, torch.ones_like(x)], 1)
        precision = design.T @ design / NOISE**2 + torch.eye(2)
        mean = torch.linalg.solve(precision, design.T @ y / NOISE**2)
        guide = MeanField(model, x, y)
        with torch.no_grad():
            for index, name in enumerate(("weight", "bias")):
                site = getattr(guide.sites, name)
                site.loc.copy_(mean[index].reshape(site.loc.shape))
                site.log_scale.fill_(float(-0.5 * precision[index, index].log()))
        return Posterior.from_guide(model, guide, x, y)

    x = X + 2.0
    found = simulate(MODEL, inference, x, 100, 0, progress=False)
    assert {"weight[0]", "bias"} <= set(found.failures(0.001))
    assert found.failures(0.001, "symmetric") == {}


def test_every_element_of_a_site_is_ranked_reproducibly():
    def model(x, y=None):
        a = pyro.sample("a", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(a.sum() * x, 1.0), obs=y)

    seen = []

    def inference(model, data, seed):
        seen.append((data[1], seed))
        return Posterior.from_draws(
            model, {"a": torch.linspace(-2, 2, 9)[None, :, None, None].expand(1, 9, 2, 3)}
        )

    found = simulate(model, inference, torch.ones(4), 12, 3, draws=9, progress=False)
    assert set(found.ranks) == {"log p(y|x,w)"} | {
        f"a[{i},{j}]" for i in range(2) for j in range(3)
    }
    assert len({seed for _, seed in seen}) == 12
    assert len({float(y.sum()) for y, _ in seen}) == 12
    # the same truth again: y is its sum plus noise, so ranks and data go together
    total = sum(ranks.double() for name, ranks in found.ranks.items() if name.startswith("a["))
    assert (
        torch.corrcoef(torch.stack([total, torch.stack([y.mean() for y, _ in seen]).double()]))[
            0, 1
        ]
        > 0.8
    )
    again = simulate(model, inference, torch.ones(4), 12, 3, draws=9, progress=False)
    assert all(torch.equal(found.ranks[name], again.ranks[name]) for name in found.ranks)


def test_ties_are_ranked_at_random():
    """Where all draws may equal the truth, ranks are still uniform on 0 ... 9."""
    truth = {}

    def model(x, y=None):
        truth["a"] = pyro.sample("a", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(truth["a"] * x, 1.0), obs=y)

    def inference(_, data, seed):
        value = torch.bernoulli(
            torch.full((1, 9), 0.5), generator=torch.Generator().manual_seed(seed)
        )
        return Posterior.from_draws(model, {"a": value})

    found = simulate(model, inference, torch.zeros(3), 200, draws=9, progress=False)
    assert found.failures(0.001) == {}


def test_functions_of_a_network_of_classes_are_ranked():
    net = nn.Linear(2, 3, bias=False)
    model = BayesianNet(net, priors.Normal(1.0), likelihoods.Categorical(), 10)
    x = torch.randn(10, 2)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)

    def inference(model, data, seed):
        return fit(model, MeanField(model), data, epochs=2, seed=seed, progress=False).posterior

    found = simulate(model, inference, x, 10, functions_at=x[:2], sites=(), draws=7, progress=False)
    assert torch.equal(torch.rand(2), expected)
    assert model.training
    assert set(found.ranks) == {"log p(y|x,w)"} | {
        f"f(x)[{n},{c}]" for n in range(2) for c in range(3)
    }


def test_every_site_is_ranked_by_default():
    model = hidden_layer_regression(N, hidden=2)

    def inference(model, data, seed):
        return fit(
            model, MeanField(model, *data), data, epochs=1, seed=seed, progress=False
        ).posterior

    found = simulate(model, inference, X, 10, draws=3, progress=False)
    assert len(found.ranks) == 2 + 2 + 2 + 1 + 1 + 1


def test_a_prior_must_be_proper_and_cover_every_parameter():
    layer, noise = nn.Linear(1, 1, bias=False), likelihoods.Gaussian(0.3)
    improper = BayesianNet(layer, priors.LogUniform(), noise, N)
    with pytest.raises(ValueError, match=r"the prior cannot be drawn from: .*Horseshoe"):
        simulate(improper, conjugate(), X, progress=False)
    free_bias = BayesianNet(nn.Linear(1, 1), priors.Normal(1.0), noise, N)
    with pytest.raises(ValueError, match=r"net.bias have no prior .*model.freeze\(\)"):
        simulate(free_bias, conjugate(), X)


def test_sites_draws_and_simulations_must_be_available():
    with pytest.raises(ValueError, match="at least 10 simulations and 1 draw"):
        simulate(MODEL, conjugate(), X, 9)
    with pytest.raises(ValueError, match="no site 'w'; its sites are weight, bias"):
        simulate(MODEL, conjugate(), X, sites=["w"], progress=False)
    with pytest.raises(ValueError, match="at least 99 draws, got one of 63"):
        simulate(MODEL, conjugate(), X, draws=99, progress=False)


def test_an_error_of_the_inference_names_its_simulation():
    def broken(model, data, seed):
        raise RuntimeError("no chain")

    with pytest.raises(RuntimeError, match="no chain") as error:
        simulate(MODEL, broken, X, progress=False)
    assert error.value.__notes__ == ["simulate: in simulation 0 of 100, seed 0"]
