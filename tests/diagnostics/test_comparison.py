"""compare: every metric against its closed form, every refusal, and what must not be silent."""

import math

import pandas
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta
from torch import nn
from torch.distributions import Normal

from pyro_bnn import BayesianNet, Posterior, compare, fit, likelihoods, priors
from pyro_bnn.diagnostics import expected_calibration_error
from pyro_bnn.diagnostics.distances import (
    agreement,
    total_variation,
    total_variation_of_mixtures,
    wasserstein_1,
)
from pyro_bnn.guides import MeanField
from pyro_bnn.models import hidden_layer_regression, linear_regression
from pyro_bnn.plotting import plot_comparison
from pyro_bnn.runtime.minibatches import TensorBatches

N, NOISE = 20, 0.3
X = torch.linspace(-1, 1, N, dtype=torch.float64)[:, None]
Y = (
    0.7 * X[:, 0]
    - 0.2
    + NOISE * torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
)
AT = torch.linspace(-3, 3, 15, dtype=torch.float64)[:, None]
TRUE = 0.7 * AT[:, 0] - 0.2
DIGEST = TensorBatches((X, Y), None, 0).fingerprint()


def conjugate():
    design = torch.cat([X, torch.ones_like(X)], 1)
    covariance = torch.linalg.inv(design.T @ design / NOISE**2 + torch.eye(2, dtype=X.dtype))
    return covariance @ design.T @ Y / NOISE**2, covariance


def exact(chains=4, num=500, scale=1.0, shift=0.0, seed=0, model=None, **more):
    mean, covariance = conjugate()
    noise = torch.randn(
        chains, num, 2, dtype=X.dtype, generator=torch.Generator().manual_seed(seed)
    )
    draws = mean + scale * (noise - noise.mean((0, 1))) @ torch.linalg.cholesky(covariance).T
    draws = {"weight": draws[..., :1], "bias": draws[..., 1] + shift}
    return Posterior.from_draws(model or linear_regression(N), draws, **more)


def row(comparison, name):
    return next(row for row in comparison.rows if row["method"] == name)


# --- distances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(300, 300), (500, 300), (7, 11), (1, 4)])
def test_wasserstein_against_the_integral_of_quantile_functions(sizes):
    a, b = (
        torch.randn(size, 3, dtype=torch.float64) * (1 + k) + 2 * k for k, size in enumerate(sizes)
    )
    # W1 is also the integral of |F - G| over the values
    values = torch.cat([a, b]).sort(0).values
    gaps = [
        ((part.T[:, None, :] <= values.T[:, :-1, None]).double().mean(-1)).T for part in (a, b)
    ]  # distribution functions between neighbours
    expected = ((gaps[0] - gaps[1]).abs() * values.diff(dim=0)).sum(0)
    assert torch.allclose(wasserstein_1(a, b), expected, rtol=1e-9)


def test_wasserstein_of_shifted_and_of_scaled_samples():
    a = torch.randn(4000, 2, dtype=torch.float64)
    assert torch.allclose(wasserstein_1(a, a - 1.7), torch.tensor([1.7, 1.7]).double())
    assert torch.allclose(wasserstein_1(a, 2 * a), a.abs().mean(0))
    # of two normals of equal variance the difference of the means; 4000 draws, 5 standard errors
    b = 3 + torch.randn(4000, 2, dtype=torch.float64)
    assert (wasserstein_1(a, b) - 3).abs().max() < 5 * math.sqrt(2 / 4000)


def test_total_variation_of_known_distributions():
    p, q = (
        torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]),
        torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]]),
    )
    assert total_variation(p, q).tolist() == pytest.approx([0.3, 1.0])
    assert (
        agreement(torch.tensor([[0.6, 0.4], [0.6, 0.4]]), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
        == 0.5
    )
    # N(0, s) and N(d, s): 2 Phi(d / 2s) - 1
    for shift, scale in ((0.5, 1.0), (2.0, 0.3), (0.0, 0.01)):
        one = {"mean": torch.zeros(3, 1), "stddev": torch.full((3, 1), scale)}
        other = {"mean": torch.full((2, 1), shift), "stddev": torch.full((2, 1), scale)}
        expected = 2 * Normal(0.0, 1.0).cdf(torch.tensor(shift / scale / 2)) - 1
        assert total_variation_of_mixtures(one, other).item() == pytest.approx(
            float(expected), abs=1e-3
        )
    # N(0, 1) and N(0, 2) cross at x^2 = (8 / 3) ln 2
    cross = torch.tensor(math.sqrt(8 / 3 * math.log(2)))
    expected = 2 * (Normal(0.0, 1.0).cdf(cross) - Normal(0.0, 2.0).cdf(cross))
    parts = [
        {"mean": torch.zeros(1, 2), "stddev": torch.full((1, 2), scale)} for scale in (1.0, 2.0)
    ]
    assert torch.allclose(total_variation_of_mixtures(*parts), expected.double(), atol=1e-3)


# --- the table -------------------------------------------------------------------------------------------------------


def test_distances_of_scaled_and_of_shifted_posteriors():
    found = compare(
        {"half": exact(scale=0.5), "shifted": exact(shift=0.25), "same": exact(), "exact": exact()},
        AT,
        TRUE,
        "exact",
    )
    half, shifted, same = (row(found, name) for name in ("half", "shifted", "same"))
    assert (half["sd_ratio_mean"], half["sd_ratio_min"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (shifted["sd_ratio_mean"], shifted["wasserstein"]) == (
        pytest.approx(1.0),
        pytest.approx(0.25),
    )
    assert (same["wasserstein"], same["total_variation"]) == (
        pytest.approx(0, abs=1e-12),
        pytest.approx(0, abs=1e-12),
    )
    # the reference against itself: one half of the chains against the other; not zero, and small
    reference = row(found, "exact")
    assert 0 < reference["wasserstein"] < 0.02
    assert any(
        note.startswith("exact: its own distances are those between the two halves")
        for note in found.notes
    )


def test_predictive_densities_against_closed_forms():
    """Test log-likelihood and total variation of Gaussian predictives; 2000 centred draws, within 0.02."""
    mean, covariance = conjugate()
    design = torch.cat([AT, torch.ones_like(AT)], 1)
    spread = ((design @ covariance) * design).sum(1)
    found = compare({"shifted": exact(shift=0.25), "exact": exact()}, AT, TRUE, "exact")
    predictive = Normal(design @ mean, (spread + NOISE**2).sqrt())
    expected = predictive.log_prob(TRUE).mean()
    assert row(found, "exact")["test_log_likelihood"] == pytest.approx(float(expected), abs=0.02)
    tv = (2 * Normal(0.0, 1.0).cdf(0.25 / 2 / predictive.stddev) - 1).mean()
    assert row(found, "shifted")["total_variation"] == pytest.approx(float(tv), abs=0.02)
    assert row(found, "exact")["coverage_90"] == float(
        ((TRUE - design @ mean).abs() < 1.6449 * predictive.stddev).double().mean()
    )


def classifier(n=12):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3, bias=False))
    return BayesianNet(net, priors.Normal(1.0), likelihoods.Categorical(), n)


def test_classes_by_hand():
    x, y = torch.randn(12, 2), torch.arange(12) % 3
    weights = [torch.randn(2, 60, 3, 2), torch.randn(2, 60, 3, 2)]
    a, b = (Posterior.from_draws(classifier(), {"0.weight": weight}) for weight in weights)
    probs = [(x @ weight.flatten(0, 1).mT).softmax(-1).double() for weight in weights]
    p, q = (value.mean(0) for value in probs)
    found = compare({"a": a, "b": b}, x, y, "b")
    expected = {
        "agreement": (p.argmax(1) == q.argmax(1)).double().mean(),
        "total_variation": (p - q).abs().sum(1).mean() / 2,
        "test_log_likelihood": p.gather(1, y[:, None]).log().mean(),
        "calibration_error": expected_calibration_error(p, y),
        "wasserstein": (probs[0].sort(0).values - probs[1].sort(0).values).abs().mean(),
        "sd_ratio_min": (probs[0].std(0) / probs[1].std(0)).min(),
    }
    for key, value in expected.items():
        assert row(found, "a")[key] == pytest.approx(float(value), rel=1e-4), key
    assert "coverage_90" not in row(found, "a")


def test_yes_or_no():
    torch.manual_seed(0)
    model = BayesianNet(
        nn.Linear(2, 1, bias=False), priors.Normal(1.0), likelihoods.Bernoulli(), 12
    )
    x, y = torch.randn(12, 2), (torch.arange(12) % 2).float()
    a, b = (Posterior.from_draws(model, {"weight": torch.randn(2, 50, 1, 2)}) for _ in range(2))
    found = compare({"a": a, "b": b}, x, y, "b")
    p, q = (posterior.functions(x)["prob"].flatten(0, 1).mean(0) for posterior in (a, b))
    assert row(found, "a")["total_variation"] == pytest.approx(
        float((p - q).abs().mean()), rel=1e-4
    )
    assert row(found, "a")["agreement"] == float(((p > 0.5) == (q > 0.5)).double().mean())


def test_training_data_make_elpd_and_k_hat():
    data = (X, Y)
    guide = fit(
        linear_regression(N), MeanField(linear_regression(N), *data), data, epochs=5, progress=False
    ).posterior
    parts = {"guide": guide, "exact": exact()}
    without, found = (
        compare(parts, AT, TRUE, "exact"),
        compare(parts, AT, TRUE, "exact", data=data, draws=300),
    )
    assert "elpd_loo" not in row(without, "exact")
    assert any("need the training data" in note for note in without.notes)
    terms = []
    for n in range(N):  # exact leave-one-out densities, by N refits
        keep = torch.arange(N) != n
        design = torch.cat([X, torch.ones_like(X)], 1)
        covariance = torch.linalg.inv(
            design[keep].T @ design[keep] / NOISE**2 + torch.eye(2, dtype=X.dtype)
        )
        mean = covariance @ design[keep].T @ Y[keep] / NOISE**2
        terms.append(
            Normal(
                design[n] @ mean, (design[n] @ covariance @ design[n] + NOISE**2).sqrt()
            ).log_prob(Y[n])
        )
    # 1200 draws: the sum over 20 examples is known to about 0.1
    assert row(found, "exact")["elpd_loo"] == pytest.approx(float(sum(terms)), abs=0.4)
    assert row(found, "exact")["k_hat"] is None
    # five steps from its start the guide is far too narrow
    assert row(found, "guide")["k_hat"] > 0.7
    assert any("guide: k-hat" in note and "above 0.7" in note for note in found.notes)
    assert row(found, "exact")["rhat_max"] < 1.05
    assert 500 < row(found, "exact")["ess_min"] <= row(found, "exact")["ess_max"]
    assert row(found, "guide")["rhat_max"] is None


# --- what must not be silent -----------------------------------------------------------------------------------------


def test_what_is_wrong_with_chains_is_said():
    stuck = exact()
    stuck.draws["weight"][0] += 1.0
    stuck.draws["bias"][0] += 3.0  # at x = -3 nothing changes: one x that mixes is not enough
    facts = {"warnings": ["100 leapfrog steps hit the limit"], "gradients": 12_345, "seconds": 2.5}
    statistics = {"diverging": torch.arange(2000).view(4, 500) < 3}
    diverged = exact(statistics=statistics, facts=facts, seed=1)
    found = compare(
        {"stuck": stuck, "diverged": diverged, "few": exact(1, 20)},
        AT,
        TRUE,
        "diverged",
        data=(X, Y),
    )
    text = str(found)
    assert row(found, "stuck")["rhat_max"] > 1.3
    for words in (
        "stuck: the chains do not mix: R-hat of f(x) is up to",
        "diverged: 3 draws diverged",
        "diverged: 100 leapfrog steps hit the limit",
        "few: no R-hat and no ESS of 1 chains of 20 draws",
        "few: 20 draws are too few for PSIS",
    ):
        assert words in text
    assert (row(found, "diverged")["gradients"], row(found, "diverged")["seconds"]) == (12_345, 2.5)
    assert all(value is None or value == value for one in found.rows for value in one.values())
    assert row(found, "few")["elpd_loo"] is None


def test_constant_functions_are_said():
    constant = Posterior.from_draws(
        linear_regression(N),
        {"weight": torch.ones(2, 50, 1).double(), "bias": torch.zeros(2, 50).double()},
    )
    found = compare(
        {"constant": constant, "exact": exact(), "one": exact(1, 1)}, AT, TRUE, "constant"
    )
    assert row(found, "exact")["sd_ratio_mean"] is None
    assert "no ratio of sds at 15 of 15 values" in str(found)
    assert "f(x) is the same in every draw" in str(found)
    assert "1 draw has no standard deviation" in str(found)
    still = exact(4, 50)
    still.draws["bias"][:], still.draws["weight"][:] = torch.arange(4.0)[:, None], 0.0
    assert "still: the chains do not mix" in str(
        compare({"still": still, "exact": exact()}, AT, TRUE, "exact")
    )


def test_guides_without_a_density_are_said():
    model = linear_regression(N)
    point = AutoDelta(model)
    point(X, Y)
    posterior = Posterior.from_guide(model, point, X, Y)
    found = compare(
        {"point": posterior, "exact": exact()}, AT, TRUE, "exact", data=(X, Y), draws=50
    )
    assert "point: no k-hat: the guide is a point estimate" in str(found)
    assert row(found, "point")["sd_ratio_mean"] == 0


def test_other_likelihoods():
    def model(x, y=None):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson(rate * x), obs=y)

    a, b = (Posterior.from_draws(model, {"rate": torch.rand(2, 50) + 1}) for _ in range(2))
    x, y = torch.ones(5), torch.ones(5)
    found = compare({"a": a, "b": b}, x, y, "b", data=(x, y))
    assert row(found, "a")["test_log_likelihood"] is None
    assert row(found, "a")["elpd_loo"] is not None
    assert "known for categorical, Bernoulli and Gaussian" in str(found)


# --- refusals --------------------------------------------------------------------------------------------------------


def refuses(posteriors, *words, x=AT, y=TRUE, reference="exact", **more):
    with pytest.raises(ValueError, match="compare: ") as error:
        compare(posteriors, x, y, reference, **more)
    for part in words:
        assert part in str(error.value)


def test_what_cannot_be_compared():
    refuses({"exact": exact()}, "at least two posteriors, got exact")
    refuses(
        {"exact": exact(), "b": exact()},
        "'exat'",
        "one of exact, b",
        "mean 'exact'",
        reference="exat",
    )
    refuses({"exact": exact(), "b": exact()}, "15 and 14 examples", y=TRUE[1:])
    other = linear_regression(N, prior_scale=1.1)
    refuses(
        {"exact": exact(), "b": exact(model=other)},
        "exact and b",
        "different models",
        "log-joint density",
    )
    refuses(
        {"exact": exact(), "b": exact(model=linear_regression(N, noise=0.31))},
        "log-likelihood of the same",
    )
    refuses(
        {"exact": exact(), "b": exact(model=linear_regression(N + 1))},
        "{'y': 20} and {'y': 21} examples",
    )
    mlp = hidden_layer_regression(N, hidden=4)
    guide = Posterior.from_guide(mlp, MeanField(mlp, X.float(), Y.float()))
    refuses({"exact": exact(), "b": guide}, "site 'b1' is missing in the one and (4,) in the other")


def test_learned_parameters_make_another_model():
    def made(bias):
        model = BayesianNet(
            nn.Linear(1, 1), priors.Normal(1.0), likelihoods.Gaussian(0.3), N
        ).double()
        with torch.no_grad():
            model.net.bias.fill_(bias)
        return Posterior.from_guide(model, MeanField(model))

    assert len(compare({"exact": made(0.1), "b": made(0.1)}, AT, TRUE, "exact", draws=30).rows) == 2
    refuses({"exact": made(0.1), "b": made(0.11)}, "different models", "model.freeze()")


def test_data_must_be_the_same():
    facts, others = {"data": DIGEST}, {"data": TensorBatches((X, Y + 1), None, 0).fingerprint()}
    refuses(
        {"exact": exact(facts=facts), "b": exact(facts=others)},
        "made from different data",
        DIGEST[:8],
    )
    refuses(
        {"exact": exact(facts=facts), "b": exact()},
        "exact: the data are not those",
        data=(X, Y + 1),
    )
    assert (
        compare(
            {"exact": exact(facts=facts), "b": exact(facts=facts)}, AT, TRUE, "b", data=(X, Y)
        ).data
        is not None
    )


# --- what people see -------------------------------------------------------------------------------------------------


def test_table_frame_and_picture(tmp_path):
    found = compare({"half": exact(scale=0.5), "exact": exact()}, AT, TRUE, "exact", data=(X, Y))
    lines = str(found).splitlines()
    assert max(map(len, lines[: lines.index("")])) <= 80
    assert "exact (ref)" in lines[0]
    markdown = found.to_markdown().splitlines()
    assert markdown[0].startswith("|  | half | exact (ref) |")
    assert {line.count("|") for line in markdown[: markdown.index("")]} == {4}
    frame = found.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.loc["half", "sd_ratio_mean"] == pytest.approx(0.5)
    figure = plot_comparison(found)
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    below = figure.axes[-1]
    assert below.lines[0].get_ydata() == pytest.approx(0.5)
    band = figure.axes[0].lines[0].get_ydata()
    assert band == pytest.approx(found.curves["half"].mean.numpy())


def test_picture_of_classes():
    x, y = torch.randn(12, 2), torch.arange(12) % 3
    parts = {
        name: Posterior.from_draws(classifier(), {"0.weight": torch.randn(2, 30, 3, 2)})
        for name in "ab"
    }
    figure = plot_comparison(compare(parts, x, y, "b"))
    assert len(figure.axes) == 3
    assert len(figure.axes[0].lines[1].get_xdata()) == 36


def test_nothing_outside_changes():
    guide = Posterior.from_guide(linear_regression(N), MeanField(linear_regression(N), X, Y))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    a, b = (
        compare({"guide": guide, "exact": exact()}, AT, TRUE, "exact", seed=5, draws=50).rows
        for _ in range(2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert a == b
    assert not list(pyro.get_param_store().keys())
