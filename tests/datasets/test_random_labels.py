"""Random labels: a network under Sparse Variational Dropout forgets itself, one under binary dropout memorises them."""

import dataclasses

import pytest
import torch

from pyro_bnn import DataError, fit, linear_warmup, priors
from pyro_bnn.datasets import digits, with_random_labels
from pyro_bnn.guides import BernoulliDropout, SparseVariationalDropout
from pyro_bnn.models import mlp_classifier

DATA = digits()
HIDDEN = (256, 64)  # 33,408 weights, 23 for each of 1,437 labels


def accuracy(net, part):
    with torch.no_grad():
        return (net(part[0]).argmax(1) == part[1]).float().mean().item()


def model_of(data, prior):
    torch.manual_seed(0)
    return mlp_classifier(len(data.x_train), prior, inputs=64, hidden=HIDDEN)


def sparse(data):
    """Train; return the share of weights that are dropped, KL and NLL per example, and the network that is left."""
    model = model_of(data, priors.LogUniform())
    result = fit(
        model,
        SparseVariationalDropout(model),
        data.train,
        epochs=60,
        batch_size=240,
        learning_rate=lambda e: 5e-3 * min(2 - e / 30, 1),
        kl_weight=linear_warmup(0, 30),
        progress=False,
    )
    log_alpha = torch.cat([value.flatten() for value in result.guide.log_alpha().values()])
    dropped = (log_alpha >= 3).float().mean().item()
    return (
        dropped,
        result.history["kl"][-1],
        result.history["data"][-1],
        result.posterior.mean_network(),
    )


def test_only_training_labels_change():
    data = with_random_labels(DATA, seed=3)
    assert data.x_train is DATA.x_train
    assert data.test == DATA.test
    assert data.y_train.dtype == DATA.y_train.dtype
    assert data.name == "digits with random labels"
    assert torch.equal(data.y_train, with_random_labels(DATA, seed=3).y_train)
    assert not torch.equal(data.y_train, with_random_labels(DATA, seed=4).y_train)
    counts = torch.bincount(data.y_train, minlength=10)
    expected = len(data.y_train) / 10
    assert (
        (counts - expected) ** 2 / expected
    ).sum() < 42  # chi squared, 9 degrees of freedom: false once in 3e5
    agreement = (data.y_train == DATA.y_train).double().mean()
    assert abs(agreement - 0.1) < 5 * (0.09 / len(data.y_train)) ** 0.5  # five standard errors


def test_real_targets_are_refused():
    with pytest.raises(DataError, match="digits with real targets"):
        with_random_labels(dataclasses.replace(DATA, classes=None))


def test_sparse_variational_dropout_ends_empty_on_random_labels():
    data = with_random_labels(DATA)
    dropped, kl, nll, net = sparse(data)
    assert dropped >= 0.999
    assert kl < 0.02  # 33,408 weights at the clip, log alpha = 8, have 0.004 nats per example
    assert nll == pytest.approx(2.3026, abs=0.01)
    most = torch.bincount(data.y_train).max().item() / len(data.y_train)
    assert accuracy(net, data.train) <= most + 0.01  # of the commonest label: biases are learned
    assert accuracy(net, data.test) < 0.15


def test_with_true_labels_the_same_stays_alive():
    dropped, kl, nll, net = sparse(DATA)
    assert 0.9 < dropped < 0.999
    assert kl > 0.5
    assert nll < 0.3
    assert accuracy(net, DATA.train) > 0.95
    assert accuracy(net, DATA.test) > 0.92


def test_binary_dropout_memorises_random_labels():
    data = with_random_labels(DATA)
    model = model_of(data, priors.Normal(1e3))  # no weight decay to speak of
    result = fit(
        model,
        BernoulliDropout(model, {"3.weight": 0.1, "5.weight": 0.1}),
        data.train,
        epochs=300,
        batch_size=480,
        learning_rate=lambda e: 5e-3 * min(2 - e / 150, 1),
        progress=False,
    )
    net = result.posterior.mean_network()
    assert accuracy(net, data.train) >= 0.99
    assert accuracy(net, data.test) < 0.2
