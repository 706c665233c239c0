"""Recipes of the published tables: each is a function of a workbench that returns pruned networks.

Read :func:`sparse_lenet_5` first: fit, prune, and go on with the units that are left, which is the same posterior for a
fraction of the time. Networks that were pruned to a given size are fine-tuned towards what a network trained with
dropout predicts, that from which the posterior started: labels say which class, a teacher also says how sure to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyro_bnn import compression, guides, likelihoods, priors
from pyro_bnn.compression.pruning.noise_measures import GroupMeasure
from pyro_bnn.compression.pruning.pruned_network import Pruned
from pyro_bnn.compression.pruning.restriction import restrict
from pyro_bnn.models import MLP, lenet_5
from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior
from pyro_bnn.runs.registry import build
from pyro_bnn.runs.settings import Settings, schedules
from pyro_bnn.training import linear_warmup

from .experiment import DistillationData, Experiment, delayed, linear_decay

__all__ = [
    "Method",
    "Stage",
    "best_groups",
    "by_groups",
    "prune_to_count",
    "group_horseshoe",
    "fit_random_labels",
    "random_labels_dropout_rate",
    "normal_jeffreys",
    "pretrained",
    "pruned_to",
    "sparse_lenet_5",
    "sparse_lenet_300_100",
]


def sparse_lenet_300_100(experiment: Experiment) -> Posterior:
    """Return the Sparse VD posterior of LeNet-300-100 by the recipe of its original code: 200 epochs of all 60,000
    images.

    This is ``pyro-bnn fit lenet-300-100 --data mnist``, threshold 3, no choice to be made on held-out images.
    """
    settings = Settings("lenet-300-100", data="mnist", seed=experiment.seed)
    model, guide = build(settings, experiment.everything)
    learning_rate, kl_weight = schedules(settings)
    return experiment.fit(
        "1-sparse",
        model,
        guide,
        train=experiment.everything.train,
        epochs=settings.epochs,
        learning_rate=learning_rate,
        kl_weight=kl_weight,
    )


def sparse_lenet_5(experiment: Experiment) -> Posterior:
    """Return the Sparse VD posterior of LeNet-5-Caffe: 101 epochs, in which dead units leave three times."""
    torch.manual_seed(experiment.seed)
    model = lenet_5(experiment.num_data)
    guide: Any = guides.SparseVariationalDropout(model)
    posterior = experiment.fit(
        "1-all-units", model, guide, epochs=14, kl_weight=linear_warmup(1, 10)
    )
    rate = linear_decay(1e-3, 12, 87)
    for name, start, end in (
        ("2-units-left", 0, 12),
        ("3-units-left", 12, 42),
        ("4-units-left", 42, 87),
    ):
        model, guide = restrict(posterior, compression.prune(posterior))
        posterior = experiment.fit(
            name, model, guide, epochs=end - start, learning_rate=delayed(rate, start)
        )
    return posterior


random_labels_dropout_rate = 0.05  # of binary dropout


def fit_random_labels(experiment: Experiment, name: str, sparse: bool) -> Posterior:
    """Return the posterior of a network with two layers of 1,000 hidden units, 1,794,000 weights.

    Binary dropout without weight decay, 150 epochs; or Sparse VD, 24 epochs, whose KL term rises over 8. Weights start
    as large as He et al. (2015) have them, and batches are of 500: else it takes many more epochs to memorise.
    """
    torch.manual_seed(experiment.seed)
    net = MLP(hidden=(1000, 1000))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    prior = priors.LogUniform() if sparse else priors.Normal(1e3)
    model = BayesianNet(net, prior, likelihoods.Categorical(), experiment.num_data)
    options: dict[str, Any] = {"batch_size": 500}
    if sparse:
        guide: Any = guides.SparseVariationalDropout(model)
        options |= {
            "epochs": 24,
            "kl_weight": linear_warmup(0, 8),
            "learning_rate": linear_decay(1e-3, 16, 24),
        }
    else:
        guide = guides.BernoulliDropout(model, {"[35].weight": random_labels_dropout_rate})
        options |= {"epochs": 150, "learning_rate": linear_decay(1e-3, 100, 150)}
    return experiment.fit(name, model, guide, **options)


# --- groups -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A group prior, the guide that goes with it, and what its groups are measured by."""

    name: str
    prior: Callable[[], Any]
    guide: Callable[[BayesianNet], Any]
    groups_by: GroupMeasure


normal_jeffreys = Method(
    "group normal-Jeffreys", priors.NormalJeffreys, guides.GroupNormalJeffreys, "scale"
)
group_horseshoe = Method(
    "group horseshoe",
    lambda: priors.Horseshoe(1e-5, decomposed=True),
    guides.GroupHorseshoe,
    "weights",
)


@dataclass(frozen=True)
class Stage:
    """Epochs of the posterior; what to prune to then, a number of weights or groups to be left of each layer; passes of
    fine-tuning.
    """

    epochs: int
    left: int | tuple[int, ...]
    tuning: int


def pretrained(
    experiment: Experiment,
    net: nn.Module,
    rates: dict[str, float],
    epochs: int,
    shifted: bool = False,
) -> nn.Module:
    """Return the network trained under binary dropout and a standard normal prior, at its means.

    Args:
        experiment: where it is trained.
        net: the network, whose weights are drawn anew.
        rates: of dropout, by the weights whose inputs are dropped.
        epochs: the learning rate falls in the second half of them.
        shifted: train on images moved by one pixel too, five times as many.
    """
    torch.manual_seed(experiment.seed)
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.reset_parameters()
    train = experiment.shifted_train if shifted else experiment.data.train
    model = BayesianNet(net, priors.Normal(1.0), likelihoods.Categorical(), len(train[0]))
    guide = guides.BernoulliDropout(model, rates)
    rate = linear_decay(1e-3, epochs / 2, epochs)
    posterior = experiment.fit("1-dropout", model, guide, train, epochs=epochs, learning_rate=rate)
    return posterior.mean_network().eval()


def by_groups(
    experiment: Experiment, lesson: DistillationData, method: Method, stages: Sequence[Stage]
) -> Iterator[Pruned]:
    """Yield the network pruned by groups and fine-tuned, once for each stage that has fine-tuning.

    The posterior starts at the teacher, with a KL term that rises over the first stage; it goes on with the units that
    are left, at a learning rate that falls to zero in the second half of a stage.
    """
    model = BayesianNet(
        lesson.teacher, {"*.weight": method.prior()}, likelihoods.Categorical(), experiment.num_data
    )
    guide = method.guide(model)
    name = "2-groups"
    options: dict[str, Any] = {"kl_weight": linear_warmup(0, stages[0].epochs)}
    for number, stage in enumerate(stages, 3):
        posterior = experiment.fit(name, model, guide, epochs=stage.epochs, **options)
        if isinstance(stage.left, int):
            pruned = pruned_to(posterior, stage.left, method.groups_by)
        else:
            posterior, pruned = best_groups(posterior, stage.left, method.groups_by)
        if stage.tuning:
            yield experiment.fine_tune(f"{number}-tuned", pruned, lesson, epochs=stage.tuning)
        if number - 2 < len(stages):
            model, guide = restrict(posterior, pruned)
            epochs = stages[number - 2].epochs
            name, options = (
                f"{number}-groups-left",
                {"learning_rate": linear_decay(1e-3, epochs / 2, epochs)},
            )


def pruned_to(posterior: Posterior, size: int, groups_by: GroupMeasure = "scale") -> Pruned:
    """Return the network pruned by groups at the largest threshold that leaves at most ``size`` weights, to within a
    thousandth: one threshold for all layers.

    Raises:
        ValueError: the posterior has no groups; no threshold leaves so few.
    """
    measures = compression.group_measures(posterior, groups_by)
    if not measures:
        raise ValueError("pruned_to: the posterior has no groups; fit a guide under a group prior")
    values = torch.cat([measure.flatten() for measure in measures.values()])
    values = values[values.isfinite()]
    low, high, best = float(values.min()), float(values.max()) + 1, None
    while high - low > 1e-3:
        middle = (low + high) / 2
        try:
            pruned = compression.prune(posterior, group_threshold=middle, groups_by=groups_by)
        except compression.EmptyNetworkError:
            low = middle
            continue
        if pruned.dense <= size:
            low, best = middle, pruned
        else:
            high = middle
    if best is None:
        raise ValueError(f"pruned_to: no threshold leaves between one and {size} weights")
    return best


def prune_to_count(posterior: Posterior, nonzero: int) -> Pruned:
    """Return the network with the weights of smallest log alpha, at most so many, those of the threshold 3 at most."""
    moments = (posterior.moments()[name] for name in posterior.model.names)
    values = torch.cat(
        [compression.log_alpha(mean, variance).flatten() for mean, variance in moments]
    )
    return compression.prune(posterior, min(3.0, float(values.sort().values[nonzero])))


def best_groups(
    posterior: Posterior, left: Sequence[int], groups_by: GroupMeasure = "scale"
) -> tuple[Posterior, Pruned]:
    """Return the network with so many groups left in each layer, those of the smallest measure, and the posterior that
    this was pruned from.

    Layer after layer, so that the inputs of a dense layer are chosen among those of the filters that are left.
    """
    for name, number in zip(posterior.model.names, left, strict=True):
        measure = compression.group_measures(posterior, groups_by)[name].flatten().sort().values
        limit = float(measure[number]) if number < len(measure) else float("inf")
        pruned = compression.prune(
            posterior, group_threshold={name: limit, "*": float("inf")}, groups_by=groups_by
        )
        before, posterior = posterior, Posterior.from_guide(*restrict(posterior, pruned))
    return before, pruned
