"""Metrics against numbers by hand, other implementations and closed forms."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from pyro_bnn.metrics import (
    auroc,
    classification_error,
    error_of,
    expected_calibration_error,
    interval_coverage,
    out_of_distribution,
)
from pyro_bnn.posterior.prediction import summarize


def classes(log_probs):
    """Return the prediction of one network."""
    draws = {"probs": log_probs.exp()[None], "log_probs": log_probs[None]}
    return summarize(lambda: iter([draws]))


def test_the_error_of_a_network_is_the_error_of_its_scores():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    x, labels = torch.randn(2500, 3), torch.randint(4, (2500,))
    error = error_of(network, (x, labels))
    assert not network.training
    wrong = sum(int(network(row).argmax() != label) for row, label in zip(x, labels, strict=True))
    assert error == pytest.approx(wrong / 2500)
    assert classification_error(network(x).softmax(-1), labels) == error


def test_the_calibration_error_by_hand_in_two_bins():
    probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55]])
    y = torch.tensor([0, 1, 1, 1])
    # bins of two: 0.55 is right and 0.6 wrong; 0.8 and 0.9 are right
    expected = (abs(1.15 - 1) + abs(1.7 - 2)) / 4
    assert expected_calibration_error(probs, y, bins=2) == pytest.approx(expected)
    assert expected_calibration_error(probs[:, 1], y, bins=2) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("probs", "y", "bins"),
    [
        (torch.ones(3, 2), torch.zeros(2), 5),
        (torch.ones(0, 2), torch.zeros(0), 5),
        (torch.ones(3, 2), torch.zeros(3), 0),
    ],
)
def test_a_calibration_error_needs_examples_labels_and_bins(probs, y, bins):
    with pytest.raises(ValueError, match="the same examples and at least one bin, got"):
        expected_calibration_error(probs, y, bins)


def test_calibrated_probabilities_have_a_small_error_and_exaggerated_ones_a_large_one():
    """10,000 labels drawn from the probabilities; noise has a mean of at most 0.02 in 20 bins."""
    probs = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    y = torch.bernoulli(probs, generator=torch.Generator().manual_seed(1))
    assert expected_calibration_error(probs, y) < 0.03
    sure = torch.where(probs > 0.5, 0.99, 0.01)
    assert expected_calibration_error(sure, y) == pytest.approx(0.99 - 0.75, abs=0.03)


def test_intervals_cover_data_inside_their_ends_and_none_outside():
    """The 90% interval of N(m, s) ends 1.6449 s away from m."""
    mean, stddev = torch.tensor([0.0, 5.0, -2.0]), torch.tensor([1.0, 0.1, 3.0])
    prediction = summarize(lambda: iter([{"mean": mean[None], "stddev": stddev[None]}]))
    for side in (-1, 1):
        inside = mean + side * 1.6449 * 0.99 * stddev
        outside = mean + side * 1.6449 * 1.01 * stddev
        assert interval_coverage(prediction, inside) == 1.0
        assert interval_coverage(prediction, outside) == 0.0
    y = torch.stack([mean[0], mean[1] + 1, mean[2]])
    assert interval_coverage(prediction, y) == pytest.approx(2 / 3)


def test_auroc_counts_pairs_in_order_and_halves_ties():
    torch.manual_seed(0)
    negatives, positives = torch.randint(6, (40,)).float(), torch.randint(2, 8, (30,)).float()
    difference = positives[:, None] - negatives
    pairs = (difference > 0).double() + 0.5 * (difference == 0).double()
    assert auroc(negatives, positives) == pytest.approx(float(pairs.mean()))


def test_auroc_of_large_scores_is_not_saturated():
    assert auroc(torch.tensor([100.0, 200.0]), torch.tensor([150.0, 300.0])) == 0.75


def test_uncertain_predictions_are_recognised_as_other_inputs():
    torch.manual_seed(0)
    confident = classes(torch.randn(50, 3).mul(9).log_softmax(-1))
    uncertain = classes(torch.randn(60, 3).mul(0.1).log_softmax(-1))
    scores = out_of_distribution(confident, uncertain)
    assert set(scores) == {"total", "epistemic"}
    assert scores["total"].auroc > 0.9
    assert scores["total"].other_mean == pytest.approx(math.log(3), abs=0.02)
    assert scores["total"].test_mean == pytest.approx(float(confident.total.mean()))
    assert scores["epistemic"].auroc == 0.5  # one draw has no epistemic uncertainty: all ties


WITHOUT_TORCHVISION = """
import sys
sys.modules["torchvision"] = sys.modules["torchmetrics"] = sys.modules["sklearn"] = None
import torch
from torch import nn
from pyro_bnn import BayesianNet, fit, likelihoods, priors
from pyro_bnn.guides import MeanField
from pyro_bnn.metrics import interval_coverage
x, y = torch.linspace(-1, 1, 20)[:, None], torch.zeros(20)
model = BayesianNet(nn.Linear(1, 1), priors.Normal(1.0), likelihoods.Gaussian(0.3), 20)
posterior = fit(model, MeanField(model), (x, y), epochs=2, progress=False).posterior
print(interval_coverage(posterior.predict(x), y) >= 0)
"""


def test_a_regression_needs_neither_torchvision_nor_scikit_learn():
    command = [sys.executable, "-c", WITHOUT_TORCHVISION]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "True\n", done.stderr
