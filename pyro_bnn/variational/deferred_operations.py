r"""Rules for operations of torch on deferred samples, one for each row of the table.

The table is in :mod:`pyro_bnn.variational.reparameterization`. A rule returns ``None`` where
its condition does not hold; the operation then materializes the sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, LogNormal, Normal

from pyro_bnn.distributions import Point, TruncatedLogNormal
from pyro_bnn.distributions.shapes import broadcast_shapes

from .deferred import DeferredSample, getter, implements, materialized
from .layer_rules import AffineOp, draw_output, draw_per_example, scaled, transposed

__all__ = ["draw_layer"]

Operand = Tensor | float
Size = int | Sequence[int]


# --- Scaling, shifting, transposing, group scales: the sample stays undrawn -----------------------


@implements(
    torch.mul,
    torch.multiply,
    Tensor.mul,
    Tensor.multiply,
    Tensor.__mul__,
    Tensor.__rmul__,
)
def multiply(input: Operand, other: Operand) -> Tensor | None:
    """Scale a sample by a known factor or by deferred group scales."""
    sample, factor = _deferred_first(input, other)
    if isinstance(factor, DeferredSample):
        return _multiply_deferred(sample, factor)
    return _scale(sample, factor)


def _scale(sample: DeferredSample, factor: Operand) -> DeferredSample | None:
    # u (4, 1) times v (1, 50) would have dependent elements: the result keeps the sample's shape.
    if _broadcast_shape(sample, factor) != sample.shape:
        return None
    distribution = scaled(sample.distribution, factor)
    if distribution is None:
        return None
    return sample.map_distribution(distribution, lambda draw: draw * factor)


def _multiply_deferred(first: DeferredSample, second: DeferredSample) -> DeferredSample | None:
    """Multiply a weight by its group scales; the smaller of the two is the scale."""
    weight, scale = first, second
    if second.numel() > first.numel():
        weight, scale = second, first
    if _broadcast_shape(weight, scale) != weight.shape:
        return None
    if weight.draw is scale.draw or scale.scales:
        return None
    if weight.draw.options.per_example_scales and _scale_axis(scale) is not None:
        return weight.with_scale(scale)
    return _scale(weight, scale.materialize())


def _scale_axis(scale: DeferredSample) -> int | None:
    """Return the axis along which group scales lie.

    ``None`` if there is one scale per weight or per layer, or if a layer cannot draw them.
    """
    if scale.dim() < 2:
        return None
    if not isinstance(scale.distribution, Normal | LogNormal | TruncatedLogNormal):
        return None
    axes = [axis for axis, size in enumerate(scale.shape) if size > 1]
    if len(axes) != 1:
        return None
    return axes[0]


@implements(torch.div, torch.true_divide, Tensor.div, Tensor.__truediv__)
def divide(input: Operand, other: Operand) -> Tensor | None:
    """Divide a sample by a known number or tensor."""
    if not isinstance(input, DeferredSample) or isinstance(other, DeferredSample):
        return None
    return _scale(input, 1 / other)


@implements(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def add(input: Operand, other: Operand) -> Tensor | None:
    """Shift a Gaussian sample by known numbers, or add a Gaussian bias to outputs of a layer."""
    sample, summand = _deferred_first(input, other)
    if isinstance(summand, DeferredSample) or sample.scales:
        return None
    if not isinstance(sample.distribution, Normal):
        return None
    shape = _broadcast_shape(sample, summand)
    if shape == sample.shape:
        return _shift(sample, sample.distribution, summand)
    if isinstance(summand, Tensor) and sample.dim() == 1 and shape == summand.shape:
        # A vector added to a larger tensor is a bias added to the outputs of a layer.
        sample.draw.mark_used()
        return summand + draw_per_example(sample.distribution, AffineOp(F.linear), summand)
    return None


def _shift(sample: DeferredSample, distribution: Normal, summand: Operand) -> DeferredSample:
    shifted = dist.Normal(distribution.mean + summand, distribution.stddev, validate_args=False)
    return sample.map_distribution(shifted, lambda draw: draw + summand)


@implements(torch.t, torch.transpose, Tensor.t, Tensor.transpose, getter("T"), getter("mT"))
def transpose(input: DeferredSample, dim0: int = 0, dim1: int = 1) -> DeferredSample | None:
    """Transpose a matrix."""
    if input.dim() != 2:
        return None
    distribution = transposed(input.distribution, dim0, dim1)
    if distribution is None:
        return None
    sample = input.map_distribution(distribution, lambda draw: draw.transpose(dim0, dim1))
    scales = []
    for scale in input.scales:
        transposed_scale = transpose(scale, dim0, dim1)
        if transposed_scale is None:
            return None
        scales.append(transposed_scale)
    sample.scales = tuple(scales)
    return sample


@implements(torch.sqrt, Tensor.sqrt)
def square_root(input: DeferredSample) -> DeferredSample | None:
    """Take the square root of a log-normal sample."""
    distribution = input.distribution
    if not isinstance(distribution, LogNormal):
        return None
    # log z ~ N(m, s^2)  =>  log sqrt(z) ~ N(m / 2, s^2 / 4)
    root = LogNormal(distribution.loc / 2, distribution.scale / 2, validate_args=False)
    return input.map_distribution(root, torch.sqrt)


def _deferred_first(input: Operand, other: Operand) -> tuple[DeferredSample, Operand]:
    """Return the operands of a commutative operation, a deferred one first."""
    if isinstance(input, DeferredSample):
        return input, other
    assert isinstance(other, DeferredSample)
    return other, input


def _broadcast_shape(sample: DeferredSample, operand: Operand) -> torch.Size:
    if not isinstance(operand, Tensor):
        return sample.shape
    return broadcast_shapes(sample.shape, operand.shape)


# --- Layers: the output is drawn ------------------------------------------------------------------


def draw_layer(op: AffineOp, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a layer of which some arguments are deferred.

    The output is drawn if the weight is deferred and the input is not. Otherwise the deferred
    arguments are materialized.

    Raises:
        WeightReuseError: if the weight or the bias was used before.
    """
    if isinstance(x, DeferredSample) or not isinstance(weight, DeferredSample):
        # The rows of a deferred x are weights, not examples: they must not have noise of their own.
        reader = "a layer whose weight alone is not deferred"
        return op(materialized(x, reader), materialized(weight, reader), materialized(bias, reader))
    weight.draw.mark_used()
    _warn_of_dropped_covariances(op, x, weight)
    rule = weight.draw.options.layer_rule
    factors = _layer_factors(op, weight)
    for scale in factors.input_scales:
        x = x * draw_per_example(scale, op, x)
    if not factors.output_scales:
        return rule(factors.unit, op, x, _use_bias(bias))
    bias = materialized(bias, "a layer with scales or masks on its outputs")
    output = rule(factors.unit, op, x, None)
    for scale in factors.output_scales:
        output = output * draw_per_example(scale, op, output)
    if bias is None:
        return output
    return output + op.along_channels(bias, output)


@dataclass
class LayerFactors:
    """The factors of a weight in a layer, as distributions: the unit and the scales of channels."""

    unit: Distribution
    input_scales: list[Distribution]
    output_scales: list[Distribution]


def _layer_factors(op: AffineOp, weight: DeferredSample) -> LayerFactors:
    factors = LayerFactors(weight.distribution, [], [])
    for scale in weight.scales:
        axis = _scale_axis(scale)
        if axis == op.weight_in:
            scale.draw.mark_used()
            factors.input_scales.append(scale.distribution)
        elif axis == op.weight_out:
            scale.draw.mark_used()
            factors.output_scales.append(scale.distribution)
        else:
            # The axis runs over the channels of one group only, in a convolution with groups.
            value = materialized(scale, "a layer whose channels it does not run over")
            factors.unit = _scaled_unit(factors.unit, value)
    return factors


def _scaled_unit(distribution: Distribution, factor: Tensor) -> Distribution:
    product = scaled(distribution, factor)
    if product is None:
        raise NotImplementedError(
            "local_reparameterization: expected a weight whose distribution can be scaled, got "
            f"{type(distribution).__name__} under group scales; hide the site, or set "
            "per_example_scales=False"
        )
    return product


def _use_bias(bias: Tensor | None) -> Tensor | Normal | None:
    """Return the distribution of a deferred Gaussian bias, the value of any other."""
    if isinstance(bias, DeferredSample) and isinstance(bias.distribution, Normal):
        bias.draw.mark_used()
        return bias.distribution
    return materialized(bias, "a layer without a rule for the distribution of its bias")


def _warn_of_dropped_covariances(op: AffineOp, x: Tensor, weight: DeferredSample) -> None:
    """Warn where a Gaussian weight meets several positions of one example."""
    if weight.draw.options.layer_rule is not draw_output:
        return
    if not isinstance(weight.distribution, Normal) or isinstance(weight.distribution, Point):
        return
    if op.channel < -1 or x.dim() > 2:
        weight.draw.warn_once(
            "each output has its exact marginal distribution; covariances between positions of "
            "one example are dropped"
        )


@implements(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a dense layer."""
    return draw_layer(AffineOp(F.linear), input, weight, bias)


@implements(torch.matmul, Tensor.matmul, Tensor.__matmul__)
def matmul(input: Tensor, other: Tensor) -> Tensor | None:
    """Apply a dense layer written as a product: ``x @ w``, or ``w @ x`` with a vector x."""
    if isinstance(other, DeferredSample):
        return _input_times_weight(input, other)
    if input.dim() == 2 and other.dim() == 1:
        return linear(other, input)
    return None


def _input_times_weight(x: Tensor, weight: DeferredSample) -> Tensor | None:
    if isinstance(x, DeferredSample):
        return None
    if weight.dim() == 1:
        return draw_layer(AffineOp(_dot, weight_in=0, weight_out=None), x, weight)
    transposed_weight = transpose(weight)
    if transposed_weight is None:
        return None
    return linear(x, transposed_weight)


def _dot(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply inputs by one vector of weights; such a layer has no bias."""
    return x @ weight


@implements(torch.mm, Tensor.mm)
def multiply_matrices(input: Tensor, mat2: Tensor) -> Tensor | None:
    """Multiply two matrices."""
    return matmul(input, mat2)


@implements(torch.mv, Tensor.mv)
def multiply_matrix_by_vector(input: Tensor, vec: Tensor) -> Tensor | None:
    """Multiply a matrix by a vector."""
    return matmul(input, vec)


@implements(Tensor.__rmatmul__)
def matmul_from_the_right(self: Tensor, other: Tensor) -> Tensor | None:
    """Multiply ``other @ self``."""
    return matmul(other, self)


def convolution(
    function: Callable[..., Tensor],
    axes: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Apply a convolution over the given number of spatial axes."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    # A weight is (outputs, inputs / groups, ...): with groups, axis 1 does not cover all inputs.
    op = AffineOp(function, options, -1 - axes, weight_in=_inner_axis(groups), weight_out=0)
    return draw_layer(op, input, weight, bias)


def transposed_convolution(
    function: Callable[..., Tensor],
    axes: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """Apply a transposed convolution over the given number of spatial axes."""
    options = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "groups": groups,
        "dilation": dilation,
    }
    # A weight is (inputs, outputs / groups, ...): with groups, axis 1 does not cover all outputs.
    op = AffineOp(function, options, -1 - axes, weight_in=0, weight_out=_inner_axis(groups))
    return draw_layer(op, input, weight, bias)


def _inner_axis(groups: int) -> int | None:
    """Return axis 1 of the weight of a convolution if it runs over all channels of the layer."""
    if groups == 1:
        return 1
    return None


implements(F.conv1d)(functools.partial(convolution, F.conv1d, 1))
implements(F.conv2d)(functools.partial(convolution, F.conv2d, 2))
implements(F.conv3d)(functools.partial(convolution, F.conv3d, 3))
implements(F.conv_transpose1d)(functools.partial(transposed_convolution, F.conv_transpose1d, 1))
implements(F.conv_transpose2d)(functools.partial(transposed_convolution, F.conv_transpose2d, 2))
implements(F.conv_transpose3d)(functools.partial(transposed_convolution, F.conv_transpose3d, 3))
