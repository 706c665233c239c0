r"""Local reparameterization: draw the output of a layer instead of its weights.

If the weights are independent Gaussians, :math:`w_{ij} \sim \mathcal{N}(\mu_{ij}, \sigma_{ij}^2)`, the output of a dense layer is Gaussian
too,

.. math:: y_j \sim \mathcal{N}\Big(\sum_i x_i \mu_{ij},\ \sum_i x_i^2 \sigma_{ij}^2\Big),

independently for every example. Drawing y directly gives the same expected loss, needs fewer random numbers, and its gradients have a
smaller variance, because the noise of different examples is independent.

Here this is an effect handler on the guide. :func:`local_reparameterization` answers a weight site with a :class:`DeferredSample`: a
tensor that has not been drawn yet and knows its distribution. When a linear layer or a convolution meets it, :func:`draw_output` draws
the layer's output. What else is done to it draws the weight once, for everyone.

Source: Kingma, Salimans & Welling (2015), section 2.2, https://arxiv.org/abs/1506.02557.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Independent
from torch.utils._pytree import tree_leaves, tree_map

from .distributions import BernoulliDropout

__all__ = ["DeferredSample", "ReparameterizationWarning", "WeightReuseError", "draw_output", "flipout", "local_reparameterization"]

Normal = torch.distributions.Normal
LogNormal = torch.distributions.LogNormal


class WeightReuseError(RuntimeError):
    """A deferred weight was used a second time in one forward pass, where it would have had a second value."""


class ReparameterizationWarning(UserWarning):
    """Local reparameterization did less than one may expect at a site; said once for each site."""


def local_reparameterization(
    guide: Callable[..., Any], hide: Collection[str] = (), per_example_scales: bool = False
) -> Reparameterized:
    r"""Return the guide with its weights deferred, so that layers draw their outputs.

    Exact for one use of a weight per example in linear layers. In convolutions, and in linear layers that see several positions of one
    example, every output has its exact marginal distribution but the covariances between positions are dropped. For training only:
    prediction draws real weights, one network for the whole batch.

    Args:
        guide: a guide of any kind. Sites of other distributions than Normal and ``BernoulliDropout`` are left alone.
        hide: names of sites to be sampled as usual.
        per_example_scales: draw the group scales of a scale mixture afresh for each example, as in Bayesian compression.

    Raises:
        WeightReuseError: at the first forward pass that uses a deferred weight twice.
    """
    return Reparameterized(guide, draw_output, hide, per_example_scales)


def flipout(guide: Callable[..., Any], hide: Collection[str] = ()) -> Reparameterized:
    r"""Return the guide with every Gaussian weight drawn once and its noise given random signs for each example.

    .. math:: y = x \mu^T + ((x \circ r)\, \Delta^T) \circ s, \qquad \Delta = w - \mu,\quad r, s \in \{-1, 1\}

    Source: Wen et al. (2018), equation 4, https://arxiv.org/abs/1803.04386.
    """
    return Reparameterized(guide, flip_signs, hide, per_example_scales=False)


class Reparameterized(nn.Module):
    """A guide under the handler: it owns the guide, so its parameters are the guide's."""

    def __init__(self, guide: Callable[..., Any], rule: Callable[..., Tensor], hide: Collection[str], per_example_scales: bool) -> None:
        super().__init__()
        self.guide = guide
        self.defer = _Defer(rule, frozenset(hide), per_example_scales)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the guide; its trace holds deferred samples."""
        with self.defer:
            return self.guide(*args, **kwargs)


class _Defer(Messenger):
    """Answer the global Gaussian (and dropout) sites of a guide with deferred samples."""

    def __init__(self, rule: Callable[..., Tensor], hide: frozenset[str], per_example_scales: bool) -> None:
        super().__init__()
        self.rule, self.hide, self.per_example_scales = rule, hide, per_example_scales
        self.told: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        latent = not (msg["done"] or msg["is_observed"] or msg["value"] is not None)
        if not latent or msg["name"] in self.hide or msg["cond_indep_stack"]:  # inside a plate: local to the data, no weight
            return
        distribution = msg["fn"]
        while isinstance(distribution, Independent):
            distribution = distribution.base_dist
        gates = (LogNormal,) if self.per_example_scales else ()
        if isinstance(distribution, (Normal, BernoulliDropout, *gates)) and distribution.shape().numel() > 1:
            msg["value"] = DeferredSample.of(Root(msg["name"], distribution, self))
            msg["done"] = True


@dataclass(eq=False)
class Root:
    """The one random variable behind all samples derived from a site: its shared draw, and who has claimed it."""

    name: str
    distribution: dist.TorchDistribution
    handler: _Defer
    drawn: Tensor | None = None
    used: bool = False

    def draw(self) -> Tensor:
        """Return the one draw that every reader shares."""
        self._refuse_second_use()
        if self.drawn is None:
            self.drawn = self.distribution.rsample()
        return self.drawn

    def claim(self) -> None:
        """Mark the weight as used by a layer."""
        self._refuse_second_use()
        if self.drawn is not None:
            raise self._error()
        self.used = True

    def tell(self, what: str) -> None:
        """Warn once for each site."""
        if self.name not in self.handler.told:
            self.handler.told.add(self.name)
            warnings.warn(f"site {self.name!r}: {what}", ReparameterizationWarning, stacklevel=4)

    def _refuse_second_use(self) -> None:
        if self.used:
            raise self._error()

    def _error(self) -> WeightReuseError:
        return WeightReuseError(
            f"site {self.name!r} is used twice in one forward pass: a deferred weight has one use, "
            f"a second one would give it a second value. Sample it as usual with hide=[{self.name!r}]"
        )


class DeferredSample(Tensor):
    """A sample that has not been drawn yet.

    As a tensor it is a single NaN, expanded to the right shape: it takes no memory and is unmistakable if it leaks. What it stands for is
    ``distribution``, of independent elements, multiplied by ``gates``: group scales that are themselves deferred.
    """

    root: Root
    distribution: dist.TorchDistribution
    read: Callable[[], Tensor]
    gates: tuple[DeferredSample, ...]

    @staticmethod
    def of(root: Root) -> DeferredSample:
        """Defer the sample of a site."""
        return DeferredSample._make(root, root.distribution, root.draw, ())

    @staticmethod
    def _make(root: Root, distribution: Any, read: Callable[[], Tensor], gates: tuple[DeferredSample, ...]) -> DeferredSample:
        self = distribution.mean.new_full((), math.nan).expand(distribution.shape()).as_subclass(DeferredSample)
        self.root, self.distribution, self.read, self.gates = root, distribution, read, gates
        return self

    def derive(self, distribution: Any, change: Callable[[Tensor], Tensor]) -> DeferredSample:
        """Return a sample made from this one, with the same claim."""
        return DeferredSample._make(self.root, distribution, lambda: change(self.read()), self.gates)

    def materialize(self) -> Tensor:
        """Return the shared draw, gates included."""
        return math.prod((gate.materialize() for gate in self.gates), start=self.read())

    def __repr__(self, **kwargs: Any) -> str:
        return f"DeferredSample({self.root.name!r}, {type(self.distribution).__name__}, shape={tuple(self.shape)})"

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            return super().__torch_function__(func, types, args, kwargs)
        if func in _RULES:
            result = _RULES[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        for sample in {id(leaf): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, DeferredSample)}.values():
            sample.root.tell(f"{getattr(func, '__name__', func)} needs the weight itself, so it is drawn once and shared by all examples")
        return func(*tree_map(_materialize, args), **tree_map(_materialize, kwargs))


def _materialize(value: Any) -> Any:
    return value.materialize() if isinstance(value, DeferredSample) else value


_METADATA = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_meta", "is_leaf")),
    *(getattr(Tensor, name).__get__ for name in ("is_sparse", "is_nested", "is_quantized", "is_cuda", "is_mkldnn", "_base")),
    *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.__len__, Tensor.is_floating_point),
    *(Tensor.is_complex, Tensor.__hash__, torch.is_floating_point, torch.is_complex, torch.numel),
}


# --- What stays deferred: scaling, transposing, group scales ---------------------------------------------------------------------------


@functools.singledispatch
def scaled(distribution: Any, factor: Any) -> Any:
    """Return the distribution of ``factor`` times a sample, or ``NotImplemented``."""
    return NotImplemented


@scaled.register
def _(distribution: Normal, factor: Any) -> Any:
    return dist.Normal(distribution.mean * factor, distribution.stddev * abs(factor), validate_args=False)


@scaled.register
def _(distribution: BernoulliDropout, factor: Any) -> Any:
    return BernoulliDropout(distribution.loc * factor, distribution.rate, distribution.group_dim)


@functools.singledispatch
def transposed(distribution: Any, dim0: int, dim1: int) -> Any:
    """Return the distribution of the transposed sample, or ``NotImplemented``."""
    return NotImplemented


@transposed.register
def _(distribution: Normal, dim0: int, dim1: int) -> Any:
    mean, stddev = distribution.mean.transpose(dim0, dim1), distribution.stddev.transpose(dim0, dim1)
    return dist.Normal(mean, stddev, validate_args=False)


@transposed.register
def _(distribution: BernoulliDropout, dim0: int, dim1: int) -> Any:
    order = list(range(distribution.loc.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    group_dim = None if distribution.group_dim is None else order.index(distribution.group_dim)
    return BernoulliDropout(distribution.loc.transpose(dim0, dim1), distribution.rate, group_dim)


def _multiply(first: Any, second: Any) -> Any:
    if isinstance(first, DeferredSample) and isinstance(second, DeferredSample):
        weight, gate = (first, second) if first.numel() >= second.numel() else (second, first)
        if torch.broadcast_shapes(weight.shape, gate.shape) != weight.shape or weight.root is gate.root or gate.gates:
            return NotImplemented
        if not weight.root.handler.per_example_scales:
            return _multiply(weight, gate.materialize())
        return DeferredSample._make(weight.root, weight.distribution, weight.read, (*weight.gates, gate))
    sample, factor = (first, second) if isinstance(first, DeferredSample) else (second, first)
    # u (4, 1) times v (1, 50) would be no sample of independent elements: the result must have the sample's own shape
    if isinstance(factor, Tensor) and torch.broadcast_shapes(sample.shape, factor.shape) != sample.shape:
        return NotImplemented
    distribution = scaled(sample.distribution, factor)
    return NotImplemented if distribution is NotImplemented else sample.derive(distribution, lambda draw: draw * factor)


def _divide(sample: Any, divisor: Any, **kwargs: Any) -> Any:
    if kwargs or not isinstance(sample, DeferredSample) or isinstance(divisor, DeferredSample):
        return NotImplemented
    return _multiply(sample, 1 / divisor)


def _transpose(sample: DeferredSample, dim0: int = 0, dim1: int = 1) -> Any:
    if sample.dim() != 2 or sample.gates:
        return NotImplemented
    distribution = transposed(sample.distribution, dim0, dim1)
    return NotImplemented if distribution is NotImplemented else sample.derive(distribution, lambda draw: draw.transpose(dim0, dim1))


def _sqrt(sample: DeferredSample) -> Any:
    if not isinstance(sample.distribution, LogNormal):
        return NotImplemented
    # log z ~ N(m, s^2)  =>  log sqrt(z) ~ N(m / 2, s^2 / 4)
    root = dist.LogNormal(sample.distribution.loc / 2, sample.distribution.scale / 2, validate_args=False)
    return sample.derive(root, torch.sqrt)


# --- Layers ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Affine:
    """A layer that is affine in its weight, and where its channels are.

    ``channel``: the axis of the channels in input and output; ``weight_in``, ``weight_out``: the axes of the weight that run over them.
    """

    function: Callable[..., Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    channel: int = -1
    weight_in: int = 1
    weight_out: int = 0

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply the layer."""
        return self.function(x, weight, bias, **self.options)

    def per_example(self, x: Tensor, size: int) -> list[int]:
        """Return the shape of one number per example and channel, to be broadcast against ``x``."""
        shape = [1] * x.dim()
        shape[self.channel] = size
        if x.dim() > -self.channel:
            shape[0] = len(x)
        return shape


def apply(op: Affine, x: Tensor, weight: Any, bias: Any = None) -> Tensor:
    """Draw the output of a layer whose weight is deferred (or whose bias alone is)."""
    x = _materialize(x)
    if not isinstance(weight, DeferredSample):
        return op(x, weight, _materialize(bias))
    weight.root.claim()
    if op.channel < -1 or x.dim() > 2:
        weight.root.tell("each output has its exact marginal; covariances between the positions of one example are dropped")
    x, after = _apply_gates(op, x, weight)
    rule = weight.root.handler.rule
    if after or not isinstance(bias, DeferredSample) or not isinstance(bias.distribution, Normal):
        output = rule(weight.distribution, op, x, None if after else _materialize(bias))
        output = math.prod(after, start=output)
        return output if not after or bias is None else output + _materialize(bias).reshape([-1] + [1] * (-1 - op.channel))
    bias.root.claim()
    return rule(weight.distribution, op, x, bias.distribution)


def _apply_gates(op: Affine, x: Tensor, weight: DeferredSample) -> tuple[Tensor, list[Tensor]]:
    """Multiply the input by scales per input channel; return it with the scales that the output is to be multiplied by."""
    after = []
    for gate in weight.gates:
        axes = [axis for axis, size in enumerate(gate.shape) if size > 1]
        gate.root.claim()
        if axes == [op.weight_in]:
            x = x * _draw_per_example(op, x, gate.distribution)
        elif axes == [op.weight_out]:
            after.append(_draw_per_example(op, x, gate.distribution))
        else:
            raise NotImplementedError(f"site {gate.root.name!r}: no per-example draw for scales of shape {tuple(gate.shape)}")
    return x, after


def _draw_per_example(op: Affine, x: Tensor, scale: Any) -> Tensor:
    """Draw every group scale once per example: a Normal, or a LogNormal through its logarithm."""
    base = scale.base_dist if isinstance(scale, LogNormal) else scale
    channels = [1] * x.dim()
    channels[op.channel] = -1
    noise = base.mean.new_empty(op.per_example(x, base.mean.numel())).normal_()
    draw = base.mean.reshape(channels) + base.stddev.reshape(channels) * noise
    return draw.exp() if isinstance(scale, LogNormal) else draw


@functools.singledispatch
def draw_output(distribution: Any, op: Affine, x: Tensor, bias: Any = None) -> Tensor:
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
    raise NotImplementedError(f"draw_output has no rule for {type(distribution).__name__}: register one, or hide the site")


@draw_output.register
def _(distribution: Normal, op: Affine, x: Tensor, bias: Any = None) -> Tensor:
    b_mean, b_variance = (bias.mean, bias.variance) if isinstance(bias, Normal) else (bias, None)
    mean = op(x, distribution.mean, b_mean)
    variance = op(x.square(), distribution.variance, b_variance)  # the value of a bias never enters, its own variance does
    return mean + _stddev(variance) * torch.randn_like(mean)


def _stddev(variance: Tensor) -> Tensor:
    # sqrt has an infinite slope at zero, so a little is added inside; fast convolutions of squares can be slightly negative
    return (variance.clamp_min(0) + max(1e-8, torch.finfo(variance.dtype).tiny)).sqrt()


@draw_output.register
def _(distribution: BernoulliDropout, op: Affine, x: Tensor, bias: Any = None) -> Tensor:
    keep = 1 - distribution.rate
    if distribution.group_dim == op.weight_in:  # binary dropout: a mask on the inputs, one for each example
        mask = x.new_empty(op.per_example(x, distribution.loc.shape[op.weight_in])).bernoulli_(keep)
        return op(x * mask, distribution.loc, _value(bias))
    if distribution.group_dim == op.weight_out:
        mask = x.new_empty(op.per_example(x, distribution.loc.shape[op.weight_out])).bernoulli_(keep)
        output = op(x, distribution.loc) * mask
        return output if bias is None else output + _value(bias).reshape([-1] + [1] * (-1 - op.channel))
    return op(x, distribution.rsample(), _value(bias))  # masks on single weights: shared by all examples


def _value(bias: Any) -> Any:
    return bias.rsample() if isinstance(bias, Normal) else bias


def flip_signs(distribution: Any, op: Affine, x: Tensor, bias: Any = None) -> Tensor:
    """Draw the weight once and flip the signs of its noise for each example: the rule of :func:`flipout`."""
    if not isinstance(distribution, Normal):
        return draw_output(distribution, op, x, bias)
    mean = op(x, distribution.mean, _value(bias))
    noise = distribution.rsample() - distribution.mean
    r, s = (x.new_empty(op.per_example(z, z.shape[op.channel])).bernoulli_().mul_(2).sub_(1) for z in (x, mean))
    return mean + op(x * r, noise) * s


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    return apply(Affine(F.linear), input, weight, bias)


def _matmul(first: Any, second: Any) -> Any:
    """x @ w is a linear layer of the transposed weight; w @ x for a vector x likewise."""
    if isinstance(second, DeferredSample) and second.dim() == 2 and not second.gates and not isinstance(first, DeferredSample):
        flipped = _transpose(second)
        return NotImplemented if flipped is NotImplemented else _linear(first, flipped)
    if isinstance(second, DeferredSample) and second.dim() == 1 and not second.gates:
        return apply(Affine(lambda x, w, b: x @ w if b is None else x @ w + b), first, second)
    if isinstance(first, DeferredSample) and first.dim() == 2 and second.dim() == 1:
        return _linear(second, first)
    return NotImplemented


def _convolution(function: Callable[..., Tensor], axes: int, transposed: bool) -> Callable[..., Any]:
    names = ("stride", "padding", *(("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")))

    def convolve(input: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
        options = dict(zip(names, args, strict=False)) | kwargs
        weight_in, weight_out = (0, 1) if transposed else (1, 0)
        if options.get("groups", 1) != 1:  # then the inner axis of the weight runs within a group only
            weight_in, weight_out = (0, -1) if transposed else (-1, 0)
        return apply(Affine(function, options, -1 - axes, weight_in, weight_out), input, weight, bias)

    return convolve


_CONVOLUTIONS = {
    getattr(F, f"conv_transpose{axes}d" if transposed else f"conv{axes}d"): (axes, transposed)
    for axes in (1, 2, 3)
    for transposed in (False, True)
}
_RULES: dict[Callable, Callable] = {
    F.linear: _linear,
    **{function: _convolution(function, *kind) for function, kind in _CONVOLUTIONS.items()},
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.mv, Tensor.mv), _matmul),
    Tensor.__rmatmul__: lambda second, first: _matmul(first, second),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply), _multiply),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__, torch.true_divide), _divide),
    **dict.fromkeys((Tensor.t, torch.t, Tensor.T.__get__, Tensor.mT.__get__), _transpose),
    **dict.fromkeys((torch.transpose, Tensor.transpose), _transpose),
    **dict.fromkeys((torch.sqrt, Tensor.sqrt), _sqrt),
}
