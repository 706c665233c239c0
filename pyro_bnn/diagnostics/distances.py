r"""Distances between two posteriors' functions and predictions, example by example."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["agreement", "total_variation", "total_variation_of_mixtures", "wasserstein_1"]


def wasserstein_1(a: Tensor, b: Tensor) -> Tensor:
    r"""Return the 1-Wasserstein distance between two samples of each quantity, (...), in the quantity's own units.

    .. math:: W_1 = \int_0^1 |F_a^{-1}(u) - F_b^{-1}(u)|\, du

    Exact for the two empirical distributions, of sizes that need not be equal: for equal ones it is the mean distance
    of the sorted samples.

    Args:
        a: (S, ...).
        b: (T, ...).

    Source: Peyré & Cuturi (2019), remark 2.30. The code of Wilson et al. (2022) calls this quantity W2.

    >>> wasserstein_1(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([5.0]))
    tensor(4., dtype=torch.float64)
    """
    steps = [
        torch.arange(1, len(part) + 1, dtype=torch.float64, device=a.device) / len(part)
        for part in (a, b)
    ]
    ends = (
        torch.cat(steps).sort().values
    )  # both quantile functions are constant between two neighbours
    widths = ends.diff(prepend=ends.new_zeros(1))
    middle = ends - widths / 2
    quantiles = [
        part.double().sort(0).values[(middle * len(part)).long().clamp_max(len(part) - 1)]
        for part in (a, b)
    ]
    gaps = (quantiles[0] - quantiles[1]).abs()
    return torch.einsum("u,u...->...", widths, gaps)


def agreement(p: Tensor, q: Tensor) -> float:
    """Return the fraction of examples to which both give the same class.

    Args:
        p: probabilities (n, classes).
        q: of the same shape.

    Source: Izmailov et al. (2021), section 4.
    """
    return float((p.argmax(-1) == q.argmax(-1)).double().mean())


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    r"""Return :math:`\tfrac12 \sum_c |p_{nc} - q_{nc}|` of each example, (n,), between 0 and 1.

    Args:
        p: probabilities (n, classes).
        q: of the same shape.

    Source: Izmailov et al. (2021), section 4.
    """
    return (p.double() - q.double()).abs().sum(-1) / 2


def total_variation_of_mixtures(p: Mapping[str, Tensor], q: Mapping[str, Tensor]) -> Tensor:
    r"""Return :math:`\tfrac12 \int |p(y) - q(y)|\, dy` of each example, (n, ...), between two mixtures of Gaussians.

    By the trapezoid rule on a grid that reaches ten standard deviations beyond the outermost means and whose steps are
    a quarter of the smallest standard deviation, or a 4000th of its length where that is more; of more than 1000
    components that many are taken, at even distances.

    Args:
        p: ``mean`` and ``stddev`` of the components, (S, n, ...).
        q: likewise, (T, n, ...).
    """
    pair = [
        {key: _some(part[key]).double().flatten(1) for key in ("mean", "stddev")} for part in (p, q)
    ]
    columns = [
        _mixture_distance(*({key: part[key][:, index] for key in part} for part in pair))
        for index in range(pair[0]["mean"].shape[1])
    ]
    return torch.stack(columns).unflatten(0, p["mean"].shape[1:])


def _some(components: Tensor) -> Tensor:
    return components[torch.linspace(0, len(components) - 1, min(len(components), 1000)).long()]


def _mixture_distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    mean, stddev = (torch.cat([a[key], b[key]]) for key in ("mean", "stddev"))
    low, high = mean.min() - 10 * stddev.max(), mean.max() + 10 * stddev.max()
    points = min(4000, max(200, math.ceil(float(4 * (high - low) / stddev.min()))))
    grid = torch.linspace(float(low), float(high), points, dtype=torch.float64, device=mean.device)
    gap = _mixture_density(a, grid) - _mixture_density(b, grid)
    return torch.trapezoid(gap.abs(), grid) / 2


def _mixture_density(part: Mapping[str, Tensor], grid: Tensor) -> Tensor:
    scaled = (grid[:, None] - part["mean"]) / part["stddev"]
    return ((-scaled.square() / 2).exp() / part["stddev"]).mean(1) / math.sqrt(2 * math.pi)
