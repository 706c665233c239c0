"""Experiments: their data, and fits that are run once."""

import dataclasses

import pytest
import torch

from pyro_bnn import BayesianNet, compression, likelihoods, priors
from pyro_bnn.datasets import digits, hold_out
from pyro_bnn.guides import MeanField
from pyro_bnn.models import MLP
from pyro_bnn.reproduction.experiment import shifted_images
from pyro_bnn.reproduction.schedules import delayed, linear_decay
from tests.reproduction.digits import experiment


def test_the_held_out_images_are_the_last_training_images():
    whole = digits()
    data, (x, y) = hold_out(whole, 137)
    assert len(data.x_train) == 1300
    assert torch.equal(x, whole.x_train[1300:])
    assert torch.equal(torch.cat([data.y_train, y]), whole.y_train)


def test_everything_contains_the_held_out_images_again():
    everything, whole = experiment(None).everything, digits()
    assert torch.equal(everything.x_train, whole.x_train)
    assert torch.equal(everything.y_train, whole.y_train)


def test_holding_out_all_examples_of_a_class_is_an_error():
    whole = digits()
    order = whole.y_train.argsort()
    ordered = dataclasses.replace(whole, x_train=whole.x_train[order], y_train=whole.y_train[order])
    with pytest.raises(ValueError, match="last 200 training examples are all there are of class 9"):
        hold_out(ordered, 200)


def test_a_delayed_schedule_starts_in_the_middle():
    rate = linear_decay(0.1, 10, 20)
    assert [delayed(rate, 10)(epoch) for epoch in (0, 5, 10)] == [rate(10), rate(15), 0.0]


@pytest.mark.parametrize(
    ("right", "down", "expected"),
    [
        (1, 0, [[2.0, 0, 1], [5, 3, 4], [8, 6, 7]]),
        (0, 1, [[6.0, 7, 8], [0, 1, 2], [3, 4, 5]]),
    ],
)
def test_images_are_shifted_by_whole_pixels(right, down, expected):
    mean = torch.rand(9)
    image = torch.arange(9.0)[None]
    shifted = shifted_images(image - mean, mean, right, down) + mean
    torch.testing.assert_close(shifted.view(3, 3), torch.tensor(expected))


def test_soft_labels_are_the_teachers_probabilities_of_the_same_images(tmp_path):
    torch.manual_seed(0)
    setup, teacher = experiment(tmp_path), MLP(64, (5,), 10)
    data = setup.distillation_data(teacher)
    assert len(data.x) == len(data.y) == len(data.soft_labels) == 5 * 1300
    assert torch.equal(data.y[1300:2600], setup.data.y_train)
    with torch.no_grad():
        torch.testing.assert_close(data.soft_labels, torch.softmax(teacher(data.x) / 2, -1))
    assert torch.equal(setup.distillation_data(teacher, shifted=False).x, setup.data.x_train)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a finished fit, with its model, posterior and minutes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("experiment")
    net, likelihood = MLP(64, (5,), 10), likelihoods.Categorical()
    model = BayesianNet(net, priors.Normal(1.0), likelihood, num_data=1300)
    setup = experiment(folder)
    posterior = setup.fit("a", model, MeanField(model), epochs=1, compile=False)
    return folder, model, posterior, setup.minutes


def test_a_finished_fit_is_read_and_not_run_again(finished):
    folder, model, posterior, minutes = finished
    setup = experiment(folder)
    again = setup.fit("a", model, MeanField(model), epochs=1, compile=False)
    assert setup.minutes == minutes > 0
    for name, (mean, _) in posterior.moments().items():
        assert torch.equal(mean, again.moments()[name][0])


def test_a_finished_fine_tuning_is_read_and_not_run_again(finished):
    folder, _, posterior, _ = finished
    pruned = compression.prune(posterior, threshold=5.0)
    states = []
    for setup in (experiment(folder), experiment(folder)):
        data = setup.distillation_data(posterior.mean_network(), shifted=False)
        tuned = setup.fine_tune("b", pruned, data, epochs=1)
        states.append(tuned.module.state_dict())
    first, second = states
    before = pruned.module.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], before[name]) for name in first)
