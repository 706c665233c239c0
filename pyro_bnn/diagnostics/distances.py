r"""Distances between the functions and predictions of two posteriors, example by example."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["agreement", "total_variation", "total_variation_of_mixtures", "wasserstein_1"]

MAX_COMPONENTS = 1000


def wasserstein_1(a: Tensor, b: Tensor) -> Tensor:
    r"""Return the 1-Wasserstein distance between two samples of each quantity, in its own units.

    .. math:: W_1 = \int_0^1 |F_a^{-1}(u) - F_b^{-1}(u)|\, du

    Exact for the two empirical distributions, whose sizes may differ. For equal sizes it is the
    mean distance of the sorted samples.

    Args:
        a: (S, ...).
        b: (T, ...).

    Returns:
        The distances, (...).

    Source: Peyré & Cuturi (2019), remark 2.30. The code of Wilson et al. (2022) calls it W2.

    Example:
        >>> wasserstein_1(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([5.0]))
        tensor(4., dtype=torch.float64)
    """
    # between two neighboring steps both quantile functions are constant
    steps = torch.cat([_steps(a), _steps(b)]).sort().values
    widths = steps.diff(prepend=steps.new_zeros(1))
    middles = steps - widths / 2
    gaps = (_quantiles(a, middles) - _quantiles(b, middles)).abs()
    return torch.einsum("u,u...->...", widths, gaps)


def agreement(p: Tensor, q: Tensor) -> float:
    """Return the fraction of examples to which both give the same class.

    Args:
        p: probabilities (n, classes).
        q: probabilities of the same shape.

    Source: Izmailov et al. (2021), section 4.
    """
    return float((p.argmax(-1) == q.argmax(-1)).double().mean())


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    r"""Return :math:`\tfrac12 \sum_c |p_{nc} - q_{nc}|` of each example, (n,), between 0 and 1.

    Args:
        p: probabilities (n, classes).
        q: probabilities of the same shape.

    Source: Izmailov et al. (2021), section 4.
    """
    return (p.double() - q.double()).abs().sum(-1) / 2


def total_variation_of_mixtures(p: Mapping[str, Tensor], q: Mapping[str, Tensor]) -> Tensor:
    r"""Return :math:`\tfrac12 \int |p(y) - q(y)|\, dy` between two mixtures of Gaussians.

    The integral uses the trapezoid rule on a grid that reaches ten standard deviations beyond the
    outermost means. Its steps are a quarter of the smallest standard deviation, or a 4000th of its
    length where that is more. Of more than 1000 components, 1000 at equal distances are taken.

    Args:
        p: ``mean`` and ``stddev`` of the components, (S, n, ...).
        q: likewise, (T, n, ...).

    Returns:
        The distance of each example, (n, ...).
    """
    first, second = _mixture(p), _mixture(q)
    examples = first.mean.shape[1]
    distances = [_mixture_distance(first, second, example) for example in range(examples)]
    return torch.unflatten(torch.stack(distances), 0, p["mean"].shape[1:])


class _Mixture(NamedTuple):
    """Means and standard deviations of the components of a mixture, (S, n) or (S,)."""

    mean: Tensor
    stddev: Tensor


def _steps(sample: Tensor) -> Tensor:
    """Return the probabilities at which the quantile function of a sample steps up."""
    counts = torch.arange(1, len(sample) + 1, dtype=torch.float64, device=sample.device)
    return counts / len(sample)


def _quantiles(sample: Tensor, probabilities: Tensor) -> Tensor:
    index = (probabilities * len(sample)).long().clamp_max(len(sample) - 1)
    return sample.double().sort(0).values[index]


def _mixture(components: Mapping[str, Tensor]) -> _Mixture:
    mean, stddev = components["mean"], components["stddev"]
    selection = torch.linspace(0, len(mean) - 1, min(len(mean), MAX_COMPONENTS)).long()
    return _Mixture(mean[selection].double().flatten(1), stddev[selection].double().flatten(1))


def _mixture_distance(a: _Mixture, b: _Mixture, example: int) -> Tensor:
    a = _Mixture(a.mean[:, example], a.stddev[:, example])
    b = _Mixture(b.mean[:, example], b.stddev[:, example])
    mean, stddev = torch.cat([a.mean, b.mean]), torch.cat([a.stddev, b.stddev])
    low, high = mean.min() - 10 * stddev.max(), mean.max() + 10 * stddev.max()
    points = min(4000, max(200, math.ceil(float(4 * (high - low) / stddev.min()))))
    grid = torch.linspace(float(low), float(high), points, dtype=torch.float64, device=mean.device)
    gap = _density(a, grid) - _density(b, grid)
    return torch.trapezoid(gap.abs(), grid) / 2


def _density(mixture: _Mixture, grid: Tensor) -> Tensor:
    scaled = (grid[:, None] - mixture.mean) / mixture.stddev
    return ((-scaled.square() / 2).exp() / mixture.stddev).mean(1) / math.sqrt(2 * math.pi)
