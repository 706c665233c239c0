"""The plate over the data, for minibatches that are passed in and for those that it draws.

Statistical tests have fixed seeds; on a fresh seed a comparison at 5 standard errors fails falsely
with a probability of 6e-7 for each number compared.
"""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from tests.network.networks import bayesian, new_weights


def test_targets_must_match_the_inputs_and_num_data():
    model = bayesian(nn.Linear(3, 2), num_data=6)
    with pytest.raises(ValueError, match="same length, got 5 and 4"):
        model(torch.randn(5, 3), torch.randint(2, (4,)))
    with pytest.raises(ValueError, match="at most num_data=6 examples with targets, got 7"):
        model(torch.randn(7, 3), torch.randint(2, (7,)))
    assert model(torch.randn(7, 3)).shape == (7, 2)  # predictions may be for any number


def test_num_data_and_subsample_size_out_of_range_raise():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        bayesian(nn.Linear(3, 2), num_data=0)
    for size in (0, 7):
        with pytest.raises(ValueError, match=f"subsample_size in 1 ... 6 .* got {size}"):
            bayesian(nn.Linear(3, 2), num_data=6, subsample_size=size)


def log_likelihoods(model, weights, x, y):
    return dist.Categorical(logits=model.network_with(weights)(x)).log_prob(y).detach()


def test_a_minibatch_is_scaled_to_the_whole_data_set():
    x, y = torch.randn(6, 3), torch.randint(2, (6,))
    model = bayesian(nn.Linear(3, 2), num_data=30)
    weights = new_weights(model)
    trace = poutine.trace(poutine.condition(model, weights)).get_trace(x, y)
    expected = log_likelihoods(model, weights, x, y).sum() * 30 / 6
    prior = dist.Normal(0.0, 1.0).log_prob(weights["weight"]).sum()
    torch.testing.assert_close(trace.log_prob_sum(lambda name, site: name == "y"), expected)
    torch.testing.assert_close(trace.log_prob_sum(), expected + prior)
    assert (trace.nodes["y"]["scale"], trace.nodes["weight"]["scale"]) == (5.0, 1.0)
    frame = trace.nodes["y"]["cond_indep_stack"][0]
    assert (frame.name, frame.size) == ("data", 6)


def test_the_plate_draws_distinct_examples_and_its_estimate_is_unbiased():
    n, size, draws = 12, 4, 700
    x, y = torch.arange(n, dtype=torch.float).reshape(n, 1) / n, torch.randint(2, (n,))
    model = bayesian(nn.Linear(1, 2), num_data=n, subsample_size=size)
    weights = new_weights(model)
    each = log_likelihoods(model, weights, x, y)
    conditioned, values, seen = poutine.condition(model, weights), [], torch.zeros(n)
    for _ in range(draws):
        trace = poutine.trace(conditioned).get_trace(x, y)
        indices = trace.nodes["data"]["value"]
        assert len(set(indices.tolist())) == size
        seen[indices] += 1
        value = trace.log_prob_sum(lambda name, site: name == "y")
        torch.testing.assert_close(value, each[indices].sum() * n / size)
        torch.testing.assert_close(trace.nodes["y"]["value"], y[indices])
        values.append(value)
    values = torch.stack(values)
    assert (values.mean() - each.sum()).abs() < 5 * values.std() / math.sqrt(draws)
    # each example is drawn with probability size / n
    error = math.sqrt(size / n * (1 - size / n) / draws)
    assert ((seen / draws - size / n).abs() < 5 * error).all()


def test_a_minibatch_may_be_passed_in_although_the_plate_could_draw_one():
    model = bayesian(nn.Linear(3, 2), num_data=12, subsample_size=4)
    trace = poutine.trace(model).get_trace(torch.randn(5, 3), torch.randint(2, (5,)))
    assert trace.nodes["y"]["scale"] == 12 / 5
    assert model(torch.randn(12, 3)).shape == (12, 2)  # without y nothing is subsampled


def test_without_y_the_plate_has_the_size_of_x():
    model = bayesian(nn.Linear(3, 2), num_data=30)
    trace = poutine.trace(model).get_trace(torch.randn(7, 3))
    site = trace.nodes["y"]
    assert (site["scale"], tuple(site["value"].shape), site["is_observed"]) == (1.0, (7,), False)
    assert site["cond_indep_stack"][0].size == 7
