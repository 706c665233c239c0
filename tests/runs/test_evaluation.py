"""Evaluation of posteriors on test data."""

import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.datasets import digits
from pyro_bnn.guides import MeanField
from pyro_bnn.runs.evaluation import evaluate


def test_a_posterior_of_nothing_but_noise_is_evaluated_without_pruning():
    """As after training on random labels: pruning would remove every weight."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))
    model = BayesianNet(net, priors.LogUniform(), likelihoods.Categorical(), num_data=1437)
    posterior = Posterior.from_guide(model, MeanField(model, init_scale=10.0))
    evaluation = evaluate(posterior, digits(), draws=2)
    assert evaluation.pruned is None
    assert evaluation.metrics["network"] == "posterior mean"
    assert "sparsity" not in evaluation.metrics
    assert "no weight remains" in evaluation.metrics["not_pruned"]
    assert f"not pruned: {evaluation.metrics['not_pruned']}" in str(evaluation)


def test_scores_of_classes_are_those_of_the_averaged_probabilities():
    torch.manual_seed(0)
    data = digits()
    model = BayesianNet(nn.Linear(64, 10), priors.Normal(), likelihoods.Categorical(), 1437)
    posterior = Posterior.from_guide(model, MeanField(model, init_scale=0.1))
    evaluation = evaluate(posterior, data, draws=7)
    probs = posterior.predict(data.x_test, 7).mean.double()
    scores = evaluation.metrics["draws"]
    accuracy = (probs.argmax(-1) == data.y_test).double().mean().item()
    nll = -probs[range(len(probs)), data.y_test].log().mean().item()
    assert scores["number"] == 7
    assert abs(scores["accuracy"] - accuracy) < 1e-12
    assert abs(scores["error"] - (1 - accuracy)) < 1e-12
    assert abs(scores["nll"] - nll) < 1e-5
    uncertainty = evaluation.metrics["uncertainty"]
    total = uncertainty["aleatoric"] + uncertainty["epistemic"]
    assert abs(uncertainty["total"] - total) < 1e-6
