r"""Predictions: averages of distributions, and how uncertainty divides.

For classes, entropies in nats:

.. math::

    \underbrace{\mathbb{H}\big[\mathbb{E}_w\, p(y \mid x, w)\big]}_{\text{total}}
        = \underbrace{\mathbb{E}_w\, \mathbb{H}[p(y \mid x, w)]}_{\text{aleatoric}}
        + \underbrace{\mathbb{I}[y; w \mid x]}_{\text{epistemic}} ,

for real numbers, variances: :math:`\mathrm{Var}\,y = \mathbb{E}_w \mathrm{Var}[y \mid w] + \mathrm{Var}_w\,
\mathbb{E}[y \mid w]`.

Source: Depeweg et al. (2018), section 3, https://arxiv.org/abs/1710.07283.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, Normal

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """The predictive distribution at n inputs.

    Attributes:
        mean: class probabilities (n, classes), the probability of a one for yes-or-no data (n,), or the mean of real
            data (n,); where an example has d numbers or labels, (n, d).
        total: the uncertainty of y, (n,) or (n, d): nats for classes, variance for real data.
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
        epistemic = f"{float(self.epistemic.mean()):.3g}"
        return f"Prediction({self.kind}, mean {tuple(self.mean.shape)}, epistemic {epistemic} on average)"

    def log_prob(self, y: Tensor) -> Tensor:
        r"""Return :math:`\log p(y_n \mid x_n, \mathcal{D})` for each example, (n,), in nats: the logarithm of the
        average.

        Args:
            y: the data as the likelihood has them, (n,), or (n, d) where an example has d numbers: then their joint
                probability.

        Raises:
            ValueError: y of another shape or, for classes, a label that is not there; a likelihood that is neither
                categorical, Bernoulli nor Gaussian.
        """
        expected = self.mean.shape[:-1] if self.kind == "classes" else self.mean.shape
        if y.shape != expected:
            raise ValueError(
                f"log_prob: expected y of shape {tuple(expected)}, got {tuple(y.shape)}"
            )
        if self.kind == "classes" and not bool(((y >= 0) & (y < self.mean.shape[-1])).all()):
            raise ValueError(
                f"log_prob: expected labels from 0 to {self.mean.shape[-1] - 1}, got {int(y.min())} to {int(y.max())}"
            )
        if self.kind == "other":
            raise ValueError(
                "log_prob: known for categorical, Bernoulli and Gaussian likelihoods only"
            )
        terms = torch.cat(
            [
                _log_prob(part, y).flatten(2).sum(2) if y.dim() > 1 else _log_prob(part, y)
                for part in self.components()
            ]
        )
        return (terms.logsumexp(0) - math.log(len(terms))).to(self.mean.dtype)

    def interval(self, level: float = 0.9, points: int = 48) -> tuple[Tensor, Tensor]:
        """Return the central interval (lower, upper), each like the mean, that holds y with probability ``level``.

        The quantiles are those of the mixture of all drawn predictions. Its distribution function is found on a grid,
        then twice on a finer one between the two neighbours of each quantile, and interpolated. The draws are made
        again with the same seed, so that memory does not grow with their number.

        Args:
            level: between 0 and 1.
            points: of a grid.

        Raises:
            ValueError: a level outside (0, 1); classes, which have no intervals; a likelihood that is not Gaussian.
        """
        if not 0 < level < 1:
            raise ValueError(f"interval: expected a level between 0 and 1, got {level}")
        if self.kind != "real":
            raise ValueError(
                "interval: only Gaussian likelihoods have intervals; for others see .mean and .total"
            )
        tail = (1 - level) / 2
        # Cantelli: P(y < mean - k sd) <= 1 / (1 + k^2): both quantiles lie within k = sqrt(1 / tail - 1) of the mean
        reach = math.sqrt(1 / tail - 1) * self.total.double().sqrt()
        ends = [(self.mean.double() - reach, self.mean.double() + reach)]
        share = torch.linspace(0, 1, points, dtype=reach.dtype, device=reach.device).view(
            -1, *[1] * reach.dim()
        )
        tails = (tail, 1 - tail)
        for _ in range(3):
            values = [low + share * (high - low) for low, high in ends]
            cdf = self._cdf(torch.cat(values)).chunk(len(ends))
            grids = list(zip(cdf * (2 // len(ends)), values * (2 // len(ends)), tails, strict=True))
            ends = [_bracket(*grid) for grid in grids]
        lower, upper = (_interpolate(*grid).to(self.mean.dtype) for grid in grids)
        return lower, upper

    def _cdf(self, values: Tensor) -> Tensor:
        """Return the distribution function of y at the values (points, n, ...)."""
        cdf, draws = torch.zeros_like(values), 0
        for part in self.components():
            for mean, stddev in zip(part["mean"].double(), part["stddev"].double(), strict=True):
                cdf += torch.special.ndtr((values - mean) / stddev)
            draws += len(part["mean"])
        return cdf / draws


def _log_prob(part: dict[str, Tensor], y: Tensor) -> Tensor:
    """Return the log-probability of y under each drawn network, (draws, n, ...), in double precision."""
    if "log_probs" in part:
        return (
            part["log_probs"]
            .double()
            .gather(-1, y.long().expand(len(part["log_probs"]), *y.shape)[..., None])
            .squeeze(-1)
        )
    if "logit" in part:
        return torch.nn.functional.logsigmoid(
            torch.where(y > 0.5, part["logit"], -part["logit"]).double()
        )
    return torch.distributions.Normal(part["mean"].double(), part["stddev"].double()).log_prob(
        y.double()
    )


def _above(cdf: Tensor, level: float) -> Tensor:
    """Return the first point of the grid along axis 0 (but not the very first) where the function reaches the level."""
    return (cdf < level).sum(0, keepdim=True).clamp(1, len(cdf) - 1)


def _bracket(cdf: Tensor, values: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Return the two neighbours on the grid between which the distribution function reaches the level."""
    upper = _above(cdf, level)
    return values.gather(0, upper - 1).squeeze(0), values.gather(0, upper).squeeze(0)


def _interpolate(cdf: Tensor, values: Tensor, level: float) -> Tensor:
    """Invert a distribution function given on a grid along axis 0."""
    upper = _above(cdf, level)
    low, high = cdf.gather(0, upper - 1).squeeze(0), cdf.gather(0, upper).squeeze(0)
    a, b = _bracket(cdf, values, level)
    return a + (b - a) * ((level - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)


def components_of(distribution: Any) -> dict[str, Tensor]:
    """Return what is needed of one predictive distribution.

    ``probs`` and ``log_probs`` of classes, ``prob`` and ``logit`` of a one, ``mean`` and ``stddev`` of a Gaussian; of
    any other distribution ``mean`` and ``spread``, its standard deviation.
    """
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, Categorical):
        log_probs = distribution.logits.log_softmax(-1)
        return {"probs": log_probs.exp(), "log_probs": log_probs}
    if isinstance(distribution, Bernoulli):
        return {"prob": distribution.probs, "logit": distribution.logits}
    shape = distribution.shape()
    spread = "stddev" if isinstance(distribution, Normal) else "spread"
    return {
        "mean": distribution.mean.expand(shape),
        spread: distribution.variance.sqrt().expand(shape),
    }


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
        kind, mean, aleatoric = (
            "real" if "stddev" in part else "other",
            means["mean"],
            means["variance"],
        )
        epistemic = (means["square"] - means["mean"].square()).clamp_min(0)
        total = aleatoric + epistemic
    else:
        kind = "classes" if "log_probs" in part else "yes or no"
        mean, aleatoric = means["probability"], means["entropy"]
        total = _entropy(mean) if kind == "classes" else _entropy(torch.stack([mean, 1 - mean], -1))
        epistemic = (total - aleatoric).clamp_min(0)
    mean, total, aleatoric, epistemic = (
        value.to(dtype) for value in (mean, total, aleatoric, epistemic)
    )
    return Prediction(mean, total, aleatoric, epistemic, components, kind)


def _statistics(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return sums over the draws of one chunk."""
    part = {key: value.double() for key, value in part.items()}
    if "log_probs" in part:
        probs = part["log_probs"].exp()
        return {"probability": probs.sum(0), "entropy": _entropy(probs).sum(0)}
    if "logit" in part:
        prob = part["logit"].sigmoid()
        return {
            "probability": prob.sum(0),
            "entropy": _entropy(torch.stack([prob, 1 - prob], -1)).sum(0),
        }
    mean, spread = part["mean"], part["stddev" if "stddev" in part else "spread"]
    return {"mean": mean.sum(0), "square": mean.square().sum(0), "variance": spread.square().sum(0)}


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)


class Predict(Messenger):
    """Answer latent sites with one draw; note the distributions of all other sites without sampling them."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.found: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
        elif (
            not msg["is_observed"]
            and type(msg["fn"]).__name__ != "_Subsample"
            and msg["value"] is None
        ):
            self.found[msg["name"]] = msg["fn"]
            msg["value"], msg["done"] = torch.zeros(msg["fn"].shape()), True

    def predicted(self) -> Any:
        """Return the distribution of the data."""
        if not self.found:
            raise ValueError(
                "predict: the model has no unobserved data site; "
                "it is called as model(x) and must sample y when y is None"
            )
        return list(self.found.values())[-1]
