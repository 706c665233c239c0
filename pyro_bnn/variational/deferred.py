r"""Samples that have not been drawn yet, and the states that they pass through.

The tables of states and operations are in :mod:`pyro_bnn.variational.reparameterization`. This
module defines the two classes that they refer to: a :class:`DeferredDraw` is the random variable of
a site and holds the state; a :class:`DeferredSample` is the tensor that a program computes with.
Scaling or transposing a sample returns another sample of the same draw. :func:`implements`
registers the rule by which an operation handles a deferred sample.
"""

from __future__ import annotations

import enum
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils._pytree import tree_map

from .layer_rules import LayerRule

__all__ = [
    "DeferredDraw",
    "DeferredSample",
    "DrawOptions",
    "DrawState",
    "ReparameterizationWarning",
    "WeightReuseError",
    "implements",
    "materialized",
]

T = TypeVar("T")
Rule = TypeVar("Rule", bound=Callable[..., Tensor | None])


class WeightReuseError(RuntimeError):
    """A deferred weight is used again after a layer has drawn its output from it."""


class ReparameterizationWarning(UserWarning):
    """A weight is not reparameterized exactly, or not at all; warned once for each site."""


class DrawState(enum.Enum):
    """The states of a deferred draw."""

    UNDRAWN = "undrawn"
    OUTPUT_DRAWN = "output drawn"
    MATERIALIZED = "materialized"


@dataclass(frozen=True)
class DrawOptions:
    """How the sites of one guide are drawn.

    Args:
        function: name of the function that the user called, for error messages.
        layer_rule: draws the output of a layer.
        per_example_scales: whether group scales are drawn for each example.
        warned: names of the sites that a warning was issued for.
    """

    function: str
    layer_rule: LayerRule
    per_example_scales: bool = False
    warned: set[str] = field(default_factory=set)


@dataclass(eq=False)
class DeferredDraw:
    """The random variable behind all samples that are derived from one site.

    Args:
        name: name of the site.
        distribution: distribution of the site, elementwise.
        options: how it is drawn.
        state: see :class:`DrawState`.
        value: the draw, once it is materialized.
    """

    name: str
    distribution: Distribution
    options: DrawOptions
    state: DrawState = DrawState.UNDRAWN
    value: Tensor | None = None

    def mark_used(self) -> None:
        """Enter the state *output drawn*: a layer is about to draw its output.

        Raises:
            WeightReuseError: if the weight was used or materialized before.
        """
        if self.state is not DrawState.UNDRAWN:
            raise self._reuse_error()
        self.state = DrawState.OUTPUT_DRAWN

    def materialize(self) -> Tensor:
        """Enter the state *materialized* and return the one draw that all examples share.

        Raises:
            WeightReuseError: if a layer has drawn its output from the weight.
        """
        if self.state is DrawState.OUTPUT_DRAWN:
            raise self._reuse_error()
        if self.value is None:
            self.value = self.distribution.rsample()
            self.state = DrawState.MATERIALIZED
        return self.value

    def warn_once(self, message: str) -> None:
        """Issue a :class:`ReparameterizationWarning`, unless the site has had one before."""
        if self.name not in self.options.warned:
            self.options.warned.add(self.name)
            warnings.warn(f"site {self.name!r}: {message}", ReparameterizationWarning, stacklevel=6)

    def _reuse_error(self) -> WeightReuseError:
        function = self.options.function
        return WeightReuseError(
            f"{function}: site {self.name!r} is used twice in one forward pass; expected one use "
            "of a deferred weight, because a second use would give it a second value. Sample the "
            f"site as usual: {function}(guide, hide=[{self.name!r}]), which fit accepts as a guide"
        )


class DeferredSample(Tensor):
    """A tensor that stands for a sample which has not been drawn yet.

    Its memory is a single NaN, expanded to the shape of the sample: it costs nothing and cannot be
    mistaken for a value. The attributes describe the sample.

    Attributes:
        draw: the random variable, shared with all samples derived from the same site.
        distribution: distribution of this sample, with independent elements, without ``scales``.
        scales: deferred group scales that multiply the sample and are drawn for each example.
        evaluate: returns this sample, without ``scales``, from the draw shared by all examples.
    """

    draw: DeferredDraw
    distribution: Distribution
    scales: tuple[DeferredSample, ...]
    evaluate: Callable[[], Tensor]

    @staticmethod
    def of(draw: DeferredDraw) -> DeferredSample:
        """Return the sample of a site, neither scaled nor transposed."""
        return DeferredSample.create(draw, draw.distribution, (), draw.materialize)

    @staticmethod
    def create(
        draw: DeferredDraw,
        distribution: Distribution,
        scales: tuple[DeferredSample, ...],
        evaluate: Callable[[], Tensor],
    ) -> DeferredSample:
        """Return a sample with these attributes."""
        nan = distribution.mean.new_full((), math.nan)
        placeholder = nan.expand(distribution.batch_shape + distribution.event_shape)
        sample = placeholder.as_subclass(DeferredSample)
        sample.draw = draw
        sample.distribution = distribution
        sample.scales = scales
        sample.evaluate = evaluate
        return sample

    def map_distribution(
        self, distribution: Distribution, change: Callable[[Tensor], Tensor]
    ) -> DeferredSample:
        """Return ``change`` of this sample, which has the given distribution."""
        return DeferredSample.create(
            self.draw, distribution, self.scales, lambda: change(self.evaluate())
        )

    def with_scale(self, scale: DeferredSample) -> DeferredSample:
        """Return this sample times a group scale that is drawn for each example."""
        return DeferredSample.create(
            self.draw, self.distribution, (*self.scales, scale), self.evaluate
        )

    def materialize(self) -> Tensor:
        """Return this sample, with its scales, from draws that all examples share."""
        value = self.evaluate()
        for scale in self.scales:
            value = value * scale.materialize()
        return value

    def __repr__(self, *, tensor_contents: str | None = None) -> str:  # type: ignore[override]
        kind = type(self.distribution).__name__
        return f"DeferredSample({self.draw.name!r}, {kind}, shape={tuple(self.shape)})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            return super().__torch_function__(  # type: ignore[no-untyped-call]
                func, types, args, kwargs
            )
        operation = OPERATIONS.get(func)
        if operation is not None and kwargs.keys() <= operation.keywords:
            result = operation.rule(*args, **kwargs)
            if result is not None:
                return result
        name = getattr(func, "__name__", str(func))
        values = tree_map(lambda value: materialized(value, name), (args, dict(kwargs)))
        return func(*values[0], **values[1])


def materialized(value: T, reader: str) -> T | Tensor:
    """Return the shared draw of a deferred sample, with a warning; other values pass unchanged.

    Args:
        value: anything.
        reader: what needs the value, for the warning.
    """
    if not isinstance(value, DeferredSample):
        return value
    value.draw.warn_once(
        f"{reader} needs the weight itself, so it is drawn once and shared by all examples"
    )
    return value.materialize()


# --- Operations -----------------------------------------------------------------------------------


class Operation(NamedTuple):
    """The rule for a function of torch, and the keyword arguments that the rule accepts."""

    rule: Callable[..., Tensor | None]
    keywords: frozenset[str]


OPERATIONS: dict[Callable[..., Any], Operation] = {}
"""The operations that have a rule; all others materialize their arguments."""


def implements(*functions: Callable[..., Tensor]) -> Callable[[Rule], Rule]:
    """Register a rule for functions of torch, as a decorator.

    The rule has the parameters of the function, by the same names. It returns ``None`` where it
    does not apply; then, and for keyword arguments that it does not have (``out``, ``alpha``), the
    arguments are materialized.
    """

    def register(rule: Rule) -> Rule:
        operation = Operation(rule, frozenset(inspect.signature(rule).parameters))
        OPERATIONS.update(dict.fromkeys(functions, operation))
        return rule

    return register


def getter(attribute: str) -> Callable[[Tensor], Tensor]:
    """Return the function by which torch reads an attribute of a tensor, such as ``T``."""
    function: Callable[[Tensor], Tensor] = getattr(Tensor, attribute).__get__
    return function


METADATA_ATTRIBUTES = (
    "shape",
    "dtype",
    "device",
    "layout",
    "ndim",
    "requires_grad",
    "is_leaf",
    "is_meta",
    "is_sparse",
    "is_nested",
    "is_quantized",
    "is_cuda",
    "is_mkldnn",
    "_base",
)
METADATA_METHODS: tuple[Callable[..., Any], ...] = (
    Tensor.size,
    Tensor.dim,
    Tensor.ndimension,
    Tensor.numel,
    Tensor.nelement,
    Tensor.__len__,
    Tensor.__hash__,
    Tensor.is_floating_point,
    Tensor.is_complex,
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
)
METADATA = frozenset((*map(getter, METADATA_ATTRIBUTES), *METADATA_METHODS))
"""The functions that read no element: they leave a sample in the state that it is in."""
