"""Many draws at once, by ``vmap``: Gaussian sites that can be drawn under it, and a loop where it cannot go.

torch draws standard normal numbers by filling a tensor in place, which ``vmap`` refuses, for the tensor is none of its
own. Inside :class:`VectorizedDraws` the sites of Gaussians, and of what is made of them, are drawn by ``torch.randn``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal
from torch.distributions import TransformedDistribution as Transformed

__all__ = ["VectorizedDraws", "for_each_draw"]


def for_each_draw(
    function: Callable[[dict[str, Tensor]], dict[str, Tensor]], draws: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what the function makes of every draw, stacked along a first axis.

    Args:
        function: of the sites of one draw; what cannot be vectorised is called draw by draw.
        draws: of every site, (draw, ...).
    """
    try:
        return torch.vmap(function, randomness="different")(dict(draws))
    except (RuntimeError, ValueError):
        num = len(next(iter(draws.values())))
        single = [
            function({name: value[index] for name, value in draws.items()}) for index in range(num)
        ]
        return {name: torch.stack([one[name] for one in single]) for name in single[0]}


class VectorizedDraws(Messenger):
    """Draw every latent site whose distribution is known; leave the others to themselves."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or msg["done"]:
            return
        value = _draw(msg["fn"])
        if value is not None:
            msg["value"], msg["done"] = value, True


def _draw(q: Any) -> Tensor | None:
    if isinstance(q, Independent | dist.Independent):
        return _draw(q.base_dist)
    if isinstance(q, dist.Delta):
        return q.v
    if isinstance(q, Transformed):
        value = _draw(q.base_dist)
        for transform in q.transforms if value is not None else ():
            value = transform(value)
        return value
    if getattr(type(q), "rsample", None) not in _STANDARD:  # a relative that draws in its own way
        return None
    own = {"dtype": q.loc.dtype, "device": q.loc.device}
    noise = torch.randn(q.shape(), **own)
    if isinstance(q, Normal):
        return q.loc + q.scale * noise
    if isinstance(q, MultivariateNormal):
        return q.loc + (q._unbroadcasted_scale_tril @ noise[..., None]).squeeze(-1)
    factor = q._unbroadcasted_cov_factor
    few = torch.randn(*q.batch_shape, factor.shape[-1], 1, **own)
    return q.loc + (factor @ few).squeeze(-1) + q._unbroadcasted_cov_diag.sqrt() * noise


_STANDARD = {kind.rsample for kind in (Normal, MultivariateNormal, LowRankMultivariateNormal)}
