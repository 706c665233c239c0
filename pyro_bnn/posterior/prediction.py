r"""Predictions: averages of distributions, and the decomposition of their uncertainty.

For classes, entropies in nats:

.. math::

    \underbrace{\mathbb{H}\big[\mathbb{E}_w\, p(y \mid x, w)\big]}_{\text{total}}
        = \underbrace{\mathbb{E}_w\, \mathbb{H}[p(y \mid x, w)]}_{\text{aleatoric}}
        + \underbrace{\mathbb{I}[y; w \mid x]}_{\text{epistemic}} ,

for real numbers, variances:
:math:`\mathrm{Var}\,y = \mathbb{E}_w \mathrm{Var}[y \mid w]
+ \mathrm{Var}_w\, \mathbb{E}[y \mid w]`.

Source: Depeweg et al. (2018), section 3, https://arxiv.org/abs/1710.07283.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .components import (
    Components,
    Kind,
    entropy,
    function_values,
    kind_of,
    log_prob_of_each_draw,
)
from .quantile_search import quantiles

__all__ = ["Prediction", "summarize"]


@dataclass(frozen=True)
class Prediction:
    """The predictive distribution at n inputs.

    Attributes:
        mean: class probabilities (n, classes), the probability of a one for binary data (n,), or
            the mean of real data (n,). Where an example has d numbers or labels: (n, d).
        total: the uncertainty of y, (n,) or (n, d): entropy in nats for classes and binary data,
            variance for real data.
        aleatoric: the part caused by noise in the data, which more data would not reduce.
        epistemic: the part caused by uncertainty about the weights: total minus aleatoric.
        components: a function that yields the predictions of the drawn networks, some draws at a
            time, as in :mod:`pyro_bnn.posterior.components`.
        kind: ``"classes"``, ``"binary"``, ``"real"`` (a Gaussian likelihood) or ``"other"``.
    """

    mean: Tensor
    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    components: Callable[[], Iterator[Components]]
    kind: Kind

    def __repr__(self) -> str:
        shape = tuple(self.mean.shape)
        epistemic = float(self.epistemic.mean())
        return f"Prediction({self.kind}, mean {shape}, epistemic {epistemic:.3g} on average)"

    def log_prob(self, y: Tensor) -> Tensor:
        r"""Return the log predictive density :math:`\log p(y_n \mid x_n, \mathcal{D})`.

        It is the logarithm of the average density over the draws.

        Args:
            y: the data in the form that the likelihood takes, (n,), or (n, d) where an example has
                d numbers; these have one joint density.

        Returns:
            The log-density of each example, (n,), in nats.

        Raises:
            ValueError: if y has another shape or, for classes, a label outside their range; if the
                likelihood is neither categorical, Bernoulli nor Gaussian.
        """
        self._check_observations(y)
        terms = []
        for components in self.components():
            term = log_prob_of_each_draw(components, y)
            if y.dim() > 1:  # the numbers of one example are one observation
                term = term.flatten(2).sum(2)
            terms.append(term)
        log_probs = torch.cat(terms)
        average = log_probs.logsumexp(0) - math.log(len(log_probs))
        return average.to(self.mean.dtype)

    def interval(self, level: float = 0.9, points: int = 40) -> tuple[Tensor, Tensor]:
        """Return the central interval that contains y with probability ``level``.

        Its ends are quantiles of the mixture of all drawn predictions; see
        :mod:`pyro_bnn.posterior.quantile_search`. The predictions are made again with the same seed
        for each of the three grids, so memory does not grow with the number of draws.

        Args:
            level: the probability of the interval, between 0 and 1.
            points: the number of points of a grid.

        Returns:
            The lower and the upper end, each of the shape of the mean.

        Raises:
            ValueError: if the level is outside (0, 1), or if the likelihood is not Gaussian.
        """
        if not 0 < level < 1:
            raise ValueError(f"interval: expected a level between 0 and 1, got {level}")
        if self.kind != "real":
            raise ValueError(
                "interval: only Gaussian likelihoods have intervals; "
                "for other likelihoods use .mean and .total"
            )
        tail = (1 - level) / 2
        stddev = self.total.double().sqrt()
        ends = quantiles(self._cdf, self.mean.double(), stddev, [tail, 1 - tail], points)
        lower, upper = ends.to(self.mean.dtype)
        return lower, upper

    def _check_observations(self, y: Tensor) -> None:
        if self.kind == "other":
            raise ValueError(
                "log_prob: known for categorical, Bernoulli and Gaussian likelihoods only"
            )
        expected = self.total.shape  # unlike the mean it has no axis of classes
        if y.shape != expected:
            raise ValueError(
                f"log_prob: expected y of shape {tuple(expected)}, got {tuple(y.shape)}"
            )
        classes = self.mean.shape[-1]
        if self.kind == "classes" and not bool(((y >= 0) & (y < classes)).all()):
            raise ValueError(
                f"log_prob: expected labels from 0 to {classes - 1}, "
                f"got {int(y.min())} to {int(y.max())}"
            )

    def _cdf(self, values: Tensor) -> Tensor:
        """Return the distribution function of y at values of shape (..., n) or (..., n, d)."""
        total = torch.zeros_like(values)
        draws = 0
        for components in self.components():
            means, stddevs = components["mean"].double(), components["stddev"].double()
            for mean, stddev in zip(means, stddevs, strict=True):
                total += torch.special.ndtr((values - mean) / stddev)
            draws += len(means)
        return total / draws


def summarize(components: Callable[[], Iterator[Components]]) -> Prediction:
    """Return the prediction of all draws; averages are accumulated in double precision.

    Args:
        components: a function that yields stacked components, some draws at a time. It is called
            again by the methods of the prediction that need every draw.
    """
    draws = 0
    sums: dict[str, Tensor] = {}
    for chunk in components():
        values = function_values(chunk)
        draws += len(values)
        for name, value in _sums_over_draws(chunk).items():
            sums[name] = value + sums.get(name, 0)
    kind = kind_of(chunk)
    mean, aleatoric = sums["mean"] / draws, sums["aleatoric"] / draws
    if kind in ("classes", "binary"):
        total = entropy(mean, kind)
        epistemic = (total - aleatoric).clamp_min(0)
    else:
        epistemic = (sums["squared_mean"] / draws - mean.square()).clamp_min(0)
        total = aleatoric + epistemic
    dtype = values.dtype
    return Prediction(
        mean=mean.to(dtype),
        total=total.to(dtype),
        aleatoric=aleatoric.to(dtype),
        epistemic=epistemic.to(dtype),
        components=components,
        kind=kind,
    )


def _sums_over_draws(chunk: Components) -> dict[str, Tensor]:
    """Return sums, over the draws of a chunk, of the mean and of its aleatoric uncertainty."""
    kind = kind_of(chunk)
    if kind == "classes":
        probs = chunk["log_probs"].double().exp()
        return {"mean": probs.sum(0), "aleatoric": entropy(probs, kind).sum(0)}
    if kind == "binary":
        prob = chunk["logit"].double().sigmoid()
        return {"mean": prob.sum(0), "aleatoric": entropy(prob, kind).sum(0)}
    mean = chunk["mean"].double()
    variance = chunk["stddev" if kind == "real" else "spread"].double().square()
    return {
        "mean": mean.sum(0),
        "squared_mean": mean.square().sum(0),
        "aleatoric": variance.sum(0),
    }
