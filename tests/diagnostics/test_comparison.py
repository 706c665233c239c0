"""A comparison shows its numbers in several forms, and refuses what cannot be compared."""

import pandas
import pyro
import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, compare, likelihoods, priors
from pyro_bnn.guides import MeanField
from pyro_bnn.models import hidden_layer_regression, linear_regression
from pyro_bnn.runtime.minibatches import TensorBatches
from tests.diagnostics.comparisons import AT, TRUE, exact_draws
from tests.diagnostics.regression import DATA, N, X, Y

DIGEST = TensorBatches((X, Y), None, 0).fingerprint()


def test_a_comparison_is_a_text_table_markdown_and_a_data_frame():
    comparison = compare(
        {"half": exact_draws(scale=0.5), "exact": exact_draws()}, AT, TRUE, "exact", data=DATA
    )
    lines = str(comparison).splitlines()
    assert max(map(len, lines[: lines.index("")])) <= 80
    assert "exact (ref)" in lines[0]
    markdown = comparison.to_markdown().splitlines()
    assert markdown[0].startswith("|  | half | exact (ref) |")
    assert {line.count("|") for line in markdown[: markdown.index("")]} == {4}
    frame = comparison.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.loc["half", "sd_ratio_mean"] == pytest.approx(0.5)


def test_the_random_state_and_the_parameter_store_are_unchanged():
    guide = Posterior.from_guide(linear_regression(N), MeanField(linear_regression(N), X, Y))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    pair = {"guide": guide, "exact": exact_draws()}
    a = compare(pair, AT, TRUE, "exact", seed=5, draws=50).rows
    b = compare(pair, AT, TRUE, "exact", seed=5, draws=50).rows
    assert torch.equal(torch.rand(3), expected)
    assert a == b
    assert not list(pyro.get_param_store().keys())


def assert_refused(posteriors, *words, x=AT, y=TRUE, reference="exact", **more):
    with pytest.raises(ValueError, match="compare: ") as error:
        compare(posteriors, x, y, reference, **more)
    for part in words:
        assert part in str(error.value)


def test_at_least_two_posteriors_are_needed_one_of_them_the_reference():
    assert_refused({"exact": exact_draws()}, "at least two posteriors, got exact")
    pair = {"exact": exact_draws(), "b": exact_draws()}
    words = ("got 'exat'", "one of exact, b", "mean 'exact'")
    assert_refused(pair, *words, reference="exat")


def test_inputs_and_data_must_have_the_same_length():
    pair = {"exact": exact_draws(), "b": exact_draws()}
    assert_refused(pair, "15 and 14 examples", y=TRUE[1:])


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (linear_regression(N, prior_scale=1.1), "the log-joint density is"),
        (linear_regression(N, noise=0.31), "the log-likelihood of the same examples is"),
        (linear_regression(N + 1), "{'y': 20} and {'y': 21} examples"),
    ],
)
def test_models_must_have_the_same_densities(model, difference):
    pair = {"exact": exact_draws(), "b": exact_draws(model=model)}
    assert_refused(pair, "exact and b are posteriors of different models", difference)


def test_models_must_have_the_same_sites():
    mlp = hidden_layer_regression(N, hidden=4)
    guide = Posterior.from_guide(mlp, MeanField(mlp, X.float(), Y.float()))
    pair = {"exact": exact_draws(), "b": guide}
    assert_refused(pair, "site 'b1' is missing in the one and (4,) in the other")


def test_models_with_different_learned_parameters_differ():
    def made(bias):
        model = BayesianNet(
            nn.Linear(1, 1), priors.Normal(1.0), likelihoods.Gaussian(0.3), N
        ).double()
        with torch.no_grad():
            model.net.bias.fill_(bias)
        return Posterior.from_guide(model, MeanField(model))

    assert len(compare({"exact": made(0.1), "b": made(0.1)}, AT, TRUE, "exact", draws=30).rows) == 2
    assert_refused({"exact": made(0.1), "b": made(0.11)}, "different models", "model.freeze()")


def test_posteriors_of_different_data_are_not_compared():
    facts = {"data": DIGEST}
    other_facts = {"data": TensorBatches((X, Y + 1), None, 0).fingerprint()}
    pair = {"exact": exact_draws(facts=facts), "b": exact_draws(facts=other_facts)}
    assert_refused(pair, "made from different data", DIGEST[:8])
    pair = {"exact": exact_draws(facts=facts), "b": exact_draws()}
    assert_refused(pair, "exact: the data are not those", data=(X, Y + 1))
    pair = {"exact": exact_draws(facts=facts), "b": exact_draws(facts=facts)}
    assert compare(pair, AT, TRUE, "b", data=DATA).data == DATA
