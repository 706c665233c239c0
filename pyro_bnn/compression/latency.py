"""The savings of a smaller network: multiply-accumulates counted, seconds measured.

The comparison of seconds is fair: both networks run on one thread, each in the memory layout that
suits it best; they take turns, so that a machine that slows down slows both; and the median over
the rounds counts.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from .onnx import Session, onnx_is_available, session_of, to_onnx

__all__ = ["Latency", "macs", "measure", "readable"]

_Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_TOLERANCE = 1e-5
_LEAST_SECONDS = 0.01  # the time for which short calls are repeated in each round


@torch.no_grad()
def macs(network: nn.Module, example: Tensor) -> dict[str, int]:
    r"""Return the multiply-accumulates per example of each dense layer and convolution.

    A dense layer takes inputs times outputs at every position; a convolution
    :math:`c_\text{out} \cdot c_\text{in} / \text{groups} \cdot \prod k` at every position of its
    output. Zeros inside a weight are multiplied like any other number. LeNet-300-100 takes
    266,200, LeNet-5-Caffe 2,293,000.

    Args:
        network: Any module. Layers that are used several times count each time.
        example: Some inputs (n, ...).

    Returns:
        The count of each layer, by its name in the network.
    """
    counts: dict[str, int] = {}

    def count(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, _Layer)
        outputs = layer.weight.shape[0]
        positions = output[:1].numel() // outputs
        counts[name] += positions * layer.weight.numel()

    network = copy.deepcopy(network).eval()
    for name, layer in network.named_modules():
        if isinstance(layer, _Layer):
            counts[name] = 0
            layer.register_forward_hook(partial(count, name))
    network(example[:1])
    return counts


@dataclass(frozen=True)
class Latency:
    """Seconds per batch, before and after compression.

    Attributes:
        runtime: ``"torch"``, ``"torch.compile"`` or ``"onnxruntime"``.
        batch: Number of examples in a batch.
        before: Median seconds of the original network.
        after: Median seconds of the smaller network.
        layouts: The memory layouts in which torch was fastest, before and after.
        threads: Number of CPU threads.
    """

    runtime: str
    batch: int
    before: float
    after: float
    layouts: tuple[str, str] = ("", "")
    threads: int = 1

    @property
    def speedup(self) -> float:
        """How many times as fast the smaller network is."""
        return self.before / self.after


@torch.no_grad()
def measure(
    original: nn.Module,
    smaller: nn.Module,
    example: Tensor,
    batches: Sequence[int] = (1, 8192),
    rounds: int = 7,
    threads: int = 1,
    onnx: bool | None = None,
    compiled: bool = False,
) -> list[Latency]:
    """Measure two networks of the same function against each other.

    Args:
        original: The network before, with zeros where it was pruned.
        smaller: The network after.
        example: Finite inputs (n, ...). Batches are made by repeating them.
        batches: Numbers of examples to compute at once.
        rounds: Number of rounds, in each of which every network has its turn.
        threads: Number of CPU threads, for both runtimes.
        onnx: Whether to measure onnxruntime; by default if it is installed.
        compiled: Whether to measure ``torch.compile``, whose first calls take a minute and need
            a C++ compiler.

    Returns:
        A latency for each runtime and batch size.

    Raises:
        ValueError: The networks are not the same function: their outputs differ by more than
            1e-5, relative to the largest output if that is above one.
    """
    before = copy.deepcopy(original).cpu().eval()
    after = copy.deepcopy(smaller).cpu().eval()
    example = example.detach().cpu()
    _require_equal_outputs(before(example[:64]), after(example[:64]))
    if onnx is None:
        onnx = onnx_is_available()
    runtimes: dict[str, _Prepare] = {"torch": _uncompiled}
    if compiled:
        # frozen: weights are constants, laid out as the processor likes them
        options: dict[str, str | int | bool | Callable[..., Tensor]] = {"freezing": True}
        runtimes["torch.compile"] = partial(torch.compile, dynamic=False, options=options)
    latencies = []
    with _limited_threads(threads):
        for runtime, prepare in runtimes.items():
            for batch in batches:
                x = _repeated(example, batch)
                calls = _torch_calls("before", before, x, prepare)
                calls |= _torch_calls("after", after, x, prepare)
                latencies.append(_compare(runtime, batch, threads, _medians(calls, rounds)))
    if onnx:
        sessions = {
            "before": _session(before, example, threads),
            "after": _session(after, example, threads),
        }
        for batch in batches:
            medians = _onnx_medians(sessions, _repeated(example, batch), rounds)
            latencies.append(_compare("onnxruntime", batch, threads, medians))
    return latencies


def readable(seconds: float) -> str:
    """Return seconds with a suitable unit.

    Example:
        >>> readable(0.0123)
        '12.3 ms'
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


# --- calls and their times --------------------------------------------------------------------


class _Call(NamedTuple):
    """A network to time, ``"before"`` or ``"after"``, and its memory layout."""

    network: str
    layout: str


_Prepare: TypeAlias = Callable[[nn.Module], Callable[..., Tensor]]
_Run: TypeAlias = Callable[[], Tensor | Sequence[np.ndarray]]


def _uncompiled(network: nn.Module) -> Callable[..., Tensor]:
    return network


def _torch_calls(name: str, network: nn.Module, x: Tensor, prepare: _Prepare) -> dict[_Call, _Run]:
    """Return the call of a network in every memory layout that it has."""
    calls: dict[_Call, _Run] = {_Call(name, "contiguous"): partial(prepare(network), x)}
    if not any(isinstance(layer, nn.Conv2d) for layer in network.modules()):
        return calls
    channels_last = copy.deepcopy(network)
    channels_last.to(memory_format=torch.channels_last)
    images = x
    if x.dim() == 4:
        images = x.contiguous(memory_format=torch.channels_last)
    calls[_Call(name, "channels-last")] = partial(prepare(channels_last), images)
    return calls


def _session(network: nn.Module, example: Tensor, threads: int) -> Session:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        to_onnx(network, path, example)
        return session_of(path.read_bytes(), threads)


def _onnx_medians(sessions: Mapping[str, Session], x: Tensor, rounds: int) -> dict[_Call, float]:
    feed = {"x": x.numpy()}
    outputs = {}
    calls: dict[_Call, _Run] = {}
    for name, session in sessions.items():
        outputs[name] = torch.from_numpy(session.run(None, feed)[0])
        calls[_Call(name, "")] = partial(session.run, None, feed)
    _require_equal_outputs(outputs["before"], outputs["after"])
    return _medians(calls, rounds)


def _medians(calls: Mapping[_Call, _Run], rounds: int) -> dict[_Call, float]:
    """Return the median seconds of each call.

    The calls take turns, and short ones are repeated for a hundredth of a second.
    """
    repeats = {}
    for key, call in calls.items():
        call()  # the first call prepares what later ones reuse
        repeats[key] = max(1, round(_LEAST_SECONDS / _seconds(call, 1)))
    times: dict[_Call, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            times[key].append(_seconds(call, repeats[key]))
    return {key: statistics.median(values) for key, values in times.items()}


def _seconds(call: _Run, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _compare(runtime: str, batch: int, threads: int, medians: Mapping[_Call, float]) -> Latency:
    """Compare the two networks, each in its best layout."""
    before = _fastest("before", medians)
    after = _fastest("after", medians)
    layouts = (before.layout, after.layout)
    return Latency(runtime, batch, medians[before], medians[after], layouts, threads)


def _fastest(network: str, medians: Mapping[_Call, float]) -> _Call:
    calls = [call for call in medians if call.network == network]
    return min(calls, key=lambda call: medians[call])


def _repeated(example: Tensor, batch: int) -> Tensor:
    return torch.cat([example] * math.ceil(batch / len(example)))[:batch].contiguous()


def _require_equal_outputs(before: Tensor, after: Tensor) -> None:
    scale = max(1.0, float(before.abs().max()))
    difference = math.inf
    if before.shape == after.shape:
        difference = float((before - after).abs().max())
    if not difference <= _TOLERANCE * scale:
        raise ValueError(
            "measure: expected two networks of the same function, got outputs "
            f"{tuple(before.shape)} and {tuple(after.shape)} that differ by {difference:.1e}; "
            "pass the masked network and the one shrunk from it"
        )


@contextmanager
def _limited_threads(number: int) -> Iterator[None]:
    threads_before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
