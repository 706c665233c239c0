"""Simulation-based calibration: the exact posterior passes, wrong ones are caught.

Seeds are fixed. A test at level 0.001 over all quantities has a false alarm in at most one of a thousand seeds; the
power against each seeded defect is said where it is tested.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, fit, likelihoods, priors
from pyro_bnn.diagnostics import Simulation, simulate
from pyro_bnn.guides import MeanField
from pyro_bnn.models import hidden_layer_regression, linear_regression
from pyro_bnn.plotting import plot_simulation

N, NOISE = 12, 0.3
MODEL = linear_regression(N)
X = torch.linspace(-1, 2, N)[:, None]
AT = torch.tensor([[-1.0], [0.5], [4.0]])


def conjugate(scale=1.0, shift=0.0, num=63, chains=1, thin=1):
    """An inference that returns exact draws, or draws of another width or place, in posterior standard deviations.

    With ``thin`` above 1 the draws are an autoregression of correlation 1 - 1 / thin between neighbours.
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
    assert (
        abs(found.correlation) < 0.03
    )  # the mean of 200 x 6 correlations of standard error 1 / 8, many dependent
    at, half = found.band(0.999)
    for name in QUANTITIES:  # and none of six ECDFs leaves a band of 99.9%
        assert (found.ecdf(name) - at).abs().le(half + 1e-12).all(), name


def test_chains_are_pooled_and_thinned():
    """As above, level 0.001."""
    assert run(conjugate(num=100, chains=4)).failures(0.001) == {}


def test_draws_are_taken_at_even_distances():
    """Neighbours in the chain correlate by 0.9, draws twenty apart by 0.12; 63 neighbours would by 0.8 or so."""
    assert abs(run(conjugate(num=1260, thin=10), 12).correlation - 0.9**20) < 0.05


def test_the_level_is_that_of_all_quantities_together():
    ranks = torch.cat([torch.arange(192) % 64, torch.arange(20)])
    p = Simulation({"a": ranks}, 63).p_values["a"]
    assert Simulation({"a": ranks}, 63).failures(1.01 * p) == {"a": p}
    both = Simulation({"a": ranks, "b": ranks}, 63)
    assert both.failures(1.01 * p) == {}
    assert set(both.failures(2.02 * p)) == {"a", "b"}


def test_p_values_are_uniform():
    """Over 100 exact calibrations the p-values of one quantity are uniform: Kolmogorov-Smirnov at level 0.001."""
    from scipy.stats import kstest

    generator = torch.Generator().manual_seed(0)
    many = Simulation(
        {str(i): torch.randint(64, (200,), generator=generator) for i in range(400)}, 63
    )
    assert many.bins == 16
    for values in (many.p_values, many.asymmetry):
        assert kstest(list(values.values()), "uniform").pvalue > 0.001


def test_the_band_holds_as_a_whole():
    """Of 1000 ECDFs of uniform ranks 95% stay inside everywhere: 5 standard errors of 0.007."""
    generator = torch.Generator().manual_seed(1)
    many = Simulation(
        {str(i): torch.randint(64, (100,), generator=generator) for i in range(1000)}, 63
    )
    at, half = many.band(0.95)
    inside = [bool(((many.ecdf(name) - at).abs() <= half + 1e-12).all()) for name in many.ranks]
    assert sum(inside) / 1000 == pytest.approx(0.95, abs=0.035)


# --- defects that must be caught -------------------------------------------------------------------------------------


def prior(model, data, seed):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(1, 63, 2, generator=generator)
    return Posterior.from_draws(model, {"weight": draws[..., :1], "bias": draws[..., 1]})


@pytest.mark.parametrize("scale", [0.7, 2.0])
def test_a_wrong_width_is_caught(scale):
    """Over five seeds the likelihood's p-value was below 1e-16 each time, and every other quantity's below 0.004."""
    found = run(conjugate(scale))
    assert set(found.failures(0.001)) == QUANTITIES
    assert found.failures(0.001, "symmetric") == {}


def test_a_shift_is_caught_by_both_tests():
    """Half a standard deviation of the weight; over five seeds its p-values were below 1e-5 and 1e-8."""
    found = run(conjugate(shift=torch.tensor([0.5, 0.0]).double()))
    assert "weight[0]" in found.failures(0.001)
    assert "weight[0]" in found.failures(0.001, "symmetric")


def test_the_prior_in_place_of_the_posterior_is_caught_by_the_likelihood_alone():
    """Among draws from the prior a draw from the prior has a uniform rank, whatever the data: no site can tell.

    But the true value explains the data better than nearly all of them: the p-value is below 1e-100.
    """
    assert set(run(prior).failures(0.001)) == {"log p(y|x,w)"}


def test_draws_that_hang_together_are_said():
    found = run(conjugate(thin=20, num=63), 30)
    assert found.correlation > 0.5
    assert "thin more" in str(found)
    assert "thin more" not in str(run(conjugate(), 30))


def test_mean_field_of_a_correlated_posterior_is_too_narrow_but_not_shifted():
    """The variances of the optimum are the inverses of the precision's diagonal; here 0.55 of the marginal widths."""

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


# --- any model -------------------------------------------------------------------------------------------------------


def test_ranks_by_hand():
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


def test_equal_draws_are_ranked_by_chance():
    """A posterior that is the truth itself: all ranks must come, not one; 200 uniform ranks of 0 ... 9."""
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


def test_guides_networks_and_classes():
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


def test_what_cannot_be_simulated():
    good = conjugate()
    improper = BayesianNet(
        nn.Linear(1, 1, bias=False), priors.LogUniform(), likelihoods.Gaussian(0.3), N
    )
    with pytest.raises(ValueError, match=r"the prior cannot be drawn from: .*Horseshoe"):
        simulate(improper, good, X, progress=False)
    with pytest.raises(
        ValueError, match=r"net.bias have no prior to be drawn from; .*model.freeze\(\)"
    ):
        simulate(
            BayesianNet(nn.Linear(1, 1), priors.Normal(1.0), likelihoods.Gaussian(0.3), N), good, X
        )
    with pytest.raises(ValueError, match="10 simulations and 1 draw"):
        simulate(MODEL, good, X, 9)
    with pytest.raises(ValueError, match="no site 'w'; the sites are weight, bias"):
        simulate(MODEL, good, X, sites=["w"], progress=False)
    with pytest.raises(ValueError, match="at least 99 draws, got one of 63"):
        simulate(MODEL, good, X, draws=99, progress=False)
    with pytest.raises(ValueError, match="'uniform' or 'symmetric'"):
        run(good, 10).failures(test="other")

    def broken(model, data, seed):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError) as error:
        simulate(MODEL, broken, X, progress=False)
    assert error.value.__notes__ == ["simulate: in simulation 0 of 100, seed 0"]


def test_table_and_picture(tmp_path):
    found = run(conjugate(0.7), 50)
    lines = str(found).splitlines()
    assert lines[0].split() == ["quantity", "p", "uniform", "p", "symmetric"]
    assert lines[-1].startswith("50 simulations, 63 draws each: ")
    figure = plot_simulation(found)
    figure.savefig(tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")
    worst = min(found.p_values, key=found.p_values.get)
    assert figure.axes[0].get_title(loc="left").startswith(worst)
    assert sum(bool(axes.lines) for axes in figure.axes) == 6


def test_every_site_of_a_network_by_default():
    model = hidden_layer_regression(N, hidden=2)

    def inference(model, data, seed):
        return fit(
            model, MeanField(model, *data), data, epochs=1, seed=seed, progress=False
        ).posterior

    found = simulate(model, inference, X, 10, draws=3, progress=False)
    assert len(found.ranks) == 2 + 2 + 2 + 1 + 1 + 1
