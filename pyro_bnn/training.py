"""fit: the one training loop."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .checkpoint import CheckpointError, load_tensors, save_tensors
from .data import DataError, validate
from .elbo import ELBO, ELBOModule, Terms
from .posterior import Posterior
from .reparameterization import local_reparameterization

__all__ = ["Fit", "NonFiniteError", "Progress", "fit", "linear_warmup"]

Schedule = float | Callable[[float], float]


class NonFiniteError(RuntimeError):
    """The loss or a gradient became infinite or NaN; the message names the step and the site."""


@dataclass(frozen=True)
class Progress:
    """What a callback is shown after each epoch: the history so far, and the posterior as it stands."""

    epoch: int
    history: dict[str, list[float]]
    posterior: Callable[[], Posterior]


@dataclass
class Fit:
    """The result of :func:`fit`.

    Attributes:
        posterior: with copies of all that was learned.
        history: one number per epoch under each of ``epoch``, ``loss`` (nats), ``data``, ``kl`` (both in nats per datum), ``kl_weight``,
            ``learning_rate`` and ``seconds``.
        interrupted: whether the run was stopped by Ctrl-C.
    """

    posterior: Posterior
    history: dict[str, list[float]]
    interrupted: bool = False

    @property
    def model(self) -> Any:
        """The model that was trained: a copy of the one given."""
        return self.posterior.model

    @property
    def guide(self) -> Any:
        """The guide that was trained: a copy of the one given."""
        return self.posterior.guide


def linear_warmup(start: float, end: float) -> Callable[[float], float]:
    """Return a schedule that is zero until epoch ``start`` and rises linearly to one at epoch ``end``.

    >>> [linear_warmup(5, 15)(epoch) for epoch in (0, 5, 10, 15, 20)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    return lambda epoch: min(max((epoch - start) / (end - start), 0.0), 1.0)


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: tuple[Tensor, ...] | Iterable[Any],
    *,
    epochs: int = 100,
    batch_size: int | None = None,
    learning_rate: Schedule = 1e-3,
    seed: int = 0,
    kl_weight: Schedule = 1.0,
    num_particles: int = 1,
    reparameterize: bool = True,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    device: str | torch.device | None = None,
    callbacks: Sequence[Callable[[Progress], None]] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    progress: bool = True,
) -> Fit:
    r"""Maximise the ELBO by stochastic gradients and return the posterior.

    .. math:: \min\ \frac{N}{B}\sum_{n \in \text{batch}} \mathbb{E}_q[-\log p(y_n \mid x_n, w)] + \beta\,\mathrm{KL}(q \,\|\, p)

    Model and guide are copied: the ones given, the global random state and Pyro's parameter store stay as they were. One seed fixes every
    bit of the result on one device and release of torch. All batches have one size: what is left of a permutation of the data is carried
    into the next epoch.

    Args:
        model: a ``BayesianNet`` or any Pyro program with a plate over its data.
        guide: built for this model; a module, or a function with ``pyro.param`` statements.
        data: tensors of the same length, ``(x, y)``; or a ``DataLoader`` (which then decides on the batches and their order).
        epochs: how many times the data are gone through.
        batch_size: B; ``None`` for all the data at every step.
        learning_rate: a number, or a function of the epoch (a float; it is called at every step).
        seed: of the permutations and of all noise.
        kl_weight: :math:`\beta`, a number or a function of the epoch such as ``linear_warmup(5, 20)``.
        num_particles: draws from the guide at each step.
        reparameterize: use local reparameterization.
        optimizer: called as ``optimizer(parameters, lr=...)``.
        device: where to train, ``"cuda"`` say; ``None``: where the guide's parameters are. The result comes back to where the model was.
        callbacks: called with a :class:`Progress` after each epoch; their use of random numbers changes nothing.
        checkpoint: a folder to save the state of the run in.
        checkpoint_every: epochs between checkpoints.
        resume: go on from the folder's checkpoint, bit for bit as if never stopped; without one, start.
        progress: show a bar, with the terms of the loss in nats per datum.

    Raises:
        ValueError: settings that make no sense; data whose length differs from the model's ``num_data``; a device that is not there; a
            guide without parameters, or built for another model.
        DataError: NaN in the data, or tensors of different lengths.
        NonFiniteError: at the first loss or gradient that is not finite.
        CheckpointError: a checkpoint folder that holds another run, or is damaged.
    """
    if epochs < 1 or checkpoint_every < 1 or num_particles < 1:
        raise ValueError(f"fit: expected epochs, checkpoint_every and num_particles of at least 1, got {epochs, checkpoint_every, num_particles}")
    home = _home(model, guide)
    target = home if device is None else _device(device)
    batches = _Batches.of(data, batch_size, seed, getattr(model, "num_data", None))
    model, guide = copy.deepcopy((model, guide))
    with torch.random.fork_rng(devices=_cuda(target)):
        torch.manual_seed(seed)
        loss = ELBO(model, local_reparameterization(guide) if reparameterize else guide).to(target)
        loop = _Loop(loss, batches.to(target), optimizer, num_particles, target)
        if checkpoint is not None:
            identity = {"seed": seed, "batch_size": batches.size, "num_data": batches.num_data, "num_particles": num_particles}
            loop.open_checkpoint(Path(checkpoint), identity, resume)
        interrupted = loop.run(epochs, learning_rate, kl_weight, callbacks, checkpoint_every, progress)
    return Fit(loop.posterior(home), loop.history, interrupted)


@dataclass
class _Batches:
    """An endless, seeded stream of minibatches; ``epoch_of(step)`` says how often the data have been seen."""

    source: Sequence[Tensor] | Iterable[Any]
    size: int | None
    num_data: int
    seed: int
    per_epoch: float

    @classmethod
    def of(cls, data: Any, batch_size: int | None, seed: int, num_data: int | None) -> _Batches:
        if isinstance(data, Tensor):
            data = (data,)
        if not (isinstance(data, tuple | list) and all(isinstance(part, Tensor) for part in data)):
            if num_data is not None and hasattr(data, "dataset") and len(data.dataset) != num_data:
                raise ValueError(_wrong_length(len(data.dataset), num_data))
            return cls(data, None, num_data or 0, seed, len(data))
        if len(data) > 1:
            validate(data[0], data[1])
        elif not bool(torch.isfinite(data[0]).all()):
            raise ValueError("fit: x has numbers that are not finite")
        n = len(data[0])
        if num_data is not None and n != num_data:
            raise ValueError(_wrong_length(n, num_data))
        size = n if batch_size is None else batch_size
        if size > n:
            raise ValueError(f"fit: batch_size={size} is larger than the data set of {n}; use batch_size={n} or None")
        return cls(tuple(data), size, n, seed, n / size)

    def epoch_of(self, step: int) -> float:
        return step / self.per_epoch

    def total_steps(self, epochs: int) -> int:
        return math.ceil(epochs * self.per_epoch - 1e-9)

    def to(self, device: torch.device) -> _Batches:
        """Move the tensors, once, to where they are used."""
        if self.size is not None:
            self.source = tuple(part.to(device) for part in self.source)
        return self

    def check_support(self, name: str, support: Any) -> None:
        """Refuse observations outside the support of the likelihood, a label of 10 for ten classes, say."""
        if self.size is None:
            return
        y = self.source[1]
        bad = (~support.check(y)).nonzero()
        if len(bad):
            index = tuple(bad[0].tolist())
            raise DataError(f"fit: y{list(index)} = {y[index].item()} cannot be observed at site {name!r}: expected values in {support}")

    def stream(self, start: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
        """Yield batches from step ``start`` on."""
        if self.size is None:
            skip, epoch_length = start, int(self.per_epoch)
            for _ in itertools.count(skip // epoch_length):
                for batch in itertools.islice(iter(self.source), skip % epoch_length, None):
                    yield tuple(part.to(device) for part in (batch if isinstance(batch, tuple | list) else (batch,)))
                skip = 0
        if self.size == self.num_data:
            yield from itertools.repeat(self.source)
        for step in itertools.count(start):
            index = torch.cat(list(self._indices(step * self.size, (step + 1) * self.size))).to(device)
            yield tuple(part[index] for part in self.source)

    def _indices(self, begin: int, end: int) -> Iterator[Tensor]:
        """Yield the examples number begin to end of the concatenated permutations: one for each epoch, a function of seed and epoch."""
        for epoch in range(begin // self.num_data, (end - 1) // self.num_data + 1):
            if getattr(self, "_epoch", None) != epoch:
                generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
                self._epoch, self._permutation = epoch, torch.randperm(self.num_data, generator=generator)
            first = epoch * self.num_data
            yield self._permutation[max(begin - first, 0) : end - first]


_HISTORY = ("epoch", "loss", "data", "kl", "kl_weight", "learning_rate", "seconds")


class _Loop:
    """A run: its state, and the step that changes it."""

    def __init__(
        self,
        loss: ELBOModule,
        batches: _Batches,
        optimizer: Callable[..., torch.optim.Optimizer],
        num_particles: int,
        device: torch.device,
    ) -> None:
        self.loss, self.batches, self.num_particles, self.device = loss, batches, num_particles, device
        self.step, self.seconds = 0, 0.0
        self.history: dict[str, list[float]] = {key: [] for key in _HISTORY}
        self.sums: dict[str, Tensor | float] = {"loss": 0.0, "data": 0.0, "kl": 0.0, "steps": 0.0}
        self.stopping = False
        self.checkpoint: Path | None = None
        self._dry_run()
        self.parameters = {name: p for name, p in loss.named_parameters() if p.requires_grad}
        if not any(not name.startswith("model.") for name in self.parameters):
            raise ValueError("fit: the guide has no parameters to learn; give it pyro.param statements, or make it a module with parameters")
        self.optimizer = optimizer(list(self.parameters.values()), lr=1e-3)

    def _dry_run(self) -> None:
        """Run the programs once: plain functions declare their parameters, stock autoguides are built, and what does not match is said."""
        self.loss.eval()  # batch norm must not count this pass
        batch = next(self.batches.stream(0, self.device))
        state = torch.get_rng_state()
        model_trace = self.loss.trace(*batch)
        torch.set_rng_state(state)
        self.loss.train()
        for name, site in model_trace.nodes.items():
            if site["type"] == "sample" and site["is_observed"] and len(batch) > 1 and site["value"] is batch[1]:
                self.batches.check_support(name, site["fn"].support)

    def run(
        self,
        epochs: int,
        learning_rate: Schedule,
        kl_weight: Schedule,
        callbacks: Sequence[Callable[[Progress], None]],
        checkpoint_every: int,
        progress: bool,
    ) -> bool:
        """Take the steps that are left; return whether Ctrl-C cut them short."""
        total = self.batches.total_steps(epochs)
        stream = self.batches.stream(self.step, self.device)
        bar = tqdm(total=total, initial=self.step, desc="fit", unit="step", disable=not progress, dynamic_ncols=True, mininterval=0.5)
        with bar, _until_interrupted(self), pyro.validation_enabled(False):
            started = time.perf_counter() - self.seconds
            while self.step < total and not self.stopping:
                epoch = self.batches.epoch_of(self.step)
                self.take_step(next(stream), _at(learning_rate, epoch), _at(kl_weight, epoch))
                bar.update()
                self.seconds = time.perf_counter() - started
                if self.step == total or int(self.batches.epoch_of(self.step) + 1e-9) > int(epoch + 1e-9):
                    self.close_epoch(_at(learning_rate, epoch), _at(kl_weight, epoch), bar)
                    number = len(self.history["epoch"])
                    if self.checkpoint is not None and (number % checkpoint_every == 0 or self.step == total):
                        self.save()
                    self.call(callbacks)
            if self.stopping and self.checkpoint is not None:
                self.save()
        return self.stopping

    def take_step(self, batch: tuple[Tensor, ...], learning_rate: float, kl_weight: float) -> None:
        """Change the parameters by one stochastic gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        particles = [self.loss.terms(*batch) for _ in range(self.num_particles)]
        loss = sum((terms.loss(kl_weight) for terms in particles), torch.zeros((), device=self.device)) / self.num_particles
        loss.backward()
        self.require_finite(loss, particles)
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            self.sums["loss"] += loss.detach()
            self.sums["data"] += sum(terms.data for terms in particles) / self.num_particles
            self.sums["kl"] += sum(sum(terms.kl.values()) for terms in particles) / self.num_particles
            self.sums["steps"] += 1

    def require_finite(self, loss: Tensor, particles: list[Terms]) -> None:
        """Stop at the first loss or gradient that is no number, before it reaches a parameter."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters.values() if p.grad is not None])
        if bool((loss.detach() + norm).isfinite()):
            return
        sites = {name for terms in particles for name, kl in terms.kl.items() if not bool(kl.isfinite())}
        if not all(bool(terms.data.isfinite()) for terms in particles):
            sites.add("the data (log-likelihood)")
        gradients = [name for name, p in self.parameters.items() if p.grad is not None and not bool(p.grad.isfinite().all())]
        what = f"the loss, at {', '.join(sorted(sites))}" if sites else f"the gradient of {', '.join(gradients) or 'all parameters together'}"
        saved = f"; the last checkpoint is in {self.checkpoint.parent}" if self.checkpoint is not None else ""
        raise NonFiniteError(
            f"fit: step {self.step} (epoch {self.batches.epoch_of(self.step):.2f}): {what} is not finite{saved}. "
            "Try a smaller learning rate, a smaller init_scale, or scaled inputs"
        )

    def close_epoch(self, learning_rate: float, kl_weight: float, bar: Any) -> None:
        """Add the averages of the epoch to the history."""
        n = self.batches.num_data or 1
        mean = {key: float(self.sums[key]) / float(self.sums["steps"]) for key in ("loss", "data", "kl")}
        row = {
            "epoch": len(self.history["epoch"]) + 1,
            "loss": mean["loss"],
            "data": mean["data"] / n,
            "kl": mean["kl"] / n,
            "kl_weight": kl_weight,
            "learning_rate": learning_rate,
            "seconds": self.seconds,
        }
        for key, value in row.items():
            self.history[key].append(value)
        self.sums = dict.fromkeys(self.sums, 0.0)
        bar.set_description(f"epoch {row['epoch']}", refresh=False)
        bar.set_postfix_str(f"data {row['data']:.4f}  KL {row['kl']:.4f} nats/datum", refresh=False)

    def call(self, callbacks: Sequence[Callable[[Progress], None]]) -> None:
        """Show the run to the callbacks; what they draw and whether they evaluate leaves the run as it is."""
        if not callbacks:
            return
        seen = Progress(len(self.history["epoch"]), copy.deepcopy(self.history), self.posterior)
        with torch.random.fork_rng(devices=_cuda(self.device)), pyro.validation_enabled(True):
            for callback in callbacks:
                callback(seen)

    def posterior(self, device: torch.device | None = None) -> Posterior:
        """Return the posterior as it stands, made of copies."""
        return Posterior.from_loss(copy.deepcopy(self.loss), device or self.device)

    def open_checkpoint(self, folder: Path, identity: dict[str, Any], resume: bool) -> None:
        """Save to this folder from now on; go on from what is in it if asked to."""
        self.identity = identity | {"parameters": {name: list(p.shape) for name, p in self.parameters.items()}}
        path = folder / "checkpoint"
        there = (folder / "checkpoint.json").exists()
        if there and not resume:
            raise CheckpointError(f"{folder}: holds the checkpoint of a run; resume it (resume=True) or choose another folder")
        if there:
            tensors, facts = load_tensors(path)
            differing = [key for key, value in self.identity.items() if facts.get("identity", {}).get(key) != value]
            if differing:
                raise CheckpointError(f"{folder}: the checkpoint is of another run; {', '.join(differing)} differ")
            self.restore(tensors, facts)
        self.checkpoint = path

    def save(self) -> None:
        """Write parameters, optimizer, random state, history and position."""
        assert self.checkpoint is not None
        optimizer = self.optimizer.state_dict()
        tensors = {f"loss.{name}": value for name, value in self.loss.state_dict().items()}
        for index, state in optimizer["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
        tensors |= {"random.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors |= {"random.cuda": torch.cuda.get_rng_state(self.device)}
        tensors |= {f"sums.{key}": torch.as_tensor(value) for key, value in self.sums.items()}
        facts = {"identity": self.identity, "step": self.step, "seconds": self.seconds, "history": self.history}
        save_tensors(self.checkpoint, tensors, facts)

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take everything back from what :meth:`save` wrote."""
        part = {prefix: _below(prefix, tensors) for prefix in ("loss", "optimizer", "sums")}
        self.loss.load_state_dict(part["loss"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in part["optimizer"].items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        torch.set_rng_state(tensors["random.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        self.sums = {key: value.to(self.device) for key, value in part["sums"].items()}
        self.step, self.seconds, self.history = facts["step"], facts["seconds"], facts["history"]


@contextlib.contextmanager
def _until_interrupted(loop: _Loop) -> Iterator[None]:
    """Turn Ctrl-C into a stop after the present step, so that no step is left half done; a second Ctrl-C acts as usual."""

    def stop(*_: Any) -> None:
        loop.stopping = True
        signal.signal(signal.SIGINT, previous)

    main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, stop) if main else None
    try:
        yield
    except KeyboardInterrupt:
        loop.stopping = True
    finally:
        if main:
            signal.signal(signal.SIGINT, previous)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def _at(schedule: Schedule, epoch: float) -> float:
    return float(schedule(epoch)) if callable(schedule) else schedule


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _device(name: str | torch.device) -> torch.device:
    """Return the device, or say which ones are there."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ValueError(f"fit: there is no device {str(name)!r} here; there is {', '.join(there)}") from error
    return torch.device(name)


def _home(*programs: Any) -> torch.device:
    """Return where the programs live: the device of their first parameter or buffer."""
    modules = [program for program in programs if isinstance(program, nn.Module)]
    tensors = itertools.chain.from_iterable((*module.parameters(), *module.buffers()) for module in modules)
    return next((tensor.device for tensor in tensors), torch.get_default_device())


def _wrong_length(n: int, num_data: int) -> str:
    return (
        f"fit: the data have {n} examples but the model's num_data is {num_data}; if this is a part of the data (a training split), "
        f"the model should say so: num_data={n}"
    )
