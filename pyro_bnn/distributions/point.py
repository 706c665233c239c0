"""A point and a flat prior: weights that are learned as usual, inside a Bayesian model."""

from typing import Any, NoReturn

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from .log_uniform import ImproperPriorError, Shape, broadcast

__all__ = ["Flat", "Point"]


class Flat(dist.ImproperUniform):
    r"""The improper prior that says nothing, :math:`p(w) \propto 1`: a weight under it is an ordinary parameter.

    Its log-density is 0 everywhere, so the divergence of a :class:`Point` is 0, and that of a Gaussian minus its
    entropy.

    Args:
        batch_shape: The shape of the batch; the event shape is ``()``.

    Raises:
        ImproperPriorError: for a draw.

    Example::

        >>> torch.distributions.kl_divergence(Point(torch.tensor([0.5, -3.0])), Flat())
        tensor([0., 0.])
    """

    def __init__(self, batch_shape: Shape = ()) -> None:
        super().__init__(constraints.real, torch.Size(batch_shape), torch.Size())

    def expand(self, batch_shape: Shape, _instance: None = None) -> "Flat":
        """Return the same prior over a larger batch."""
        return Flat(batch_shape)

    def sample(self, sample_shape: Shape = ()) -> NoReturn:
        """Raise ``ImproperPriorError``: there is nothing to draw from."""
        raise ImproperPriorError(
            "Flat was asked for a draw, which does not exist: it is an improper prior, whose density 1 has an infinite "
            "integral. Weights under it are learned as points. Where a proper prior is needed, give the units a scale, "
            "as in TruncatedLogUniform(unit_scale=1.0), or use a relative: Horseshoe, Normal."
        )

    rsample = sample


class Point(dist.Normal):
    r"""All the mass at ``loc``, a Gaussian of no width: the posterior of a weight that is learned as usual.

    .. math:: q(w) = \delta(w - \theta)

    Being a ``Normal`` it stays deferred under local reparameterization, where group scales that multiply it can be
    drawn for each example. Its divergence from a prior is :math:`-\log p(\theta)`, what is left once the infinite
    constant of a width that goes to zero is taken away: a penalty to learn :math:`\theta` by, not a number to compare.

    Args:
        loc: :math:`\theta`, any shape.

    Example::

        >>> Point(torch.tensor([1.0, 2.0])).variance
        tensor([0., 0.])
    """

    def __init__(self, loc: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(
            loc, torch.zeros_like(loc), validate_args=False
        )  # Normal's own check wants a width

    def expand(self, batch_shape: Shape, _instance: None = None) -> "Point":
        """Return the same points over a larger batch."""
        return Point(self.loc.expand(batch_shape))

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Return the point; its gradient is that of ``loc``."""
        return self.loc.expand(torch.Size(sample_shape) + self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return 0 at the point, minus infinity elsewhere: the density with respect to the point itself."""
        return torch.where(value == self.loc, 0.0, -torch.inf).to(self.loc.dtype)


@register_kl(Point, Flat)
def _kl_point_flat(q: Point, p: Flat) -> Tensor:
    return q.loc.new_zeros(()).expand(broadcast(q.batch_shape, p.batch_shape))


@register_kl(torch.distributions.Normal, Flat)
def _kl_normal_flat(q: torch.distributions.Normal, p: Flat) -> Tensor:
    return (-q.entropy()).expand(broadcast(q.batch_shape, p.batch_shape))


def _kl_point_normal(q: Point, p: Any) -> Tensor:
    return -p.log_prob(q.loc)


register_kl(Point, torch.distributions.Normal)(_kl_point_normal)
