"""Many draws at once with :func:`torch.vmap`, or one by one where a program cannot be vectorized.

torch draws standard normal numbers by filling a tensor in place, which ``vmap`` refuses because it
did not create the tensor. Under :func:`vectorized_draws`, Gaussian sites and transformations of
them are drawn with ``torch.randn`` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from pyro_bnn.runtime.handlers import FixedSites
from pyro_bnn.runtime.program import Site, shape_of
from pyro_bnn.runtime.tensor_dicts import stack

__all__ = ["draw_gaussian", "draw_repeatedly", "for_each_draw", "vectorized_draws"]

Gaussian = Normal | MultivariateNormal | LowRankMultivariateNormal


def for_each_draw(
    function: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    draws: Mapping[str, Tensor],
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """Return the results of a function for every draw, stacked along a new first axis.

    Args:
        function: takes the sites of one draw. A function that ``vmap`` cannot vectorize is called
            once per draw.
        draws: the draws of every site, (draw, ...).
        chunk_size: the number of draws that are vectorized at once; all of them by default.
    """
    try:
        return torch.vmap(function, randomness="different", chunk_size=chunk_size)(dict(draws))
    except (RuntimeError, ValueError):
        results = []
        for index in range(len(next(iter(draws.values())))):
            results.append(function({name: value[index] for name, value in draws.items()}))
        return stack(results)


def draw_repeatedly(
    draw: Callable[[], dict[str, Tensor]], num: int, chunk_size: int | None = None
) -> dict[str, Tensor]:
    """Return the results of ``num`` calls of a function that draws, stacked along a new first axis.

    Args:
        draw: draws once, with other random numbers at each call.
        num: the number of draws.
        chunk_size: as for :func:`for_each_draw`.
    """
    indices = {"index": torch.arange(num)}
    return for_each_draw(lambda _: draw(), indices, chunk_size)


def vectorized_draws() -> FixedSites:
    """Return a context in which ``vmap`` can draw latent Gaussian sites.

    The same holds for transformed Gaussians and point masses; every other site draws as usual.
    """
    return FixedSites({}, otherwise=_draw_site)


def _draw_site(site: Site) -> Tensor | None:
    return draw_gaussian(site["fn"])


def draw_gaussian(distribution: Distribution) -> Tensor | None:
    """Return a draw from a Gaussian, a transformed Gaussian or a point mass; else ``None``."""
    if isinstance(distribution, Independent | dist.Independent):
        return draw_gaussian(distribution.base_dist)
    if isinstance(distribution, dist.Delta):
        point: Tensor = distribution.v
        return point
    if isinstance(distribution, TransformedDistribution):
        value = draw_gaussian(distribution.base_dist)
        if value is not None:
            for transform in distribution.transforms:
                value = transform(value)
        return value
    for family in (Normal, MultivariateNormal, LowRankMultivariateNormal):
        # a subclass that draws in its own way has another rsample
        if isinstance(distribution, family) and type(distribution).rsample is family.rsample:
            return _shift_and_scale_noise(distribution)
    return None


def _shift_and_scale_noise(gaussian: Gaussian) -> Tensor:
    loc = gaussian.loc
    noise = torch.randn(shape_of(gaussian), dtype=loc.dtype, device=loc.device)
    if isinstance(gaussian, Normal):
        return loc + gaussian.scale * noise
    if isinstance(gaussian, MultivariateNormal):
        return loc + (gaussian._unbroadcasted_scale_tril @ noise[..., None]).squeeze(-1)
    # w = loc + F a + sqrt(d) b with standard normal a (rank,) and b (size,)
    factor = gaussian._unbroadcasted_cov_factor
    factor_noise = torch.randn(
        *gaussian.batch_shape, factor.shape[-1], 1, dtype=loc.dtype, device=loc.device
    )
    diagonal_noise = gaussian._unbroadcasted_cov_diag.sqrt() * noise
    return loc + (factor @ factor_noise).squeeze(-1) + diagonal_noise
