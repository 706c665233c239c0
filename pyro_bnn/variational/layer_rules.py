r"""Rules for the distribution of a weight: scaled, transposed, and inside a layer.

A layer that is affine in its weight maps the distribution of the weight to the distribution of its
output. The rules below do so, one for each kind of distribution, by
:func:`functools.singledispatch`; ``draw_output.register`` adds a rule for another kind. Nothing
here depends on deferred samples: :mod:`pyro_bnn.variational.deferred_operations` applies the rules
while a network runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, LogNormal, Normal

from pyro_bnn.distributions import BernoulliDropout, Point, TruncatedLogNormal

__all__ = [
    "AffineOp",
    "Bias",
    "LayerRule",
    "draw_output",
    "draw_per_example",
    "flip_signs",
    "scaled",
    "transposed",
]

Bias = Tensor | Normal | None
"""The bias of a layer: none, a tensor, or the distribution of a bias that is not drawn yet."""


@dataclass(frozen=True)
class AffineOp:
    """A layer that is affine in its weight.

    Args:
        function: computes ``function(x, weight, bias, **options)``.
        options: keyword arguments of ``function``, stride and padding for example.
        channel: axis of the channels in input and output, counted from the end.
        weight_in: axis of the weight that runs over the input channels, ``None`` if none runs over
            all of them.
        weight_out: likewise for the output channels.
    """

    function: Callable[..., Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    channel: int = -1
    weight_in: int | None = 1
    weight_out: int | None = 0

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply the layer."""
        return self.function(x, weight, bias, **self.options)

    def along_channels(self, vector: Tensor, z: Tensor) -> Tensor:
        """Reshape one number per channel so that it broadcasts against an input or output ``z``."""
        shape = [1] * z.dim()
        if z.dim() >= -self.channel:
            shape[self.channel] = -1
        return vector.reshape(shape)

    def per_example(self, z: Tensor) -> list[int]:
        """Return the shape of one number per example and channel of an input or output ``z``."""
        shape = [1] * z.dim()
        if z.dim() >= -self.channel:
            shape[self.channel] = z.shape[self.channel]
        if z.dim() > -self.channel:
            shape[0] = len(z)
        return shape


class LayerRule(Protocol):
    """A way to draw the output of a layer from the distribution of its weight."""

    def __call__(
        self, distribution: Distribution, op: AffineOp, x: Tensor, bias: Bias = None
    ) -> Tensor:
        """Draw the output of the layer ``op`` for the input ``x``."""


# --- The distribution of a scaled weight ----------------------------------------------------------


@functools.singledispatch
def scaled(distribution: Distribution, factor: Tensor | float) -> Distribution | None:
    """Return the distribution of ``factor`` times a sample, ``None`` if there is no rule for it."""
    return None


@scaled.register
def _scale_normal(distribution: Normal, factor: Tensor | float) -> Distribution:
    mean = distribution.mean * factor
    return dist.Normal(mean, distribution.stddev * _magnitude(factor), validate_args=False)


def _magnitude(factor: Tensor | float) -> Tensor | float:
    if isinstance(factor, Tensor):
        return factor.abs()
    return abs(factor)


@scaled.register
def _scale_point(distribution: Point, factor: Tensor | float) -> Distribution:
    return Point(distribution.loc * factor)


@scaled.register
def _scale_bernoulli_dropout(
    distribution: BernoulliDropout, factor: Tensor | float
) -> Distribution:
    loc = distribution.loc * factor
    return BernoulliDropout(loc, distribution.rate, distribution.group_dim, validate_args=False)


# --- The distribution of a transposed weight ------------------------------------------------------


@functools.singledispatch
def transposed(distribution: Distribution, dim0: int, dim1: int) -> Distribution | None:
    """Return the distribution of the transposed sample, ``None`` if there is no rule for it."""
    return None


@transposed.register
def _transpose_normal(distribution: Normal, dim0: int, dim1: int) -> Distribution:
    mean = distribution.mean.transpose(dim0, dim1)
    stddev = distribution.stddev.transpose(dim0, dim1)
    return dist.Normal(mean, stddev, validate_args=False)


@transposed.register
def _transpose_point(distribution: Point, dim0: int, dim1: int) -> Distribution:
    return Point(distribution.loc.transpose(dim0, dim1))


@transposed.register
def _transpose_log_normal(distribution: LogNormal, dim0: int, dim1: int) -> Distribution:
    loc = distribution.loc.transpose(dim0, dim1)
    scale = distribution.scale.transpose(dim0, dim1)
    return LogNormal(loc, scale, validate_args=False)


@transposed.register
def _transpose_truncated(distribution: TruncatedLogNormal, dim0: int, dim1: int) -> Distribution:
    return TruncatedLogNormal(
        distribution.loc.transpose(dim0, dim1),
        distribution.scale.transpose(dim0, dim1),
        distribution.low.transpose(dim0, dim1),
        distribution.high.transpose(dim0, dim1),
        validate_args=False,
    )


@transposed.register
def _transpose_bernoulli_dropout(
    distribution: BernoulliDropout, dim0: int, dim1: int
) -> Distribution:
    loc = distribution.loc.transpose(dim0, dim1)
    rate = _group_rates(distribution).transpose(dim0, dim1)
    group_dim = _group_axis(distribution)
    if group_dim is not None:
        order = list(range(loc.dim()))
        order[dim0], order[dim1] = order[dim1], order[dim0]
        group_dim = order.index(group_dim)
    return BernoulliDropout(loc, rate, group_dim, validate_args=False)


# --- The output of a layer ------------------------------------------------------------------------


@functools.singledispatch
def draw_output(distribution: Distribution, op: AffineOp, x: Tensor, bias: Bias = None) -> Tensor:
    """Draw the output of a layer, independently for every example, from its weight's distribution.

    ``draw_output.register`` adds a rule for another distribution.

    Args:
        distribution: the distribution of the weight, with independent elements.
        op: the layer; ``op(x, weight, bias)`` applies it.
        x: the input, of the shape that the layer takes.
        bias: the bias of the layer: ``None``, a tensor, or a Normal distribution.

    Returns:
        The output, of the shape that the layer returns.

    Raises:
        NotImplementedError: if there is no rule for the distribution.
    """
    raise NotImplementedError(
        f"draw_output: expected a distribution with a rule, got {type(distribution).__name__}, "
        "which has no rule; add one with draw_output.register, or hide the site: "
        "local_reparameterization(guide, hide=[...])"
    )


@draw_output.register
def _draw_output_of_normal(
    distribution: Normal, op: AffineOp, x: Tensor, bias: Bias = None
) -> Tensor:
    # y ~ N(op(x, mu) + E b, op(x^2, sigma^2) + Var b). The value of a bias never enters the
    # variance; a bias with a distribution adds its own variance.
    if isinstance(bias, Normal):
        mean = op(x, distribution.mean, bias.mean)
        variance = op(x.square(), distribution.variance, bias.variance)
    else:
        mean = op(x, distribution.mean, bias)
        variance = op(x.square(), distribution.variance)
    # Contiguous whatever the memory layout of a convolution, so that a seed determines the noise.
    noise = torch.randn_like(mean, memory_format=torch.contiguous_format)
    return mean + _standard_deviation(variance) * noise


def _standard_deviation(variance: Tensor) -> Tensor:
    """Return the square root, kept away from zero, where its slope is infinite.

    Fast convolutions of squares may return values slightly below zero, so these are clamped first.
    """
    smallest = max(1e-8, torch.finfo(variance.dtype).tiny)
    return (variance.clamp_min(0) + smallest).sqrt()


@draw_output.register
def _draw_output_of_point(
    distribution: Point, op: AffineOp, x: Tensor, bias: Bias = None
) -> Tensor:
    # A Gaussian of no width: one pass through the layer instead of two.
    return op(x, distribution.loc, _draw_bias(bias))


@draw_output.register
def _draw_output_of_bernoulli_dropout(
    distribution: BernoulliDropout, op: AffineOp, x: Tensor, bias: Bias = None
) -> Tensor:
    axis = _group_axis(distribution)
    if axis is not None and axis == op.weight_in:
        # Binary dropout as usual: a mask on the inputs, drawn for each example.
        mask = _draw_mask(op, x, 1 - _group_rates(distribution))
        return op(x * mask, distribution.loc, _draw_bias(bias))
    if axis is not None and axis == op.weight_out:
        output = op(x, distribution.loc)
        output = output * _draw_mask(op, output, 1 - _group_rates(distribution))
        value = _draw_bias(bias)
        if value is None:
            return output
        return output + op.along_channels(value, output)
    # The groups are not the channels of this layer: one draw of the weight for all examples.
    return op(x, distribution.rsample(), _draw_bias(bias))


def _draw_mask(op: AffineOp, z: Tensor, keep_probability: Tensor) -> Tensor:
    """Draw zeros and ones, one for each example and channel of ``z``."""
    probability = op.along_channels(keep_probability, z).expand(op.per_example(z))
    return torch.bernoulli(probability)


def _draw_bias(bias: Bias) -> Tensor | None:
    """Return the value of a bias, one draw for all examples if it is a distribution."""
    if isinstance(bias, Normal):
        return bias.rsample()
    return bias


def _group_axis(distribution: BernoulliDropout) -> int | None:
    """Return the axis whose indices drop out together, counted from the front."""
    if distribution.group_dim is None:
        return None
    return distribution.group_dim % distribution.loc.dim()


def _group_rates(distribution: BernoulliDropout) -> Tensor:
    """Return one rate per group, along the axis of the groups."""
    axis = _group_axis(distribution)
    if axis is None:
        return distribution.rate.expand(distribution.loc.shape)
    shape = [1] * distribution.loc.dim()
    shape[axis] = distribution.loc.shape[axis]
    return distribution.rate.expand(shape)


def flip_signs(distribution: Distribution, op: AffineOp, x: Tensor, bias: Bias = None) -> Tensor:
    r"""Draw the weight once and flip the signs of its noise for each example.

    .. math:: y = x \mu^T + ((x \circ r)\, \Delta^T) \circ s, \qquad r, s \in \{-1, 1\}

    This is the rule of :func:`~pyro_bnn.flipout`. Distributions other than Gaussians have no noise
    of symmetric sign; they follow :func:`draw_output`.

    Source: Wen et al. (2018), equation 4, https://arxiv.org/abs/1803.04386.
    """
    if not isinstance(distribution, Normal):
        return draw_output(distribution, op, x, bias)
    mean = op(x, distribution.mean, _draw_bias(bias))
    noise = distribution.rsample() - distribution.mean
    input_signs = _draw_signs(op, x)
    output_signs = _draw_signs(op, mean)
    return mean + op(x * input_signs, noise) * output_signs


def _draw_signs(op: AffineOp, z: Tensor) -> Tensor:
    """Draw +1 or -1 for each example and channel of ``z``."""
    return z.new_empty(op.per_example(z)).bernoulli_().mul_(2).sub_(1)


# --- Group scales ---------------------------------------------------------------------------------


@functools.singledispatch
def draw_per_example(distribution: Distribution, op: AffineOp, z: Tensor) -> Tensor:
    """Draw one scale for each example and channel of an input or output ``z`` of a layer.

    Args:
        distribution: the distribution of the scales, one for each channel.
        op: the layer.
        z: the input or the output of the layer.

    Returns:
        The scales, in a shape that broadcasts against ``z``.

    Raises:
        NotImplementedError: if there is no rule for the distribution.
    """
    raise NotImplementedError(
        "draw_per_example: expected a Normal, LogNormal or TruncatedLogNormal distribution, "
        f"got {type(distribution).__name__}; add a rule with draw_per_example.register"
    )


@draw_per_example.register
def _draw_normal_per_example(distribution: Normal, op: AffineOp, z: Tensor) -> Tensor:
    mean = op.along_channels(distribution.mean, z)
    stddev = op.along_channels(distribution.stddev, z)
    noise = mean.new_empty(op.per_example(z)).normal_()
    return mean + stddev * noise


@draw_per_example.register
def _draw_log_normal_per_example(distribution: LogNormal, op: AffineOp, z: Tensor) -> Tensor:
    logarithm: Tensor = _draw_normal_per_example(distribution.base_dist, op, z)
    return logarithm.exp()


@draw_per_example.register
def _draw_truncated_per_example(
    distribution: TruncatedLogNormal, op: AffineOp, z: Tensor
) -> Tensor:
    scales = TruncatedLogNormal(
        op.along_channels(distribution.loc, z),
        op.along_channels(distribution.scale, z),
        op.along_channels(distribution.low, z),
        op.along_channels(distribution.high, z),
        validate_args=False,
    )
    return scales.expand(torch.Size(op.per_example(z))).rsample()
