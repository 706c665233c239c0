"""What a smaller network saves: multiplications counted, seconds measured.

Seconds are compared fairly: one thread; every network in the memory layout that suits it best, the original too; the
networks take turns, so that a machine that slows down slows all of them; the median over the rounds.
"""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from .onnx import onnx_is_there, session_of, to_onnx

__all__ = ["Latency", "macs", "measure", "readable"]

_Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@torch.no_grad()
def macs(network: nn.Module, example: Tensor) -> dict[str, int]:
    r"""Return how many multiply-accumulates each dense and convolution layer takes for one example.

    A dense layer takes inputs times outputs at every position; a convolution
    :math:`c_\text{out} \cdot c_\text{in} / \text{groups} \cdot \prod k` at every position of its output. Zeros inside
    a weight are multiplied like any other number. LeNet-300-100 takes 266,200, LeNet-5-Caffe 2,293,000.

    Args:
        network: any module; layers that are used several times count each time.
        example: some inputs (n, ...).
    """
    counts: dict[str, int] = {}

    def count(name: str, layer: Any) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            counts[name] = (
                counts.get(name, 0) + output[:1].numel() // outputs * layer.weight.numel()
            )

        return hook

    network = copy.deepcopy(network).eval()
    for name, layer in network.named_modules():
        if isinstance(layer, _Layer):
            counts[name] = 0
            layer.register_forward_hook(count(name, layer))
    network(example[:1])
    return counts


@dataclass(frozen=True)
class Latency:
    """Seconds that a batch takes, before and after.

    Attributes:
        runtime: ``"torch"``, ``"torch.compile"`` or ``"onnxruntime"``.
        batch: examples in a batch.
        before: median seconds of the original network.
        after: median seconds of the smaller one.
        layouts: the memory layouts in which torch was fastest, before and after.
        threads: of the CPU.
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
    """Measure two networks of the same function against each other, in torch and in onnxruntime.

    Args:
        original: the network before, with zeros where it was pruned.
        smaller: the network after.
        example: inputs (n, ...) of finite numbers; batches are made by repeating them.
        batches: numbers of examples to compute at once.
        rounds: in each of them every network has its turn; the median counts.
        threads: of the CPU, for both runtimes.
        onnx: measure onnxruntime too; ``None``: if it is installed.
        compiled: measure ``torch.compile`` too, whose first calls take a minute and need a C++ compiler.

    Raises:
        ValueError: the networks are not the same function: outputs differ by more than 1e-5, relative to the largest
            where that is above one.
    """
    pair = {"before": original, "after": smaller}
    pair = {who: copy.deepcopy(network).cpu().eval() for who, network in pair.items()}
    example = example.detach().cpu()
    _require_same(*(network(example[:64]) for network in pair.values()))
    found = []
    ways: dict[str, Callable[[nn.Module], Any]] = {"torch": lambda network: network}
    if compiled:
        # frozen: weights are constants, laid out as the processor likes them
        ways["torch.compile"] = partial(torch.compile, dynamic=False, options={"freezing": True})
    with _threads(threads):
        for runtime, prepared in ways.items():
            for batch in batches:
                x = _repeated(example, batch)
                before, after = (
                    _in_torch(who, network, x, prepared) for who, network in pair.items()
                )
                found.append(_compared(runtime, batch, _medians(before | after, rounds), threads))
    if onnx_is_there() if onnx is None else onnx:
        sessions = {who: _session(network, example, threads) for who, network in pair.items()}
        for batch in batches:
            feed = {"x": _repeated(example, batch).numpy()}
            _require_same(
                *(torch.from_numpy(session.run(None, feed)[0]) for session in sessions.values())
            )
            calls = {
                (who, ""): partial(session.run, None, feed) for who, session in sessions.items()
            }
            found.append(_compared("onnxruntime", batch, _medians(calls, rounds), threads))
    return found


def readable(seconds: float) -> str:
    """Return seconds in a unit that suits them.

    >>> readable(0.0123)
    '12.3 ms'
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


# --- pieces -----------------------------------------------------------------------------------------------------------

_Calls = dict[tuple[str, str], Callable[[], Any]]  # by who is timed and in which layout


def _in_torch(
    who: str, network: nn.Module, x: Tensor, prepared: Callable[[nn.Module], Any]
) -> _Calls:
    """Return the network in every memory layout that it has."""
    calls: _Calls = {(who, "contiguous"): partial(prepared(network), x)}
    if any(isinstance(layer, nn.Conv2d) for layer in network.modules()):
        last = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        calls[who, "channels-last"] = partial(prepared(last), images)
    return calls


def _session(network: nn.Module, example: Tensor, threads: int) -> Any:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        to_onnx(network, path, example)
        return session_of(path.read_bytes(), threads)


def _medians(
    calls: Mapping[tuple[str, str], Callable[[], Any]], rounds: int
) -> dict[tuple[str, str], float]:
    """Return the median seconds of each call; they take turns, and short ones are repeated for a hundredth of a
    second."""
    repeats = {}
    for key, call in calls.items():
        call()  # the first call prepares what later ones reuse
        repeats[key] = max(1, round(0.01 / _seconds(call, 1)))
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            times[key].append(_seconds(call, repeats[key]))
    return {key: statistics.median(values) for key, values in times.items()}


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _compared(
    runtime: str, batch: int, medians: Mapping[tuple[str, str], float], threads: int
) -> Latency:
    """Compare the two networks, each in its best layout."""
    before, after = (min((value, key[1]) for key, value in medians.items() if key[0] == who)
                     for who in ("before", "after"))  # fmt: skip
    return Latency(runtime, batch, before[0], after[0], (before[1], after[1]), threads)


def _repeated(example: Tensor, batch: int) -> Tensor:
    return torch.cat([example] * math.ceil(batch / len(example)))[:batch].contiguous()


def _require_same(expected: Tensor, found: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    difference = (
        float((expected - found).abs().max()) if expected.shape == found.shape else math.inf
    )
    if not difference <= 1e-5 * scale:
        raise ValueError(
            "measure: expected two networks of the same function, "
            f"got outputs {tuple(expected.shape)} and {tuple(found.shape)} that differ by {difference:.1e}"
        )


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
