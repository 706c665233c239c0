"""Functions of tensors, traced once and compiled: a Pyro program reduced to its arithmetic.

Running a Pyro program costs milliseconds in handlers, dictionaries and distribution objects,
whatever the size of the network. :func:`compiled` runs a function once under
:func:`~torch.fx.experimental.proxy_tensor.make_fx`, which records its operations on tensors and
nothing else, and passes the recorded graph to inductor, torch's compiler. The result computes the
same function, for tensors of the same shapes, at the cost of the arithmetic.

The recorded graph serves every later call. A function that decides what to do by the *values* of
tensors cannot be recorded this way: it runs uncompiled, with one warning that gives the reason.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from .constant_folding import draws_random_numbers, fold_constants
from .program import Site
from .rng import fork_rng

__all__ = [
    "CompileWarning",
    "NotTraceableError",
    "compiled",
    "compiled_strictly",
    "traced",
    "without_validation",
]

Function = Callable[..., tuple[Tensor, ...]]
"""A function of tensors that returns a tuple of tensors and may change its arguments in place."""

_T = TypeVar("_T")


class CompileWarning(UserWarning):
    """Something runs uncompiled, which is correct and slower; the message gives the reason."""


class NotTraceableError(RuntimeError):
    """The operations of a function depend on the values of tensors, or cannot be recorded."""


def compiled(
    function: Function, examples: Sequence[Tensor], name: str, allow_random: bool = False
) -> Function:
    """Return a function compiled for tensors of given shapes, or, where that fails, the function.

    Args:
        function: a function of tensors that returns a tuple of tensors and may change its arguments
            in place.
        examples: arguments to trace the function with; they are not modified. Later arguments must
            have the same shapes and be contiguous.
        name: name of the function, for the warning.
        allow_random: whether the function may draw random numbers. The compiled function draws them
            from torch's global generator.

    Warns:
        CompileWarning: the function cannot be traced, or there is no C++ compiler.
    """
    try:
        return compiled_strictly(function, examples, allow_random)
    except NotTraceableError as error:
        message = f"{name} runs uncompiled, which is correct and slower: {error}"
        warnings.warn(message, CompileWarning, stacklevel=2)
        return function


def compiled_strictly(
    function: Function, examples: Sequence[Tensor], allow_random: bool = False
) -> Function:
    """Return a function compiled, after comparing it with the original at the examples.

    The arguments are those of :func:`compiled`.

    Raises:
        NotTraceableError: the function cannot be traced, or its compiled form computes something
            else.

    Warns:
        CompileWarning: there is no C++ compiler.
    """
    # tracing runs the function, which may draw random numbers; those of the caller are unaffected
    with fork_rng(examples[0].device):
        graph = traced(function, examples, allow_random)
        fast = lowered(graph, examples)
        _require_agreement(function, fast, examples)
    return fast


def traced(
    function: Function, examples: Sequence[Tensor], allow_random: bool = False
) -> torch.fx.GraphModule:
    """Return the graph of the operations on tensors that a function runs.

    The arguments are those of :func:`compiled`.

    Raises:
        NotTraceableError: the operations depend on the values of tensors, or draw random numbers
            although ``allow_random`` is false.
    """
    try:
        with without_validation(), _without_warnings():
            graph = make_fx(function)(*_clones(examples))
    except Exception as error:  # a user's program can fail in any way while it is traced
        reason = " ".join(str(error).split()).split(" - ")[0][:200] or type(error).__name__
        raise NotTraceableError(
            f"its operations depend on the values of tensors, or cannot be listed ({reason})"
        ) from error
    if not allow_random:
        drawing = {str(node.target) for node in graph.graph.nodes if draws_random_numbers(node)}
        if drawing:
            raise NotTraceableError(f"it draws random numbers ({', '.join(sorted(drawing))})")
    return fold_constants(graph)


def lowered(graph: torch.fx.GraphModule, examples: Sequence[Tensor]) -> Function:
    """Return a graph compiled by inductor, or, without a C++ compiler, the graph itself.

    ``torch._inductor.compile`` is not public, but exists since torch 2.0. It omits the guards with
    which ``torch.compile`` checks at each call whether the shapes of the arguments have changed,
    which saves 75 microseconds. Without it, ``torch.compile`` is used.

    Two settings differ from inductor's defaults. Random numbers come from torch's generators, which
    are faster than inductor's and follow the same seeds. Where this release of torch can, tanh(x)
    is computed as 2 / (1 + exp(-2x)) - 1, which is twice as fast and accurate to one rounding of
    the number one.

    Warns:
        CompileWarning: the compiler failed.
    """
    import torch._inductor as inductor
    from torch._inductor import config

    inputs = _clones(examples)
    settings: dict[str, Any] = {"fallback_random": True}
    if hasattr(config.cpp, "use_decompose_tanh"):
        settings["cpp.use_decompose_tanh"] = True
    try:
        with config.patch(settings), _quiet_compiler():
            if hasattr(inductor, "compile"):
                return cast(Function, inductor.compile(graph, list(inputs)))
            fast = torch.compile(graph, fullgraph=True, dynamic=False)
            fast(*inputs)
            return cast(Function, fast)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        message = (
            f"the compiler failed, so operations run one by one ({type(error).__name__}: {reason})"
        )
        warnings.warn(message, CompileWarning, stacklevel=3)
        return graph


# --- validation -----------------------------------------------------------------------------------


@contextlib.contextmanager
def without_validation() -> Iterator[None]:
    """Switch off the checks of distributions, which look at the values of tensors.

    This includes distributions that were built before the context was entered.
    """
    with pyro.validation_enabled(False), _Unvalidated():
        yield


class _Unvalidated(Messenger):
    """Replace the distribution of every site by a copy without checks."""

    def _pyro_sample(self, msg: Site) -> None:
        msg["fn"] = _unvalidated(msg["fn"])


def _unvalidated(distribution: _T) -> _T:
    """Return a copy of a distribution, and of those that it consists of, without checks."""
    if not isinstance(distribution, torch.distributions.Distribution):
        return distribution
    unchecked = object.__new__(type(distribution))
    unchecked.__dict__.update(distribution.__dict__, _validate_args=False)
    for attribute in ("base_dist", "_component_distribution", "_mixture_distribution"):
        if attribute in unchecked.__dict__:
            unchecked.__dict__[attribute] = _unvalidated(unchecked.__dict__[attribute])
    return unchecked


# --- agreement ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Outcome:
    """The results of a run of a function, and the changes that it made to its arguments.

    Attributes:
        results: the tensors that it returned.
        changes: after minus before, of all arguments in one vector of doubles.
    """

    results: tuple[Tensor, ...]
    changes: Tensor


def _require_agreement(function: Function, fast: Function, examples: Sequence[Tensor]) -> None:
    """Compare a compiled function, and its changes of the arguments, with the original.

    Four runs are compared: ``reference`` and ``repeat`` run the original twice, ``compiled`` runs
    the compiled function, and ``perturbed`` runs the original on arguments that differ by one
    rounding. The compiled function may differ from the reference by about as much as the perturbed
    run does. This allowance is necessary: where a gradient is zero but for rounding, an optimizer
    such as Adam makes a step of full length of it; where two numbers are equal but for rounding,
    max pooling may select either.

    Raises:
        NotTraceableError: the compiled function differs by more than rounding, or the original
            differs from itself.
    """
    reference = _run_on_copies(function, examples)
    repeat = _run_on_copies(function, examples)
    compiled = _run_on_copies(fast, examples)
    perturbed = _run_on_copies(function, _perturb(examples))
    for first, second in zip(reference.results, repeat.results, strict=True):
        if not _agree(first, second, perturbed=first):
            raise _disagreement()
    for expected, actual, nearby in zip(
        reference.results, compiled.results, perturbed.results, strict=True
    ):
        if not _agree(expected, actual, nearby):
            raise _disagreement()
    # the changes are compared as one vector: single entries may differ, see above
    allowance = 2 * (perturbed.changes - reference.changes).norm()
    tolerance = 0.5 * reference.changes.norm() + allowance
    if bool((compiled.changes - reference.changes).norm() > tolerance):
        raise _disagreement()


def _run_on_copies(function: Function, arguments: Sequence[Tensor]) -> _Outcome:
    """Run a function on copies of its arguments, with the same random numbers at every call."""
    copies = _clones(arguments)
    with fork_rng(copies[0].device), without_validation(), _without_warnings():
        results = function(*copies)
    changes = []
    for after, before in zip(copies, arguments, strict=True):
        changes.append((after.detach().double() - before.double()).flatten())
    return _Outcome(results, torch.cat(changes).nan_to_num())


def _perturb(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors whose numbers are changed by one rounding, alternately up and down."""
    perturbed = []
    for tensor in tensors:
        if tensor.is_floating_point():
            odd = torch.arange(tensor.numel(), device=tensor.device) % 2
            sign = (1 - 2 * odd).view(tensor.shape)
            tensor = tensor * (1 + torch.finfo(tensor.dtype).eps * sign)
        perturbed.append(tensor)
    return perturbed


def _agree(expected: Tensor, actual: Tensor, perturbed: Tensor) -> bool:
    """Return whether two tensors are equal up to rounding.

    The tolerance is relative to the largest number, 6e-4 in float32 and 2e-10 in float64, plus
    twice the difference between ``expected`` and its value at perturbed arguments.
    """
    if not expected.is_floating_point():
        return bool((expected == actual).all())
    if not expected.numel():
        return True
    tolerance = 100 * torch.finfo(expected.dtype).eps ** 0.75
    scale = torch.where(expected.isfinite(), expected, 0).abs().max()
    allowance = 2 * (perturbed - expected).abs().nan_to_num(nan=0.0, posinf=0.0)
    close = (expected - actual).abs() <= tolerance * scale + allowance
    both_nan = expected.isnan() & actual.isnan()
    return bool(((expected == actual) | both_nan | close).all())


def _disagreement() -> NotTraceableError:
    return NotTraceableError(
        "its trace gives other numbers than the program, so it depends on something else than its "
        "arguments: on time, a counter, or numpy's random numbers; or torch changed the order of "
        "its random numbers"
    )


def _clones(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]


# --- suppression of warnings ----------------------------------------------------------------------


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress the warnings of a program, which it has already issued when it ran untraced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _quiet_compiler() -> Iterator[None]:
    """Suppress the compiler's remarks about the machine, such as the lack of a GPU."""
    with (
        _errors_only("torch.utils.cpp_extension"),
        _errors_only("torch._inductor"),
        _without_warnings(),
    ):
        yield


@contextlib.contextmanager
def _errors_only(name: str) -> Iterator[None]:
    """Let a logger report errors only."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
