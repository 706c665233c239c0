"""Every number of a comparison against its closed form, and the notes that go with it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta
from torch import nn
from torch.distributions import Normal

from pyro_bnn import BayesianNet, Posterior, compare, fit, likelihoods, priors
from pyro_bnn.diagnostics import expected_calibration_error
from pyro_bnn.guides import MeanField
from pyro_bnn.models import linear_regression
from tests.diagnostics.comparisons import AT, TRUE, classifier, exact_draws, row
from tests.diagnostics.regression import DATA, NOISE, N, X, Y, conjugate, leave_one_out_exactly


def test_distances_of_scaled_and_shifted_posteriors_are_known():
    comparison = compare(
        {
            "half": exact_draws(scale=0.5),
            "shifted": exact_draws(shift=0.25),
            "same": exact_draws(),
            "exact": exact_draws(),
        },
        AT,
        TRUE,
        "exact",
    )
    half, shifted, same = [row(comparison, name) for name in ("half", "shifted", "same")]
    assert half["sd_ratio_mean"] == pytest.approx(0.5)
    assert half["sd_ratio_min"] == pytest.approx(0.5)
    assert shifted["sd_ratio_mean"] == pytest.approx(1.0)
    assert shifted["wasserstein"] == pytest.approx(0.25)
    assert same["wasserstein"] == pytest.approx(0, abs=1e-12)
    assert same["total_variation"] == pytest.approx(0, abs=1e-12)
    # one half of the reference's chains against the other: not zero, but small
    reference = row(comparison, "exact")
    assert 0 < reference["wasserstein"] < 0.02
    assert any(
        note.startswith("exact: its own distances are those between the two halves")
        for note in comparison.notes
    )


def test_predictive_densities_have_their_closed_forms():
    """Test log-likelihood and total variation of Gaussians; 2000 centered draws, within 0.02."""
    mean, covariance = conjugate()
    design = torch.cat([AT, torch.ones_like(AT)], 1)
    spread = ((design @ covariance) * design).sum(1)
    comparison = compare(
        {"shifted": exact_draws(shift=0.25), "exact": exact_draws()}, AT, TRUE, "exact"
    )
    predictive = Normal(design @ mean, (spread + NOISE**2).sqrt())
    expected = predictive.log_prob(TRUE).mean()
    assert row(comparison, "exact")["test_log_likelihood"] == pytest.approx(
        float(expected), abs=0.02
    )
    tv = (2 * Normal(0.0, 1.0).cdf(0.25 / 2 / predictive.stddev) - 1).mean()
    assert row(comparison, "shifted")["total_variation"] == pytest.approx(float(tv), abs=0.02)
    assert row(comparison, "exact")["coverage_90"] == float(
        ((TRUE - design @ mean).abs() < 1.6449 * predictive.stddev).double().mean()
    )


def test_the_numbers_of_classes_by_hand():
    x, y = torch.randn(12, 2), torch.arange(12) % 3
    weights = [torch.randn(2, 60, 3, 2), torch.randn(2, 60, 3, 2)]
    a, b = (Posterior.from_draws(classifier(), {"0.weight": weight}) for weight in weights)
    probs = [(x @ weight.flatten(0, 1).mT).softmax(-1).double() for weight in weights]
    p, q = (value.mean(0) for value in probs)
    comparison = compare({"a": a, "b": b}, x, y, "b")
    expected = {
        "agreement": (p.argmax(1) == q.argmax(1)).double().mean(),
        "total_variation": (p - q).abs().sum(1).mean() / 2,
        "test_log_likelihood": p.gather(1, y[:, None]).log().mean(),
        "calibration_error": expected_calibration_error(p, y),
        "wasserstein": (probs[0].sort(0).values - probs[1].sort(0).values).abs().mean(),
        "sd_ratio_min": (probs[0].std(0) / probs[1].std(0)).min(),
    }
    for key, value in expected.items():
        assert row(comparison, "a")[key] == pytest.approx(float(value), rel=1e-4), key
    assert "coverage_90" not in row(comparison, "a")


def test_the_numbers_of_binary_data_by_hand():
    torch.manual_seed(0)
    model = BayesianNet(
        nn.Linear(2, 1, bias=False), priors.Normal(1.0), likelihoods.Bernoulli(), 12
    )
    x, y = torch.randn(12, 2), (torch.arange(12) % 2).float()
    a, b = (Posterior.from_draws(model, {"weight": torch.randn(2, 50, 1, 2)}) for _ in range(2))
    comparison = compare({"a": a, "b": b}, x, y, "b")
    p, q = (posterior.functions(x)["prob"].flatten(0, 1).mean(0) for posterior in (a, b))
    assert row(comparison, "a")["total_variation"] == pytest.approx(
        float((p - q).abs().mean()), rel=1e-4
    )
    assert row(comparison, "a")["agreement"] == float(((p > 0.5) == (q > 0.5)).double().mean())


def test_training_data_give_elpd_and_k_hat():
    model = linear_regression(N)
    guide = fit(model, MeanField(model, *DATA), DATA, epochs=5, progress=False).posterior
    parts = {"guide": guide, "exact": exact_draws()}
    without = compare(parts, AT, TRUE, "exact")
    comparison = compare(parts, AT, TRUE, "exact", data=DATA, draws=300)
    assert "elpd_loo" not in row(without, "exact")
    assert any("need the training data" in note for note in without.notes)
    # 1200 draws: the sum over 20 examples is known to about 0.1
    assert row(comparison, "exact")["elpd_loo"] == pytest.approx(
        float(leave_one_out_exactly().sum()), abs=0.4
    )
    assert row(comparison, "exact")["k_hat"] is None
    # five steps from its start the guide is far too narrow
    assert row(comparison, "guide")["k_hat"] > 0.7
    assert any("guide: k-hat" in note and "above 0.7" in note for note in comparison.notes)
    assert row(comparison, "exact")["rhat_max"] < 1.05
    assert 500 < row(comparison, "exact")["ess_min"] <= row(comparison, "exact")["ess_max"]
    assert row(comparison, "guide")["rhat_max"] is None


def test_chains_that_do_not_mix_or_diverge_are_noted():
    stuck = exact_draws()
    stuck.draws["weight"][0] += 1.0
    stuck.draws["bias"][0] += 3.0  # at x = -3 nothing changes: one x that mixes is not enough
    facts = {"warnings": ["100 leapfrog steps hit the limit"], "gradients": 12_345, "seconds": 2.5}
    statistics = {"diverging": torch.arange(2000).view(4, 500) < 3}
    diverged = exact_draws(statistics=statistics, facts=facts, seed=1)
    comparison = compare(
        {"stuck": stuck, "diverged": diverged, "few": exact_draws(1, num=20)},
        AT,
        TRUE,
        "diverged",
        data=DATA,
    )
    text = str(comparison)
    assert row(comparison, "stuck")["rhat_max"] > 1.3
    for words in (
        "stuck: the chains do not mix: R-hat of f(x) is up to",
        "diverged: 3 draws diverged",
        "diverged: 100 leapfrog steps hit the limit",
        "few: no R-hat and no ESS of 1 chains of 20 draws",
        "few: 20 draws are too few for PSIS",
    ):
        assert words in text
    assert (row(comparison, "diverged")["gradients"], row(comparison, "diverged")["seconds"]) == (
        12_345,
        2.5,
    )
    assert all(value is None or value == value for one in comparison.rows for value in one.values())
    assert row(comparison, "few")["elpd_loo"] is None


def test_functions_that_never_change_are_noted():
    constant = Posterior.from_draws(
        linear_regression(N),
        {"weight": torch.ones(2, 50, 1).double(), "bias": torch.zeros(2, 50).double()},
    )
    comparison = compare(
        {"constant": constant, "exact": exact_draws(), "one": exact_draws(1, num=1)},
        AT,
        TRUE,
        "constant",
    )
    assert row(comparison, "exact")["sd_ratio_mean"] is None
    assert "no ratio of sds at 15 of 15 values" in str(comparison)
    assert "f(x) is the same in every draw" in str(comparison)
    assert "1 draw has no standard deviation" in str(comparison)
    still = exact_draws(4, num=50)
    still.draws["bias"][:], still.draws["weight"][:] = torch.arange(4.0)[:, None], 0.0
    assert "still: the chains do not mix" in str(
        compare({"still": still, "exact": exact_draws()}, AT, TRUE, "exact")
    )


def test_a_point_estimate_has_no_k_hat():
    model = linear_regression(N)
    point = AutoDelta(model)
    point(X, Y)
    posterior = Posterior.from_guide(model, point, X, Y)
    comparison = compare(
        {"point": posterior, "exact": exact_draws()}, AT, TRUE, "exact", data=DATA, draws=50
    )
    assert "point: no k-hat: the guide is a point estimate" in str(comparison)
    assert row(comparison, "point")["sd_ratio_mean"] == 0


def test_other_likelihoods_have_an_elpd_but_no_test_log_likelihood():
    def model(x, y=None):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson(rate * x), obs=y)

    a, b = (Posterior.from_draws(model, {"rate": torch.rand(2, 50) + 1}) for _ in range(2))
    x, y = torch.ones(5), torch.ones(5)
    comparison = compare({"a": a, "b": b}, x, y, "b", data=(x, y))
    assert row(comparison, "a")["test_log_likelihood"] is None
    assert row(comparison, "a")["elpd_loo"] is not None
    assert "known for categorical, Bernoulli and Gaussian" in str(comparison)
