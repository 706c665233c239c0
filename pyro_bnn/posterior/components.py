"""The predictive distribution of one drawn network, as a few tensors.

A prediction averages over many networks. Of the distribution that each of them predicts, only its
parameters are stored, under names that show its kind:

==========  ==========================  ===================================================
kind        names                       meaning
==========  ==========================  ===================================================
classes     ``probs``, ``log_probs``    probabilities of the classes, (n, classes)
binary      ``prob``, ``logit``         the probability of a one and its log odds, (n, ...)
real        ``mean``, ``stddev``        the parameters of a Gaussian, (n, ...)
other       ``mean``, ``spread``        mean and standard deviation of any other distribution
==========  ==========================  ===================================================

Where several draws are stacked, the draws are the first axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal

from pyro_bnn.runtime.program import shape_of

__all__ = [
    "Components",
    "Kind",
    "components_of",
    "entropy",
    "function_values",
    "kind_of",
    "log_prob_of_each_draw",
]

Components = dict[str, Tensor]
Kind = Literal["classes", "binary", "real", "other"]


def components_of(distribution: Distribution) -> Components:
    """Return the parameters of a predictive distribution, named as in the table above."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, Categorical):
        log_probs = distribution.logits.log_softmax(-1)
        return {"probs": log_probs.exp(), "log_probs": log_probs}
    if isinstance(distribution, Bernoulli):
        return {"prob": distribution.probs, "logit": distribution.logits}
    shape = shape_of(distribution)
    mean = distribution.mean.expand(shape)
    stddev = distribution.variance.sqrt().expand(shape)
    if isinstance(distribution, Normal):
        return {"mean": mean, "stddev": stddev}
    return {"mean": mean, "spread": stddev}


def kind_of(components: Mapping[str, Tensor]) -> Kind:
    """Return the kind of data that is predicted."""
    if "log_probs" in components:
        return "classes"
    if "logit" in components:
        return "binary"
    return "real" if "stddev" in components else "other"


def function_values(components: Mapping[str, Tensor]) -> Tensor:
    """Return f(x): class probabilities, the probability of a one, or the mean of other data."""
    for name in ("probs", "prob"):
        if name in components:
            return components[name]
    return components["mean"]


def log_prob_of_each_draw(components: Mapping[str, Tensor], y: Tensor) -> Tensor:
    """Return the log-probability of y under each draw, (draws, n, ...), in double precision.

    Args:
        components: stacked components of classes, binary data or real data.
        y: the data, (n,) or (n, d).
    """
    kind = kind_of(components)
    if kind == "classes":
        log_probs = components["log_probs"].double()
        labels = y.long().expand(len(log_probs), *y.shape)
        return log_probs.gather(-1, labels[..., None]).squeeze(-1)
    if kind == "binary":
        logit = components["logit"]
        log_odds_of_y = torch.where(y > 0.5, logit, -logit)
        return torch.nn.functional.logsigmoid(log_odds_of_y.double())
    return _gaussian(components).log_prob(y.double())


def _gaussian(components: Mapping[str, Tensor]) -> Distribution:
    return Normal(components["mean"].double(), components["stddev"].double())


def entropy(probabilities: Tensor, kind: Kind) -> Tensor:
    """Return entropies in nats, of probabilities of classes (..., classes) or of a one (...)."""
    if kind == "binary":
        probabilities = torch.stack([probabilities, 1 - probabilities], -1)
    entropies: Tensor = torch.special.entr(probabilities)
    return entropies.sum(-1)
