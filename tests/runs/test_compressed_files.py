"""Evaluation of compressed files: their errors, and the network that they were made of."""

import dataclasses

import pytest
import torch
from torch import nn

from pyro_bnn.compression.pbnn.codec import load, save
from pyro_bnn.datasets import Dataset, digits
from pyro_bnn.models import LeNet5, LeNet300100
from pyro_bnn.runs.compressed_files import Original, evaluate_file, find_original


def dataset(x, y, name="some"):
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    return Dataset(name, x, y, x, y, zero, one, classes=10)


@pytest.fixture
def like_mnist():
    return dataset(torch.zeros(4, 784), torch.zeros(4, dtype=torch.long), "MNIST")


@pytest.mark.parametrize(
    ("network", "original"),
    [
        (LeNet300100(97, (71, 33)), Original(266_200, "lenet-300-100")),
        (LeNet5(filters=(5, 10), hidden=16), Original(430_500, "lenet-5")),
        (LeNet300100(97, (301, 33)), Original()),
        (nn.Linear(784, 10), Original()),
    ],
)
def test_on_mnist_the_original_is_the_lenet_whose_layers_fit(network, original, like_mnist):
    assert find_original(network, like_mnist, None) == original


def test_the_original_of_a_network_on_other_images_is_not_guessed():
    assert find_original(LeNet300100(20, (30, 20)), digits(), None) == Original()


def test_a_named_original_must_fit_the_network(like_mnist):
    with pytest.raises(ValueError, match="no smaller lenet-300-100"):
        find_original(LeNet5(), like_mnist, "lenet-300-100")
    with pytest.raises(ValueError, match=r"unknown model 'lenet-6'; did you mean lenet-5\?"):
        find_original(LeNet5(), like_mnist, "lenet-6")


@pytest.fixture
def small_file(tmp_path):
    """Return a network, the path of its file, and random data for it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 10))
    save(network, tmp_path / "net.pbnn")
    data = dataset(torch.randn(2500, 3), torch.randint(10, (2500,)))
    return network, tmp_path / "net.pbnn", data


def test_the_error_of_a_file_counts_the_wrong_answers_of_its_network(small_file):
    network, path, data = small_file
    evaluation = evaluate_file(path, data, load(path), Original(1000, "a network"))
    wrong = 0
    for i in range(2500):
        wrong += int(network(data.x_test[i : i + 1]).argmax() != data.y_test[i])
    assert evaluation.error == wrong / 2500
    assert evaluation.rate == 4000 / path.stat().st_size
    assert f"{wrong:,} of 2,500" in str(evaluation)


def test_data_that_the_network_cannot_take_are_refused(small_file):
    _, path, data = small_file
    wider = dataclasses.replace(data, x_test=torch.zeros(2, 5), y_test=data.y_test[:2])
    with pytest.raises(ValueError, match="does not take the inputs of some, 5 numbers"):
        evaluate_file(path, wider, load(path), Original())
    real = dataclasses.replace(data, classes=None)
    with pytest.raises(ValueError, match="the targets of some are real numbers"):
        evaluate_file(path, real, load(path), Original())
