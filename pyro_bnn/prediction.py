r"""Predictions: averages of distributions, and how uncertainty divides.

For classes, entropies in nats:

.. math::

    \underbrace{\mathbb{H}\big[\mathbb{E}_w\, p(y \mid x, w)\big]}_{\text{total}}
        = \underbrace{\mathbb{E}_w\, \mathbb{H}[p(y \mid x, w)]}_{\text{aleatoric}}
        + \underbrace{\mathbb{I}[y; w \mid x]}_{\text{epistemic}} ,

for real numbers, variances: :math:`\mathrm{Var}\,y = \mathbb{E}_w \mathrm{Var}[y \mid w] + \mathrm{Var}_w\, \mathbb{E}[y \mid w]`.

Source: Depeweg et al. (2018), section 3, https://arxiv.org/abs/1710.07283.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """The predictive distribution at n inputs.

    Attributes:
        mean: class probabilities (n, classes), the probability of a one for yes-or-no data, or the mean (n,) of real data.
        total: the uncertainty of y (n,): nats for classes, variance for real data.
        aleatoric: the part that the noise in the data makes, and that more data would not remove.
        epistemic: the part that not knowing the weights makes; total minus aleatoric.
    """

    mean: Tensor
    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    components: Callable[[], Iterator[dict[str, Tensor]]]
    kind: str

    def __repr__(self) -> str:
        return f"Prediction({self.kind}, mean {tuple(self.mean.shape)}, epistemic {float(self.epistemic.mean()):.3g} on average)"

    def log_prob(self, y: Tensor) -> Tensor:
        r"""Return :math:`\log p(y_n \mid x_n, \mathcal{D})` for each example, (n,), in nats: the logarithm of the average.

        Args:
            y: the data (n,) as the likelihood has them.
        """
        if self.kind == "classes":
            return self.mean.gather(-1, y[:, None]).squeeze(-1).log()
        if self.kind == "yes or no":
            return torch.where(y > 0.5, self.mean, 1 - self.mean).log()
        terms = torch.cat([torch.distributions.Normal(part["mean"], part["stddev"]).log_prob(y) for part in self.components()])
        return terms.double().logsumexp(0).sub(math.log(len(terms))).to(y.dtype)

    def interval(self, level: float = 0.9, points: int = 512) -> tuple[Tensor, Tensor]:
        """Return the central interval (lower, upper), each (n,), that holds y with probability ``level``.

        The quantiles are those of the mixture of all drawn predictions, by interpolation of its distribution function on a grid; the draws
        are made again with the same seed, so that memory does not grow with their number.

        Args:
            level: between 0 and 1.
            points: of the grid.

        Raises:
            ValueError: a level outside (0, 1); classes, which have no intervals.
        """
        if not 0 < level < 1:
            raise ValueError(f"interval: expected a level between 0 and 1, got {level}")
        if self.kind != "real":
            raise ValueError("interval: only real data have intervals; for classes see .mean and .total")
        tail = (1 - level) / 2
        # Cantelli: P(y < mean - k sd) <= 1 / (1 + k^2), so both quantiles lie within k = sqrt(1 / tail - 1) standard deviations
        reach = math.sqrt(1 / tail - 1)
        grid = torch.linspace(-reach, reach, points, dtype=self.mean.dtype, device=self.mean.device)
        values = self.mean + grid.view(-1, *[1] * self.mean.dim()) * self.total.sqrt()
        cdf, draws = torch.zeros_like(values), 0
        for part in self.components():
            for mean, stddev in zip(part["mean"], part["stddev"], strict=True):
                cdf += torch.special.ndtr((values - mean) / stddev)
            draws += len(part["mean"])
        return _quantile(cdf / draws, values, tail), _quantile(cdf / draws, values, 1 - tail)


def _quantile(cdf: Tensor, values: Tensor, level: float) -> Tensor:
    """Invert a distribution function given on a grid along axis 0, by linear interpolation."""
    upper = (cdf < level).sum(0, keepdim=True).clamp(1, len(cdf) - 1)
    low, high = cdf.gather(0, upper - 1), cdf.gather(0, upper)
    a, b = values.gather(0, upper - 1), values.gather(0, upper)
    return (a + (b - a) * (level - low) / (high - low).clamp_min(1e-12)).squeeze(0)


def components_of(distribution: Any) -> dict[str, Tensor]:
    """Return what is needed of one predictive distribution: ``probs`` of classes, ``prob`` of a one, or ``mean`` and ``stddev``."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, Categorical):
        return {"probs": distribution.probs}
    if isinstance(distribution, Bernoulli):
        return {"prob": distribution.probs}
    shape = distribution.shape()
    return {"mean": distribution.mean.expand(shape), "stddev": distribution.variance.sqrt().expand(shape)}


def summarize(components: Callable[[], Iterator[dict[str, Tensor]]]) -> Prediction:
    """Average the components as they come, in double precision."""
    sums: dict[str, Tensor] = {}
    draws = 0
    for part in components():
        draws += len(next(iter(part.values())))
        for key, value in _statistics(part).items():
            sums[key] = sums[key] + value if key in sums else value
    means = {key: value / draws for key, value in sums.items()}
    dtype = next(iter(part.values())).dtype
    if "mean" in means:
        kind, mean, aleatoric = "real", means["mean"], means["variance"]
        epistemic = (means["square"] - means["mean"].square()).clamp_min(0)
        total = aleatoric + epistemic
    else:
        kind = "classes" if "probs" in part else "yes or no"
        mean, aleatoric = means["probability"], means["entropy"]
        total = _entropy(mean) if kind == "classes" else _entropy(torch.stack([mean, 1 - mean], -1))
        epistemic = (total - aleatoric).clamp_min(0)
    return Prediction(*(value.to(dtype) for value in (mean, total, aleatoric, epistemic)), components=components, kind=kind)


def _statistics(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return sums over the draws of one chunk."""
    part = {key: value.double() for key, value in part.items()}
    if "probs" in part:
        return {"probability": part["probs"].sum(0), "entropy": _entropy(part["probs"]).sum(0)}
    if "prob" in part:
        return {"probability": part["prob"].sum(0), "entropy": _entropy(torch.stack([part["prob"], 1 - part["prob"]], -1)).sum(0)}
    return {"mean": part["mean"].sum(0), "square": part["mean"].square().sum(0), "variance": part["stddev"].square().sum(0)}


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)
