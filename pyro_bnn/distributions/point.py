"""A point and a flat prior: weights that are learned as usual inside a Bayesian model."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from .improper import refusing
from .shapes import Shape, broadcast_shapes
from .typed import register_kl

__all__ = ["Flat", "Point"]


class Flat(dist.ImproperUniform):
    r"""The flat improper prior, :math:`p(w) \propto 1`: a weight under it is an ordinary parameter.

    Its log-density is 0 everywhere. The divergence of a :class:`Point` from it is therefore 0, and
    that of a Gaussian is minus the entropy of the Gaussian.

    Args:
        batch_shape: The shape of the batch; the event shape is ``()``.

    Raises:
        ImproperPriorError: For a draw.

    Example:
        >>> torch.distributions.kl_divergence(Point(torch.tensor([0.5, -3.0])), Flat())
        tensor([0., 0.])
    """

    def __init__(self, batch_shape: Shape = ()) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            constraints.real, torch.Size(batch_shape), torch.Size()
        )

    def expand(self, batch_shape: Shape, _instance: None = None) -> Flat:
        """Return the same prior over a larger batch."""
        return Flat(batch_shape)

    sample = refusing(
        "Flat has no draws: it is an improper prior, whose density 1 has an infinite integral. "
        "Weights under it are learned as points. Where a proper prior is needed, give the units a "
        "scale, as in TruncatedLogUniform(unit_scale=1.0), or use a relative: Horseshoe, Normal."
    )
    rsample = sample


class Point(dist.Normal):
    r"""All mass at ``loc``, a Gaussian of zero width: the posterior of a weight learned as usual.

    .. math:: q(w) = \delta(w - \theta)

    As a ``Normal`` it stays deferred under local reparameterization, where the group scales that
    multiply it can be drawn for each example. Its divergence from a prior is
    :math:`-\log p(\theta)`: the infinite constant of a width that tends to zero is left out. It is
    a penalty for learning :math:`\theta`, not a number to compare.

    Args:
        loc: :math:`\theta`, any shape.

    Example:
        >>> Point(torch.tensor([1.0, 2.0])).variance
        tensor([0., 0.])
    """

    def __init__(self, loc: Tensor, validate_args: bool | None = None) -> None:
        # never validated, because Normal requires a positive width
        super().__init__(loc, torch.zeros_like(loc), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: None = None) -> Point:
        """Return the same points over a larger batch."""
        return Point(self.loc.expand(batch_shape))

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Return the point; its gradient is that of ``loc``."""
        return self.loc.expand(torch.Size(sample_shape) + self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return 0 at the point and minus infinity elsewhere: the density of a point mass."""
        return torch.where(value == self.loc, 0.0, -torch.inf).to(self.loc.dtype)


@register_kl(Point, Flat)
def _kl_point_flat(q: Point, p: Flat) -> Tensor:
    return q.loc.new_zeros(()).expand(broadcast_shapes(q.batch_shape, p.batch_shape))


@register_kl(torch.distributions.Normal, Flat)
def _kl_normal_flat(q: torch.distributions.Distribution, p: Flat) -> Tensor:
    return (-q.entropy()).expand(broadcast_shapes(q.batch_shape, p.batch_shape))


@register_kl(Point, torch.distributions.Normal)
def _kl_point_normal(q: Point, p: torch.distributions.Distribution) -> Tensor:
    return -p.log_prob(q.loc)
