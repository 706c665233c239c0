"""Random labels: Sparse Variational Dropout removes every weight, binary dropout memorizes them."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import nn

from pyro_bnn import DataError, fit, linear_warmup, priors
from pyro_bnn.datasets import digits, with_random_labels
from pyro_bnn.guides import BernoulliDropout, SparseVariationalDropout
from pyro_bnn.models import mlp_classifier

DATA = digits()
HIDDEN = (256, 64)  # 33,408 weights, 23 for each of 1,437 labels


class SparseFit(NamedTuple):
    """The fraction of removed weights, KL and NLL per example (nats), and the mean network."""

    removed: float
    kl: float
    nll: float
    network: nn.Module


def accuracy(net, examples):
    x, y = examples
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()


def model_of(data, prior):
    torch.manual_seed(0)
    return mlp_classifier(len(data.x_train), prior, inputs=64, hidden=HIDDEN)


def fit_sparse(data):
    """Fit Sparse Variational Dropout; the learning rate decays over the second half."""
    model = model_of(data, priors.LogUniform())
    result = fit(
        model,
        SparseVariationalDropout(model),
        data.train,
        epochs=60,
        batch_size=240,
        learning_rate=lambda epoch: 5e-3 * min(2 - epoch / 30, 1),
        kl_weight=linear_warmup(0, 30),
        progress=False,
    )
    log_alpha = torch.cat([value.flatten() for value in result.guide.log_alpha().values()])
    return SparseFit(
        removed=(log_alpha >= 3).float().mean().item(),
        kl=result.history["kl"][-1],
        nll=result.history["data"][-1],
        network=result.posterior.mean_network(),
    )


def test_only_the_training_labels_change():
    data = with_random_labels(DATA, seed=3)
    assert data.x_train is DATA.x_train
    assert data.test == DATA.test
    assert data.y_train.dtype == DATA.y_train.dtype
    assert data.name == "digits with random labels"
    assert torch.equal(data.y_train, with_random_labels(DATA, seed=3).y_train)
    assert not torch.equal(data.y_train, with_random_labels(DATA, seed=4).y_train)
    counts = torch.bincount(data.y_train, minlength=10)
    expected = len(data.y_train) / 10
    # chi squared, 9 degrees of freedom: fails falsely once in 3e5
    assert ((counts - expected) ** 2 / expected).sum() < 42
    agreement = (data.y_train == DATA.y_train).double().mean()
    assert abs(agreement - 0.1) < 5 * (0.09 / len(data.y_train)) ** 0.5  # five standard errors


def test_a_data_set_for_regression_is_a_data_error():
    with pytest.raises(DataError, match="digits with real targets"):
        with_random_labels(dataclasses.replace(DATA, classes=None))


def test_sparse_variational_dropout_removes_all_weights_on_random_labels():
    data = with_random_labels(DATA)
    result = fit_sparse(data)
    assert result.removed >= 0.999
    assert (
        result.kl < 0.02
    )  # 33,408 weights at the clip, log alpha = 8, have 0.004 nats per example
    assert result.nll == pytest.approx(2.3026, abs=0.01)
    # at most that of the commonest label: biases are learned
    commonest = torch.bincount(data.y_train).max().item() / len(data.y_train)
    assert accuracy(result.network, data.train) <= commonest + 0.01
    assert accuracy(result.network, data.test) < 0.15


def test_sparse_variational_dropout_learns_true_labels():
    result = fit_sparse(DATA)
    assert 0.9 < result.removed < 0.999
    assert result.kl > 0.5
    assert result.nll < 0.3
    assert accuracy(result.network, DATA.train) > 0.95
    assert accuracy(result.network, DATA.test) > 0.92


@pytest.mark.parametrize(
    ("epochs", "learning_rate", "least_accuracy"),
    [(100, 1e-2, 0.8), pytest.param(300, 5e-3, 0.99, marks=pytest.mark.slow)],
)
def test_binary_dropout_memorizes_random_labels(epochs, learning_rate, least_accuracy):
    data = with_random_labels(DATA)
    model = model_of(data, priors.Normal(1e3))  # hardly any weight decay
    result = fit(
        model,
        BernoulliDropout(model, {"3.weight": 0.1, "5.weight": 0.1}),
        data.train,
        epochs=epochs,
        batch_size=480,
        learning_rate=lambda epoch: learning_rate * min(2 - 2 * epoch / epochs, 1),
        progress=False,
    )
    net = result.posterior.mean_network()
    assert accuracy(net, data.train) >= least_accuracy
    assert accuracy(net, data.test) < 0.2
