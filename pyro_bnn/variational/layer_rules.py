"""Affine layers of weights that have a distribution: what scaling does to it, and how their output is drawn.

Nothing here knows of deferred samples; :mod:`pyro_bnn.variational.reparameterization` brings these rules to the layers of a
network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_bnn.distributions import BernoulliDropout, TruncatedLogNormal

__all__ = ["AffineOp", "draw_output", "draw_per_example", "flip_signs", "scaled", "transposed"]

Normal = torch.distributions.Normal
LogNormal = torch.distributions.LogNormal


@dataclass(frozen=True)
class AffineOp:
    """A layer that is affine in its weight, and where its channels are.

    ``channel``: the axis of the channels in input and output, counted from the end; ``weight_in``, ``weight_out``: the
    axes of the weight that run over them, ``None`` where no axis runs over all of them.
    """

    function: Callable[..., Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    channel: int = -1
    weight_in: int | None = 1
    weight_out: int | None = 0

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply the layer."""
        return self.function(x, weight, bias, **self.options)

    def along_channels(self, vector: Tensor, z: Tensor) -> Tensor:
        """Return one number per channel in the shape that broadcasts against ``z``, an input or output."""
        return vector.reshape(
            [-1 if axis == z.dim() + self.channel else 1 for axis in range(z.dim())]
        )

    def per_example(self, z: Tensor) -> list[int]:
        """Return the shape of one number per example and channel of ``z``, an input or output."""
        shape = [1] * z.dim()
        if z.dim() >= -self.channel:
            shape[self.channel] = z.shape[self.channel]
        if z.dim() > -self.channel:
            shape[0] = len(z)
        return shape


@functools.singledispatch
def scaled(distribution: Any, factor: Any) -> Any:
    """Return the distribution of ``factor`` times a sample, or ``NotImplemented``."""
    return NotImplemented


@scaled.register
def _(distribution: Normal, factor: Any) -> Any:
    return dist.Normal(
        distribution.mean * factor, distribution.stddev * abs(factor), validate_args=False
    )


@scaled.register
def _(distribution: BernoulliDropout, factor: Any) -> Any:
    loc = distribution.loc * factor
    return BernoulliDropout(loc, distribution.rate, distribution.group_dim, validate_args=False)


@functools.singledispatch
def transposed(distribution: Any, dim0: int, dim1: int) -> Any:
    """Return the distribution of the transposed sample, or ``NotImplemented``."""
    return NotImplemented


@transposed.register
def _(distribution: Normal, dim0: int, dim1: int) -> Any:
    mean, stddev = (
        distribution.mean.transpose(dim0, dim1),
        distribution.stddev.transpose(dim0, dim1),
    )
    return dist.Normal(mean, stddev, validate_args=False)


@transposed.register
def _(distribution: LogNormal, dim0: int, dim1: int) -> Any:
    loc, scale = distribution.loc.transpose(dim0, dim1), distribution.scale.transpose(dim0, dim1)
    return dist.LogNormal(loc, scale, validate_args=False)


@transposed.register
def _(distribution: TruncatedLogNormal, dim0: int, dim1: int) -> Any:
    loc, scale, low, high = (
        value.transpose(dim0, dim1)
        for value in (distribution.loc, distribution.scale, distribution.low, distribution.high)
    )
    return TruncatedLogNormal(loc, scale, low, high, validate_args=False)


@transposed.register
def _(distribution: BernoulliDropout, dim0: int, dim1: int) -> Any:
    axis, order = _group_axis(distribution), list(range(distribution.loc.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    loc, rate = distribution.loc.transpose(dim0, dim1), _rates(distribution).transpose(dim0, dim1)
    return BernoulliDropout(
        loc, rate, None if axis is None else order.index(axis), validate_args=False
    )


@functools.singledispatch
def draw_output(distribution: Any, op: AffineOp, x: Tensor, bias: Any = None) -> Tensor:
    """Draw ``op(x, weight, bias)`` where ``weight`` has this distribution, independently for every example.

    Register a rule to teach local reparameterization a new distribution.

    Args:
        distribution: of the weight, elements independent.
        op: the layer; ``op(x, weight, bias)`` applies it.
        x: the input.
        bias: ``None``, a tensor, or the Normal distribution of a deferred bias.

    Raises:
        NotImplementedError: there is no rule for the distribution.
    """
    kind = type(distribution).__name__
    raise NotImplementedError(f"draw_output has no rule for {kind}: register one, or hide the site")


@draw_output.register
def _(distribution: Normal, op: AffineOp, x: Tensor, bias: Any = None) -> Tensor:
    b_mean, b_variance = (bias.mean, bias.variance) if isinstance(bias, Normal) else (bias, None)
    mean = op(x, distribution.mean, b_mean)
    # the value of a bias never enters the variance, its own variance does
    variance = op(x.square(), distribution.variance, b_variance)
    # contiguous whatever the layout of the convolution is, so that one seed gives one noise
    noise = torch.randn_like(mean, memory_format=torch.contiguous_format)
    return mean + _stddev(variance) * noise


def _stddev(variance: Tensor) -> Tensor:
    # sqrt has an infinite slope at zero: a little is added inside; fast convolutions of squares can fall below zero
    return (variance.clamp_min(0) + max(1e-8, torch.finfo(variance.dtype).tiny)).sqrt()


@draw_output.register
def _(distribution: BernoulliDropout, op: AffineOp, x: Tensor, bias: Any = None) -> Tensor:
    axis = _group_axis(distribution)
    if axis is None or axis not in (
        op.weight_in,
        op.weight_out,
    ):  # these masks are shared by all examples
        return op(x, distribution.rsample(), _value(bias))
    keep = 1 - _rates(distribution)
    if axis == op.weight_in:  # binary dropout: a mask on the inputs, one for each example
        return op(x * _mask(op, x, keep), distribution.loc, _value(bias))
    output = op(x, distribution.loc)
    output = output * _mask(op, output, keep)
    return output if bias is None else output + op.along_channels(_value(bias), output)


def _mask(op: AffineOp, z: Tensor, keep: Tensor) -> Tensor:
    """Draw zeros and ones, one per example and channel of ``z``."""
    return torch.bernoulli(op.along_channels(keep, z).expand(op.per_example(z)))


def _value(bias: Any) -> Any:
    return bias.rsample() if isinstance(bias, Normal) else bias


def flip_signs(distribution: Any, op: AffineOp, x: Tensor, bias: Any = None) -> Tensor:
    """Draw the weight once and flip the signs of its noise for each example: the rule of :func:`flipout`."""
    if not isinstance(distribution, Normal):
        return draw_output(distribution, op, x, bias)
    mean = op(x, distribution.mean, _value(bias))
    noise = distribution.rsample() - distribution.mean
    r, s = (z.new_empty(op.per_example(z)).bernoulli_().mul_(2).sub_(1) for z in (x, mean))
    return mean + op(x * r, noise) * s


def draw_per_example(op: AffineOp, z: Tensor, scale: Any) -> Tensor:
    """Draw every group scale once per example of ``z``: a Normal, a LogNormal through its logarithm, or a truncated
    one."""
    if isinstance(scale, TruncatedLogNormal):
        own = (scale.loc, scale.scale, scale.low, scale.high)
        loc, stddev, low, high = (op.along_channels(value, z) for value in own)
        law = TruncatedLogNormal(loc, stddev, low, high, validate_args=False)
        return law.expand(torch.Size(op.per_example(z))).rsample()
    base = scale.base_dist if isinstance(scale, LogNormal) else scale
    noise = base.mean.new_empty(op.per_example(z)).normal_()
    draw = op.along_channels(base.mean, z) + op.along_channels(base.stddev, z) * noise
    return draw.exp() if isinstance(scale, LogNormal) else draw


def _group_axis(distribution: BernoulliDropout) -> int | None:
    """Return the axis that drops out together, counted from the front."""
    return (
        None if distribution.group_dim is None else distribution.group_dim % distribution.loc.dim()
    )


def _rates(distribution: BernoulliDropout) -> Tensor:
    """Return one rate per group, along the group's axis of the weight."""
    axis = _group_axis(distribution)
    return distribution.rate.expand(
        [n if axis in (None, i) else 1 for i, n in enumerate(distribution.loc.shape)]
    )
