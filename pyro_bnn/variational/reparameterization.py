r"""Local reparameterization: draw the output of a layer instead of its weights.

If the weights are independent Gaussians, :math:`w_{ij} \sim \mathcal{N}(\mu_{ij}, \sigma_{ij}^2)`, the output of a
dense layer is Gaussian too,

.. math:: y_j \sim \mathcal{N}\Big(\sum_i x_i \mu_{ij},\ \sum_i x_i^2 \sigma_{ij}^2\Big),

independently for every example. Drawing y directly gives the same expected loss, needs fewer random numbers, and its
gradients have a smaller variance, because the noise of different examples is independent.

Here this is an effect handler on the guide. :func:`local_reparameterization` answers a weight site with a
:class:`DeferredSample`: a tensor that has not been drawn yet and knows its distribution. When a linear layer or a
convolution meets it, :func:`draw_output` draws the layer's output. What else is done to it draws the weight once, for
everyone.

Source: Kingma, Salimans & Welling (2015), section 2.2, https://arxiv.org/abs/1506.02557.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Independent
from torch.utils._pytree import tree_map

from pyro_bnn.distributions import BernoulliDropout, Point, TruncatedLogNormal

from .layer_rules import AffineOp, draw_output, draw_per_example, flip_signs, scaled, transposed

__all__ = [
    "DeferredSample",
    "ReparameterizationWarning",
    "WeightReuseError",
    "draw_output",
    "flipout",
    "local_reparameterization",
]

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

    Exact for one use of a weight per example in linear layers. In convolutions, and in linear layers that see several
    positions of one example, every output of a Gaussian weight has its exact marginal distribution but the covariances
    between positions are dropped. A deferred vector that is added to a larger tensor is taken for the bias of a layer
    and drawn for each index of the first axis. For training only: prediction draws real weights, one network for the
    whole batch.

    Args:
        guide: a guide of any kind. Left alone are sites of other distributions than Normal and ``BernoulliDropout``
            (with groups), sites of a single number, and those inside a plate.
        hide: names of sites to be sampled as usual.
        per_example_scales: draw the group scales of a scale mixture afresh for each example, as in Bayesian
            compression: those per input unit on the inputs of a layer, those per output channel on its outputs. A
            scale of one weight or of the whole layer is drawn once, and so are those that pass a slab.

    Raises:
        WeightReuseError: at the first forward pass that uses a deferred weight twice.
        ValueError: at the first forward pass, a name in ``hide`` that is no site of the guide.
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

    def __init__(
        self,
        guide: Callable[..., Any],
        rule: Callable[..., Tensor],
        hide: Collection[str],
        per_example_scales: bool,
    ) -> None:
        super().__init__()
        self.guide = guide
        self.defer = _Defer(rule, frozenset(hide), per_example_scales)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the guide; its trace holds deferred samples."""
        with self.defer:
            result = self.guide(*args, **kwargs)
        if self.defer.unfound:
            raise ValueError(
                f"hide names {', '.join(map(repr, sorted(self.defer.unfound)))}, which the guide does not sample; "
                "expected a collection of names of its sites"
            )
        return result


class _Defer(Messenger):
    """Answer the global Gaussian (and dropout) sites of a guide with deferred samples."""

    def __init__(
        self, rule: Callable[..., Tensor], hide: frozenset[str], per_example_scales: bool
    ) -> None:
        super().__init__()
        self.rule, self.hide, self.per_example_scales = rule, hide, per_example_scales
        self.told: set[str] = set()
        self.unfound = set(hide)

    def _pyro_sample(self, msg: Any) -> None:
        self.unfound.discard(msg["name"])
        latent = not (msg["done"] or msg["is_observed"] or msg["value"] is not None)
        # inside a plate it is local to the data, and no weight; an auxiliary variable is there to be transformed
        if (
            not latent
            or msg["name"] in self.hide
            or msg["cond_indep_stack"]
            or msg["infer"].get("is_auxiliary")
        ):
            return
        distribution: Any = msg["fn"]
        while isinstance(distribution, Independent):
            distribution = distribution.base_dist
        gate = self.per_example_scales and isinstance(distribution, LogNormal | TruncatedLogNormal)
        masks = isinstance(distribution, BernoulliDropout) and distribution.group_dim is not None
        if (isinstance(distribution, Normal) or masks or gate) and distribution.shape().numel() > 1:
            msg["value"] = DeferredSample.of(DeferredDraw(msg["name"], distribution, self))
            msg["done"] = True


@dataclass(eq=False)
class DeferredDraw:
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
            "a second one would give it a second value. Sample it as usual: "
            f"local_reparameterization(guide, hide=[{self.name!r}]), which fit takes as a guide too"
        )


class DeferredSample(Tensor):
    """A sample that has not been drawn yet.

    As a tensor it is a single NaN, expanded to the right shape: it takes no memory and is unmistakable if it leaks.
    What it stands for is ``distribution``, of independent elements, multiplied by ``gates``: group scales that are
    themselves deferred.
    """

    root: DeferredDraw
    distribution: dist.TorchDistribution
    read: Callable[[], Tensor]
    gates: tuple[DeferredSample, ...]

    @staticmethod
    def of(root: DeferredDraw) -> DeferredSample:
        """Defer the sample of a site."""
        return DeferredSample._make(root, root.distribution, root.draw, ())

    @staticmethod
    def _make(
        root: DeferredDraw,
        distribution: Any,
        read: Callable[[], Tensor],
        gates: tuple[DeferredSample, ...],
    ) -> DeferredSample:
        self = (
            distribution.mean.new_full((), math.nan)
            .expand(distribution.shape())
            .as_subclass(DeferredSample)
        )
        self.root, self.distribution, self.read, self.gates = root, distribution, read, gates
        return self

    def derive(self, distribution: Any, change: Callable[[Tensor], Tensor]) -> DeferredSample:
        """Return a sample made from this one, with the same claim."""
        return DeferredSample._make(
            self.root, distribution, lambda: change(self.read()), self.gates
        )

    def materialize(self) -> Tensor:
        """Return the shared draw, gates included."""
        return math.prod((gate.materialize() for gate in self.gates), start=self.read())

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"DeferredSample({self.root.name!r}, {type(self.distribution).__name__}, shape={tuple(self.shape)})"

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            return super().__torch_function__(func, types, args, kwargs)
        if func in _RULES:
            result = _RULES[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        read = functools.partial(_read, by=getattr(func, "__name__", str(func)))
        return func(*tree_map(read, args), **tree_map(read, kwargs))


def _read(value: Any, by: str) -> Any:
    """Return the shared draw of a deferred sample, and say so; other values pass."""
    if not isinstance(value, DeferredSample):
        return value
    value.root.tell(f"{by} needs the weight itself, so it is drawn once and shared by all examples")
    return value.materialize()


_METADATA = {
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad")
    ),
    *(
        getattr(Tensor, name).__get__
        for name in ("is_leaf", "is_meta", "is_sparse", "is_nested", "is_quantized")
    ),
    *(getattr(Tensor, name).__get__ for name in ("is_cuda", "is_mkldnn", "_base")),
    *(
        Tensor.size,
        Tensor.dim,
        Tensor.ndimension,
        Tensor.numel,
        Tensor.nelement,
        Tensor.__len__,
        Tensor.__hash__,
    ),
    *(
        Tensor.is_floating_point,
        Tensor.is_complex,
        torch.is_floating_point,
        torch.is_complex,
        torch.numel,
    ),
}


# --- What stays deferred: scaling, shifting, transposing, group scales ------------------------------------------------


def _multiply(input: Any, other: Any, **options: Any) -> Any:
    if options:
        return NotImplemented
    if isinstance(input, DeferredSample) and isinstance(other, DeferredSample):
        weight, gate = (input, other) if input.numel() >= other.numel() else (other, input)
        if (
            torch.broadcast_shapes(weight.shape, gate.shape) != weight.shape
            or weight.root is gate.root
            or gate.gates
        ):
            return NotImplemented
        if not weight.root.handler.per_example_scales or _gate_axis(gate) is None:
            return _multiply(weight, gate.materialize())
        return DeferredSample._make(
            weight.root, weight.distribution, weight.read, (*weight.gates, gate)
        )
    sample, factor = (input, other) if isinstance(input, DeferredSample) else (other, input)
    # u (4, 1) times v (1, 50) would be no sample of independent elements: the result must have the sample's own shape
    if (
        isinstance(factor, Tensor)
        and torch.broadcast_shapes(sample.shape, factor.shape) != sample.shape
    ):
        return NotImplemented
    distribution = scaled(sample.distribution, factor)
    return (
        NotImplemented
        if distribution is NotImplemented
        else sample.derive(distribution, lambda draw: draw * factor)
    )


def _add(input: Any, other: Any, **options: Any) -> Any:
    sample, summand = (input, other) if isinstance(input, DeferredSample) else (other, input)
    if (
        options
        or isinstance(summand, DeferredSample)
        or sample.gates
        or not isinstance(sample.distribution, Normal)
    ):
        return NotImplemented
    shape = torch.broadcast_shapes(sample.shape, getattr(summand, "shape", ()))
    if shape == sample.shape:
        moved = dist.Normal(
            sample.distribution.mean + summand, sample.distribution.stddev, validate_args=False
        )
        return sample.derive(moved, lambda draw: draw + summand)
    if (
        sample.dim() == 1 and shape == summand.shape
    ):  # a bias, added to the outputs of a layer: drawn for each example
        sample.root.claim()
        return summand + draw_per_example(AffineOp(F.linear), summand, sample.distribution)
    return NotImplemented


def _gate_axis(gate: DeferredSample) -> int | None:
    """Return the one axis along which group scales lie; ``None`` for one scale per weight, or none that is known."""
    axes = [axis for axis, size in enumerate(gate.shape) if size > 1]
    known = (
        isinstance(gate.distribution, (Normal, LogNormal, TruncatedLogNormal)) and gate.dim() > 1
    )
    return axes[0] if known and len(axes) == 1 else None


def _divide(input: Any, other: Any, **options: Any) -> Any:
    if options or not isinstance(input, DeferredSample) or isinstance(other, DeferredSample):
        return NotImplemented
    return _multiply(input, 1 / other)


def _transpose(input: DeferredSample, dim0: int = 0, dim1: int = 1) -> Any:
    distribution = (
        transposed(input.distribution, dim0, dim1) if input.dim() == 2 else NotImplemented
    )
    if distribution is NotImplemented:
        return NotImplemented
    sample = input.derive(distribution, lambda draw: draw.transpose(dim0, dim1))
    sample.gates = tuple(_transpose(gate, dim0, dim1) for gate in input.gates)
    return sample


def _sqrt(input: DeferredSample, **options: Any) -> Any:
    if options or not isinstance(input.distribution, LogNormal):
        return NotImplemented
    # log z ~ N(m, s^2)  =>  log sqrt(z) ~ N(m / 2, s^2 / 4)
    root = dist.LogNormal(
        input.distribution.loc / 2, input.distribution.scale / 2, validate_args=False
    )
    return input.derive(root, torch.sqrt)


# --- Layers -----------------------------------------------------------------------------------------------------------


def apply(op: AffineOp, x: Any, weight: Any, bias: Any = None) -> Tensor:
    """Draw the output of a layer whose weight is deferred (if only its bias is, or its input too, they are read)."""
    if isinstance(x, DeferredSample) or not isinstance(
        weight, DeferredSample
    ):  # rows of x are examples, not weights
        by = "a layer whose weight alone is not deferred"
        return op(_read(x, by), _read(weight, by), _read(bias, by))
    weight.root.claim()
    rule = weight.root.handler.rule
    gaussian = isinstance(weight.distribution, Normal) and not isinstance(
        weight.distribution, Point
    )
    if rule is draw_output and gaussian and (op.channel < -1 or x.dim() > 2):
        weight.root.tell(
            "each output has its exact marginal; covariances between positions of one example are dropped"
        )
    distribution, before, after = _sort_gates(op, weight)
    for gate in before:
        x = x * draw_per_example(op, x, gate)
    if isinstance(bias, DeferredSample) and isinstance(bias.distribution, Normal) and not after:
        bias.root.claim()
        return rule(distribution, op, x, bias.distribution)
    bias = _read(
        bias,
        "a layer with scales or masks on its outputs"
        if after
        else "a layer without a rule for its law",
    )
    output = rule(distribution, op, x, None if after else bias)
    for gate in after:
        output = output * draw_per_example(op, output, gate)
    return output if bias is None or not after else output + op.along_channels(bias, output)


def _sort_gates(op: AffineOp, weight: DeferredSample) -> tuple[Any, list[Any], list[Any]]:
    """Return the weight's distribution, and those of the scales of its inputs and of its outputs."""
    distribution: Any = weight.distribution
    before: list[Any] = []
    after: list[Any] = []
    for gate in weight.gates:
        axis = _gate_axis(gate)
        if axis in (op.weight_in, op.weight_out):
            gate.root.claim()
            (before if axis == op.weight_in else after).append(gate.distribution)
        else:  # no axis of the channels (the inner one of a convolution with groups)
            distribution = scaled(
                distribution, _read(gate, "a layer whose channels it does not run over")
            )
    return distribution, before, after


# --- Which functions are which rules ----------------------------------------------------------------------------------


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    return apply(AffineOp(F.linear), input, weight, bias)


def _matmul(input: Any, other: Any, **options: Any) -> Any:
    """x @ w is a linear layer of the transposed weight; w @ x for a vector x likewise."""
    if options or (isinstance(input, DeferredSample) and isinstance(other, DeferredSample)):
        return NotImplemented
    if isinstance(other, DeferredSample) and other.dim() == 1:
        return apply(AffineOp(_dot, weight_in=0, weight_out=None), input, other)
    if isinstance(other, DeferredSample) and other.dim() == 2:
        flipped = _transpose(other)
        return NotImplemented if flipped is NotImplemented else _linear(input, flipped)
    if isinstance(input, DeferredSample) and input.dim() == 2 and other.dim() == 1:
        return _linear(other, input)
    return NotImplemented


def _dot(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight  # there is no call with a bias


def _convolution(
    function: Callable[..., Tensor], axes: int, transposed: bool
) -> Callable[..., Any]:
    names = (
        "stride",
        "padding",
        *(("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")),
    )

    def convolve(input: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
        options = dict(zip(names, args, strict=False)) | kwargs
        # with groups the inner axis of the weight runs over the channels of one group only
        inner = None if options.get("groups", 1) != 1 else 1
        weight_in, weight_out = (0, inner) if transposed else (inner, 0)
        return apply(
            AffineOp(function, options, -1 - axes, weight_in, weight_out), input, weight, bias
        )

    return convolve


_CONVOLUTIONS = {
    getattr(F, f"conv_transpose{axes}d" if transposed else f"conv{axes}d"): (axes, transposed)
    for axes in (1, 2, 3)
    for transposed in (False, True)
}
_PRODUCTS = (
    torch.mul,
    Tensor.mul,
    Tensor.__mul__,
    Tensor.__rmul__,
    torch.multiply,
    Tensor.multiply,
)
_RULES: dict[Callable, Callable] = {
    F.linear: _linear,
    **{function: _convolution(function, *kind) for function, kind in _CONVOLUTIONS.items()},
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _matmul),
    **dict.fromkeys(
        (torch.mm, Tensor.mm), lambda input, mat2, **options: _matmul(input, mat2, **options)
    ),
    **dict.fromkeys(
        (torch.mv, Tensor.mv), lambda input, vec, **options: _matmul(input, vec, **options)
    ),
    Tensor.__rmatmul__: lambda other, input: _matmul(input, other),
    **dict.fromkeys(_PRODUCTS, _multiply),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__, torch.true_divide), _divide),
    **dict.fromkeys(
        (torch.t, Tensor.t, *(getattr(Tensor, name).__get__ for name in ("T", "mT"))), _transpose
    ),
    **dict.fromkeys((torch.transpose, Tensor.transpose), _transpose),
    **dict.fromkeys((torch.sqrt, Tensor.sqrt), _sqrt),
}
