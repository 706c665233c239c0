"""Recipes of the published tables: functions of an experiment that return posteriors.

Read :func:`sparse_lenet_5` first: fit, prune, and continue with the remaining units, which is the
same posterior for a fraction of the time. Recipes for priors over groups are in
:mod:`~pyro_bnn.reproduction.groups`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pyro_bnn import compression, guides, likelihoods, priors
from pyro_bnn.compression import Pruned, restrict
from pyro_bnn.models import MLP, lenet_5
from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior
from pyro_bnn.runs.registry import build
from pyro_bnn.runs.settings import Settings, schedules
from pyro_bnn.training import linear_warmup
from pyro_bnn.variational.guide import Guide

from .experiment import Experiment
from .schedules import delayed, linear_decay

__all__ = [
    "RANDOM_LABELS_DROPOUT_RATE",
    "fit_random_labels",
    "pretrained",
    "prune_to_count",
    "sparse_lenet_5",
    "sparse_lenet_300_100",
]

RANDOM_LABELS_DROPOUT_RATE = 0.05  # of binary dropout


def sparse_lenet_300_100(experiment: Experiment) -> Posterior:
    """Return the Sparse VD posterior of LeNet-300-100, fitted to all 60,000 images.

    The recipe is that of the original code, 200 epochs, and of ``pyro-bnn fit lenet-300-100 --data
    mnist``. Pruning at the threshold 3 needs no choice on held-out images.
    """
    settings = Settings("lenet-300-100", data="mnist", seed=experiment.seed)
    model, guide = build(settings, experiment.everything)
    rates = schedules(settings)
    return experiment.fit(
        "1-sparse",
        model,
        guide,
        train=experiment.everything.train,
        epochs=settings.epochs,
        learning_rate=rates.learning_rate,
        kl_weight=rates.kl_weight,
    )


def sparse_lenet_5(experiment: Experiment) -> Posterior:
    """Return the Sparse VD posterior of LeNet-5-Caffe: 101 epochs, pruned three times on the way.

    Each pruning removes the dead units, and the fit continues with the remaining ones.
    """
    torch.manual_seed(experiment.seed)
    model = lenet_5(experiment.num_data)
    guide = guides.SparseVariationalDropout(model)
    warmup = linear_warmup(1, 10)
    posterior = experiment.fit("1-all-units", model, guide, epochs=14, kl_weight=warmup)
    rate = linear_decay(1e-3, 12, 87)
    for name, start, end in (
        ("2-units-left", 0, 12),
        ("3-units-left", 12, 42),
        ("4-units-left", 42, 87),
    ):
        restricted = restrict(posterior, compression.prune(posterior))
        posterior = experiment.fit(
            name, *restricted, epochs=end - start, learning_rate=delayed(rate, start)
        )
    return posterior


def fit_random_labels(experiment: Experiment, name: str, sparse: bool) -> Posterior:
    """Return the posterior of a network with two layers of 1,000 hidden units, 1,794,000 weights.

    The initial weights have the scale of He et al. (2015), and the batches have 500 examples;
    other choices need many more epochs to fit random labels.

    Args:
        experiment: with the labels to fit.
        name: of the fit.
        sparse: whether to fit Sparse VD for 24 epochs, with a KL term that grows over 8, instead of
            binary dropout without weight decay for 150 epochs.
    """
    torch.manual_seed(experiment.seed)
    net = MLP(hidden=(1000, 1000))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if sparse:
        model = BayesianNet(
            net, priors.LogUniform(), likelihoods.Categorical(), experiment.num_data
        )
        return experiment.fit(
            name,
            model,
            guides.SparseVariationalDropout(model),
            epochs=24,
            batch_size=500,
            kl_weight=linear_warmup(0, 8),
            learning_rate=linear_decay(1e-3, 16, 24),
        )
    model = BayesianNet(net, priors.Normal(1e3), likelihoods.Categorical(), experiment.num_data)
    return experiment.fit(
        name,
        model,
        guides.BernoulliDropout(model, {"[35].weight": RANDOM_LABELS_DROPOUT_RATE}),
        epochs=150,
        batch_size=500,
        learning_rate=linear_decay(1e-3, 100, 150),
    )


def pretrained(
    experiment: Experiment,
    net: nn.Module,
    rates: Mapping[str, float],
    epochs: int,
    shifted: bool = False,
) -> nn.Module:
    """Return a network trained under binary dropout and a standard normal prior, at its means.

    Args:
        experiment: where it is trained.
        net: the network; its weights are drawn anew.
        rates: the dropout rate of the inputs of each weight.
        epochs: the learning rate decays in the second half of them.
        shifted: also train on images shifted by one pixel, five times as many images.
    """
    torch.manual_seed(experiment.seed)
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.reset_parameters()
    train = experiment.shifted_train if shifted else experiment.data.train
    model = BayesianNet(net, priors.Normal(1.0), likelihoods.Categorical(), len(train[0]))
    guide: Guide = guides.BernoulliDropout(model, rates)
    rate = linear_decay(1e-3, epochs / 2, epochs)
    posterior = experiment.fit("1-dropout", model, guide, train, epochs=epochs, learning_rate=rate)
    return posterior.mean_network().eval()


def prune_to_count(posterior: Posterior, nonzero: int) -> Pruned:
    """Return the network with at most ``nonzero`` weights, those of smallest log alpha.

    Weights with a log alpha of 3 or more are pruned in any case.
    """
    moments = posterior.moments()
    values = []
    for name in posterior.model.names:
        mean, variance = moments[name]
        values.append(compression.log_alpha(mean, variance).flatten())
    limit = float(torch.cat(values).sort().values[nonzero])
    return compression.prune(posterior, min(3.0, limit))
