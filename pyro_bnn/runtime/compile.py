"""A function of tensors, traced once and compiled: what is left of a Pyro program is its arithmetic.

A Pyro program run with Python costs milliseconds in handlers, dictionaries and distribution objects, whatever the size
of the network. :func:`compiled` runs a function once under :func:`~torch.fx.experimental.proxy_tensor.make_fx`, which
notes every operation on tensors and nothing else, and hands the list to inductor. The result is the same function of
tensors, of the same shapes, at the cost of the arithmetic.

The same list of operations serves every call, so what the function decides by looking at *values* of tensors cannot be
followed: such a function is left as it is, with one warning that names the reason.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from .rng import fork_rng

__all__ = ["CompileWarning", "NotTraceableError", "compiled", "traced", "without_validation"]

Function = Callable[..., tuple[Tensor, ...]]


class CompileWarning(UserWarning):
    """Something runs uncompiled: correct, and slower. The message names the reason."""


class NotTraceableError(RuntimeError):
    """A program whose operations depend on the values of tensors, or that cannot be reduced to them."""


def compiled(
    function: Function, examples: Sequence[Tensor], what: str, random: bool = False
) -> Function:
    """Return the function compiled for tensors of these shapes, or, where that cannot be, the function itself.

    Args:
        function: of tensors; it returns a tuple of tensors and may change its arguments in place.
        examples: arguments to trace it with; they are left as they are. Later ones must be contiguous, as these.
        what: its name, for the warning.
        random: whether it may draw random numbers; these then come from torch's global generator.

    Warns:
        CompileWarning: when the function cannot be traced, or there is no C++ compiler, with the reason.
    """
    try:
        return compiled_strictly(function, examples, random)
    except NotTraceableError as error:
        message = f"{what} runs uncompiled, which is correct and slower: {error}"
        warnings.warn(message, CompileWarning, stacklevel=2)
        return function


def compiled_strictly(
    function: Function, examples: Sequence[Tensor], random: bool = False
) -> Function:
    """Return the function compiled, and checked against the plain one at the examples.

    Raises:
        NotTraceableError: the function cannot be traced.
    """
    with fork_rng(
        examples[0].device
    ):  # tracing runs the function; the caller's random numbers go on as before
        graph = traced(function, examples, random)
        fast = lowered(graph, examples)
        _require_agreement(function, fast, examples)
    return fast


def traced(
    function: Function, examples: Sequence[Tensor], random: bool = False
) -> torch.fx.GraphModule:
    """Return the operations on tensors that the function runs.

    Raises:
        NotTraceableError: it decides by the values of tensors, or draws random numbers and may not.
    """
    try:
        with without_validation(), _silence():
            graph = make_fx(function)(*_clones(examples))
    except Exception as error:  # what a user's program does while it is traced can fail in any way
        reason = " ".join(str(error).split()).split(" - ")[0][:200] or type(error).__name__
        raise NotTraceableError(
            f"its operations depend on the values of tensors, or cannot be listed ({reason})"
        ) from error
    drawing = [str(node.target) for node in graph.graph.nodes if _draws_random_numbers(node)]
    if drawing and not random:
        raise NotTraceableError(f"it draws random numbers ({', '.join(sorted(set(drawing)))})")
    return _folded(graph)


def lowered(graph: torch.fx.GraphModule, examples: Sequence[Tensor]) -> Function:
    """Return the graph compiled by inductor; without a C++ compiler, the graph as it is.

    ``torch._inductor.compile`` is not public but has been there since torch 2.0; it leaves out the guards by which
    ``torch.compile`` finds out, at each call, whether the arguments are still of the same shapes: 75 microseconds.
    Random numbers come from torch's generators, which are faster than inductor's and follow the same seeds. tanh x is
    computed as 2 / (1 + exp(-2x)) - 1 where this torch can: twice as fast, right to a rounding of one.
    """
    import torch._inductor as inductor
    from torch._inductor import config

    inputs = _clones(examples)
    settings: dict[str, Any] = {"fallback_random": True}
    if hasattr(config.cpp, "use_decompose_tanh"):
        settings["cpp.use_decompose_tanh"] = True
    try:
        with config.patch(settings), _quiet():
            if hasattr(inductor, "compile"):
                return inductor.compile(graph, list(inputs))  # type: ignore
            fast = torch.compile(graph, fullgraph=True, dynamic=False)
            fast(*inputs)
            return fast
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        message = (
            f"the compiler failed, so operations run one by one ({type(error).__name__}: {reason})"
        )
        warnings.warn(message, CompileWarning, stacklevel=3)
        return graph


def _folded(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Compute once what depends on constants alone: the logarithms of all fixed scales, say.

    Constants of one value are written as a number, for the compiler to see that a mean is zero and a scale is one.
    """
    known: dict[torch.fx.Node, Any] = {}
    for node in graph.graph.nodes:
        constant = bool(node.all_input_nodes) and all(
            part in known for part in node.all_input_nodes
        )
        if node.op == "get_attr":
            known[node] = getattr(graph, node.target)
        elif node.op == "call_function" and constant and not _draws_random_numbers(node):
            if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
                return graph  # a constant that is written to is none
            arguments, options = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*arguments, **options)
    for node, value in known.items():
        if not isinstance(value, Tensor) or all(user in known for user in node.users):
            continue
        with graph.graph.inserting_before(node):
            if (
                value.numel()
                and value.is_floating_point()
                and bool((value == value.flatten()[0]).all())
            ):
                own: Any = {"dtype": value.dtype, "device": value.device}
                arguments = (list(value.shape), float(value.flatten()[0]))
                new = graph.graph.call_function(torch.ops.aten.full.default, arguments, own)
            elif node.op == "get_attr":
                continue
            else:
                graph.register_buffer(f"folded_{node.name}", value.clone())
                new = graph.graph.get_attr(f"folded_{node.name}")
        node.replace_all_uses_with(new)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


@contextlib.contextmanager
def without_validation() -> Iterator[None]:
    """Switch off the checks of distributions, those that were built before included: they look at values."""
    with pyro.validation_enabled(False), _Unvalidated():
        yield


class _Unvalidated(Messenger):
    """Replace the distribution of every site by a copy that checks nothing."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = _unvalidated(msg["fn"])


def _unvalidated(distribution: Any) -> Any:
    if not isinstance(distribution, torch.distributions.Distribution):
        return distribution
    plain = object.__new__(type(distribution))
    plain.__dict__.update(distribution.__dict__, _validate_args=False)
    for part in ("base_dist", "_component_distribution", "_mixture_distribution"):
        if part in plain.__dict__:
            plain.__dict__[part] = _unvalidated(plain.__dict__[part])
    return plain


def _draws_random_numbers(node: torch.fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _require_agreement(function: Function, fast: Function, examples: Sequence[Tensor]) -> None:
    """Compare the compiled function, and what it does to its arguments, with the plain one.

    Both are compared beside what the plain function makes of arguments that are rounded otherwise: where a gradient is
    zero but for rounding, an optimizer like Adam makes of it a step of full length; where two numbers are equal but for
    rounding, pooling takes either. Changes of the arguments are compared all together.

    Raises:
        NotTraceableError: they differ by more than rounding, or the plain function differs from itself.
    """
    outcomes, changes = [], []
    for run, given in (
        (function, examples), (function, examples), (fast, examples), (function, _rounded_otherwise(examples))
    ):  # fmt: skip
        arguments = _clones(given)
        with fork_rng(arguments[0].device), without_validation(), _silence():
            outcomes.append(run(*arguments))
        pairs = zip(arguments, given, strict=True)
        changes.append(
            torch.cat(
                [(after.detach().double() - before.double()).flatten() for after, before in pairs]
            )
        )
    same = all(_close(first, again, first) for first, again in zip(*outcomes[:2], strict=True))
    same &= all(_close(*three) for three in zip(outcomes[0], *outcomes[2:], strict=True))
    expected, _, found, otherwise = (change.nan_to_num() for change in changes)
    tolerance = 0.5 * expected.norm() + 2 * (otherwise - expected).norm()
    if not same or bool((found - expected).norm() > tolerance):
        raise NotTraceableError(
            "its trace gives other numbers than the program, so it depends on something else than its arguments: on "
            "time, a counter, or numpy's random numbers; or torch changed the order of its random numbers"
        )


def _rounded_otherwise(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors with every number changed by one rounding, up and down by turns."""
    signs = (
        1 - 2 * (torch.arange(tensor.numel(), device=tensor.device) % 2).view(tensor.shape)
        for tensor in tensors
    )
    return [
        tensor * (1 + torch.finfo(tensor.dtype).eps * sign)
        if tensor.is_floating_point()
        else tensor
        for tensor, sign in zip(tensors, signs, strict=True)
    ]


def _close(expected: Tensor, found: Tensor, otherwise: Tensor) -> bool:
    """Compare numbers; twice what rounding the arguments otherwise makes of them may lie between them."""
    if not expected.is_floating_point():
        return bool((expected == found).all())
    tolerance = 100 * torch.finfo(expected.dtype).eps ** 0.75  # 6e-4 in float32, 2e-10 in float64
    scale = torch.where(expected.isfinite(), expected, 0).abs().max() if expected.numel() else 1.0
    margin = tolerance * scale + 2 * (otherwise - expected).abs().nan_to_num(nan=0.0, posinf=0.0)
    same = (
        (expected == found)
        | (expected.isnan() & found.isnan())
        | ((expected - found).abs() <= margin)
    )
    return bool(same.all())


def _clones(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hold warnings back: what a program warns of was said when it ran untraced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the compiler's remarks about the machine (that it has no GPU, say) from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.utils.cpp_extension", "torch._inductor")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with _silence():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
