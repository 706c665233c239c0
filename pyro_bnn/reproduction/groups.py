"""Recipes with priors over groups: units and filters are pruned as a whole.

A network pruned to a given size is fine-tuned toward the predictions of a network trained with
dropout, from which the posterior also started: labels give the class alone, a teacher also gives
its certainty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pyro_bnn import compression, guides, likelihoods, priors
from pyro_bnn.compression import Pruned, restrict
from pyro_bnn.compression.pruning.noise_measures import GroupMeasure
from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior
from pyro_bnn.priors import Prior
from pyro_bnn.training import linear_warmup
from pyro_bnn.training.schedules import Schedule
from pyro_bnn.variational.guide import Guide

from .experiment import DistillationData, Experiment
from .schedules import linear_decay

__all__ = [
    "GROUP_HORSESHOE",
    "NORMAL_JEFFREYS",
    "GroupMethod",
    "PrunedPosterior",
    "Stage",
    "keep_best_groups",
    "prune_by_groups",
    "prune_to_size",
]


@dataclass(frozen=True)
class GroupMethod:
    """A group prior, its guide, and the measure by which its groups are pruned."""

    name: str
    prior: Callable[[], Prior]
    guide: Callable[[BayesianNet], Guide]
    groups_by: GroupMeasure


NORMAL_JEFFREYS = GroupMethod(
    "group normal-Jeffreys", priors.NormalJeffreys, guides.GroupNormalJeffreys, "scale"
)
GROUP_HORSESHOE = GroupMethod(
    "group horseshoe",
    lambda: priors.Horseshoe(1e-5, decomposed=True),
    guides.GroupHorseshoe,
    "weights",
)


@dataclass(frozen=True)
class Stage:
    """A stage of a recipe: a fit, a pruning, a fine-tuning.

    Attributes:
        epochs: of the posterior.
        keep: the largest number of weights after pruning, or a number of groups for each layer.
        fine_tune_epochs: of the pruned network; 0 skips fine-tuning.
    """

    epochs: int
    keep: int | tuple[int, ...]
    fine_tune_epochs: int


class PrunedPosterior(NamedTuple):
    """A pruned network, and the posterior that it was pruned from."""

    posterior: Posterior
    pruned: Pruned


def prune_by_groups(
    experiment: Experiment,
    distillation: DistillationData,
    method: GroupMethod,
    stages: Sequence[Stage],
) -> Iterator[Pruned]:
    """Yield the network pruned by groups and fine-tuned, once for each stage with fine-tuning.

    The posterior starts at the teacher, with a KL term that grows over the first stage. It
    continues with the remaining units, at a learning rate that decays in the second half of each
    later stage.
    """
    model = BayesianNet(
        distillation.teacher,
        {"*.weight": method.prior()},
        likelihoods.Categorical(),
        experiment.num_data,
    )
    guide = method.guide(model)
    name = "2-groups"
    kl_weight: Schedule = linear_warmup(0, stages[0].epochs)
    learning_rate: Schedule = 1e-3
    latest: PrunedPosterior | None = None
    for number, stage in enumerate(stages, 3):
        if latest is not None:
            model, guide = restrict(latest.posterior, latest.pruned)
            name = f"{number - 1}-groups-left"
            kl_weight = 1.0
            learning_rate = linear_decay(1e-3, stage.epochs / 2, stage.epochs)
        posterior = experiment.fit(
            name,
            model,
            guide,
            epochs=stage.epochs,
            learning_rate=learning_rate,
            kl_weight=kl_weight,
        )
        latest = _prune(posterior, stage, method.groups_by)
        if stage.fine_tune_epochs:
            yield experiment.fine_tune(
                f"{number}-tuned", latest.pruned, distillation, epochs=stage.fine_tune_epochs
            )


def _prune(posterior: Posterior, stage: Stage, groups_by: GroupMeasure) -> PrunedPosterior:
    """Prune to the size of a stage."""
    if isinstance(stage.keep, int):
        return PrunedPosterior(posterior, prune_to_size(posterior, stage.keep, groups_by))
    return keep_best_groups(posterior, stage.keep, groups_by)


def prune_to_size(posterior: Posterior, size: int, groups_by: GroupMeasure = "scale") -> Pruned:
    """Return the largest network pruned by groups that has at most ``size`` weights.

    There is one threshold for all layers, found by bisection to within a thousandth. Zeros in the
    smaller network count as weights.

    Raises:
        ValueError: if the posterior has no groups, or no threshold leaves between one and ``size``
            weights.
    """
    measures = compression.group_measures(posterior, groups_by)
    if not measures:
        raise ValueError(
            "prune_to_size: the posterior has no groups; fit a guide under a group prior"
        )
    values = torch.cat([measure.flatten() for measure in measures.values()])
    values = values[values.isfinite()]
    low, high = float(values.min()), float(values.max()) + 1
    best = None
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
        raise ValueError(f"prune_to_size: no threshold leaves between one and {size} weights")
    return best


def keep_best_groups(
    posterior: Posterior, counts: Sequence[int], groups_by: GroupMeasure = "scale"
) -> PrunedPosterior:
    """Return the network with the given number of groups in each layer, those of least noise.

    Layers are pruned one after the other, so that the inputs of a dense layer are chosen among
    those of the remaining filters. The returned posterior is the one before the last layer was
    pruned.

    Args:
        posterior: under a group prior.
        counts: the number of groups of each layer.
        groups_by: the measure of groups, as for :func:`~pyro_bnn.compression.prune`.
    """
    before = posterior
    for name, count in zip(posterior.model.names, counts, strict=True):
        before = posterior
        ascending = compression.group_measures(before, groups_by)[name].flatten().sort().values
        limit = float(ascending[count]) if count < len(ascending) else float("inf")
        thresholds = {name: limit, "*": float("inf")}
        pruned = compression.prune(before, group_threshold=thresholds, groups_by=groups_by)
        posterior = Posterior.from_guide(*restrict(before, pruned))
    return PrunedPosterior(before, pruned)
