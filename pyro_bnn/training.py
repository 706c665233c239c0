"""fit: the one training loop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn
from tqdm.auto import tqdm

from .checkpoint import (
    CheckpointError,
    load_tensors,
    require_folder,
    require_same_run,
    restore_run_state,
    run_state,
    save_tensors,
)
from .copying import copies
from .devices import home_of, require_device
from .elbo import ELBO, ELBOModule
from .interruption import until_interrupted
from .memory import keep_freed_memory
from .minibatches import LoaderBatches, TensorBatches, minibatches, require_observable, require_whole_plate
from .posterior import Posterior
from .randomness import generators, own_randomness
from .reparameterization import Reparameterized, local_reparameterization
from .steps import CompiledStep, PlainStep, Report

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
        history: one number per epoch under each of ``epoch``, ``loss`` (nats), ``data``, ``kl`` (both in nats per
            datum), ``kl_weight``, ``learning_rate`` and ``seconds``.
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

    Raises:
        ValueError: an end that is not after the start.

    >>> [linear_warmup(5, 15)(epoch) for epoch in (0, 5, 10, 15, 20)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    if not start < end:
        raise ValueError(f"linear_warmup: expected start < end, got {start} and {end}")
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
    compile: bool | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    device: str | torch.device | None = None,
    callbacks: Sequence[Callable[[Progress], None]] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    progress: bool = True,
) -> Fit:
    r"""Maximise the ELBO by stochastic gradients and return the posterior.

    .. math:: \min\ \frac{N}{B}\sum_{n \in \text{batch}} \mathbb{E}_q[-\log p(y_n \mid x_n, w)] + \beta\,\mathrm{KL}(q
    \,\|\, p)

    Model and guide are copied: the ones given, the global random state and Pyro's parameter store stay as they were.
    One seed fixes every bit of the result on one device and release of torch. All batches have one size: what is left
    of a permutation of the data is carried into the next epoch. (A module that a plain function closes over cannot be
    copied and is trained in place.)

    Args:
        model: a ``BayesianNet`` or any Pyro program with a plate over its data.
        guide: built for this model; a module, or a function with ``pyro.param`` statements.
        data: tensors of the same length, ``(x, y)``; or a ``DataLoader`` (which then decides on the batches and their
            order).
        epochs: how many times the data are gone through.
        batch_size: B; ``None`` for all the data at every step.
        learning_rate: a number, or a function of the epoch (a float; it is called at every step).
        seed: of the permutations and of all noise.
        kl_weight: :math:`\beta`, a number or a function of the epoch such as ``linear_warmup(5, 20)``.
        num_particles: draws from the guide at each step.
        reparameterize: use local reparameterization, unless the guide comes with it:
            ``local_reparameterization(guide, hide=[...])``.
        compile: trace the step and compile it: two to thirty times as fast, after up to half a minute of compilation.
            The same random numbers and the same optimum, other rounding. ``None``: from 20,000 steps on, which take
            longer than that however small the network is.
        optimizer: called as ``optimizer(parameters, lr=...)``; SGD, Adam and AdamW can be compiled.
        device: where to train, ``"cuda"`` say; ``None``: where the guide's parameters are. The result comes back to
            where the model was.
        callbacks: called with a :class:`Progress` after each epoch; their use of random numbers changes nothing.
        checkpoint: a folder to save the state of the run in.
        checkpoint_every: epochs between checkpoints.
        resume: go on from the folder's checkpoint, bit for bit as if never stopped; without one, start.
        progress: show a bar, with the terms of the loss in nats per datum.

    Raises:
        ValueError: settings that make no sense; data whose length differs from the model's ``num_data``; a device
            that is not there; a guide without parameters, or built for another model.
        DataError: NaN in the data, or tensors of different lengths.
        NonFiniteError: at the first loss or gradient that is not finite.
        CheckpointError: a checkpoint folder that holds another run, or is damaged.
    """
    counts = {"epochs": epochs, "checkpoint_every": checkpoint_every, "num_particles": num_particles}
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < 1:
            raise ValueError(f"fit: expected {name} to be a whole number of at least 1, got {count!r}")
    for name, value in (("learning_rate", learning_rate), ("kl_weight", kl_weight)):
        if not callable(value) and not value >= 0:
            raise ValueError(f"fit: expected a {name} of at least 0, got {value}")
    if isinstance(guide, type):
        raise ValueError(
            f"fit: the guide is the class {guide.__name__}; build it from the model, {guide.__name__}(model)"
        )
    if resume and checkpoint is None:
        raise ValueError("fit: resume=True goes on from a checkpoint; say where it is, checkpoint=FOLDER")
    home = home_of(model, guide)
    target = home if device is None else require_device(device)
    if "meta" in (home.type, target.type):
        raise ValueError(
            "fit: the model or the guide is on the device 'meta', which holds no numbers; build it elsewhere"
        )
    batches = minibatches(data, batch_size, seed, getattr(model, "num_data", None))
    keep_freed_memory()
    model, guide = copies(model, guide)
    with own_randomness(target, seed), batches.borrowed():
        wrap = reparameterize and not isinstance(guide, Reparameterized)  # one that is wrapped already has its settings
        loss = ELBO()(model, local_reparameterization(guide) if wrap else guide).to(target)
        fast = epochs * batches.per_epoch >= _MANY_STEPS if compile is None else compile
        loop = _Loop(loss, batches, optimizer, num_particles, target, fast)
        if checkpoint is not None:
            settings: dict[str, Any] = {
                "seed": seed,
                "num_particles": num_particles,
                "reparameterize": reparameterize,
                "compile": compile,
            }
            schedules = {"learning_rate": learning_rate, "kl_weight": kl_weight}
            settings |= {key: "a function" if callable(value) else float(value) for key, value in schedules.items()}
            loop.open_checkpoint(Path(checkpoint), settings, resume)
        interrupted = loop.run(epochs, learning_rate, kl_weight, callbacks, checkpoint_every, progress)
        posterior = loop.posterior(home)
    posterior.facts |= {
        "method": type(guide).__name__ if isinstance(guide, nn.Module) else "SVI",
        "data": batches.fingerprint(),
        "seconds": loop.seconds,
        "gradients": loop.step * num_particles,
    }
    return Fit(posterior, loop.history, interrupted)


_MANY_STEPS = 20_000
_HISTORY = ("epoch", "loss", "data", "kl", "kl_weight", "learning_rate", "seconds")


class _Loop:
    """A run: its state, and the step that changes it."""

    def __init__(
        self,
        loss: ELBOModule,
        batches: TensorBatches | LoaderBatches,
        optimizer: Callable[..., torch.optim.Optimizer],
        num_particles: int,
        device: torch.device,
        compile: bool,
    ) -> None:
        self.loss, self.batches, self.device, self.compile = loss, batches, device, compile
        self.step, self.seconds = 0, 0.0
        self.history: dict[str, list[float]] = {key: [] for key in _HISTORY}
        self.sums = dict.fromkeys(("loss", "data", "kl", "steps"), 0.0)  # of the present epoch
        self.stopping = False
        self.checkpoint: Path | None = None
        self._dry_run()
        parameters = {name: p for name, p in loss.named_parameters() if p.requires_grad}
        if all(name.startswith("model.") for name in parameters):
            raise ValueError(
                "fit: the guide has no parameters to learn; "
                "give it pyro.param statements, or make it a module with parameters"
            )
        self.optimizer = optimizer(list(parameters.values()), lr=1e-3)
        self.take: PlainStep | CompiledStep = PlainStep(loss, self.optimizer, num_particles)

    def _dry_run(self) -> None:
        """Run the programs once: functions declare their parameters, autoguides are built, mismatches are said."""
        self.loss.eval()  # batch norm must not count this pass
        batch = next(self.batches.stream(0, self.device))
        self.example = tuple(part[:1].clone() for part in batch)  # for a guide that reads its arguments
        model_trace = self.loss.trace(*batch)
        self.loss.train()
        everything = self.batches.tensors[1:] if isinstance(self.batches, TensorBatches) else batch[1:]
        for name, site in model_trace.nodes.items():
            if site["type"] == "sample" and site["is_observed"] and len(batch) > 1 and site["value"] is batch[1]:
                require_observable(name, site["fn"], everything[0])
                require_whole_plate(name, site["cond_indep_stack"], self.batches.num_data)

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
        per_epoch, validated = self.batches.per_epoch, is_validation_enabled()
        total = math.ceil(epochs * per_epoch)
        stream = self.batches.stream(self.step, self.device)
        look: dict[str, Any] = {"desc": "fit", "unit": "step", "dynamic_ncols": True, "mininterval": 0.5}
        bar = tqdm(total=total, initial=self.step, disable=not progress, **look)
        with bar, until_interrupted(self.stop), pyro.validation_enabled(False):
            started = time.perf_counter() - self.seconds
            while self.step < total and not self.stopping:
                epoch = self.step / per_epoch
                self.take_step(next(stream), _at(learning_rate, epoch), _at(kl_weight, epoch))
                bar.update()
                self.seconds = time.perf_counter() - started
                if math.floor(self.step / per_epoch) > math.floor(epoch):
                    self.close_epoch(_at(learning_rate, epoch), _at(kl_weight, epoch), bar)
                    number = len(self.history["epoch"])
                    if self.checkpoint is not None and (number % checkpoint_every == 0 or self.step == total):
                        self.save()
                    with pyro.validation_enabled(validated):
                        self.call(callbacks)
            if self.stopping and self.checkpoint is not None:
                self.save()
        return self.stopping

    def stop(self) -> None:
        """Stop after the present step."""
        self.stopping = True

    def take_step(self, batch: tuple[Tensor, ...], learning_rate: float, kl_weight: float) -> None:
        """Change the parameters by one stochastic gradient."""
        if self.compile and isinstance(self.take, PlainStep) and self.step:
            self.take = CompiledStep(self.take)  # from the second step on: the first gives the optimizer its state
        report = self.take(batch, learning_rate, kl_weight)
        if not report.finite:
            raise self.non_finite(report)
        self.step += 1
        for key, value in (("loss", report.loss), ("data", report.data), ("kl", sum(report.kl.values())), ("steps", 1)):
            self.sums[key] += value

    def non_finite(self, report: Report) -> NonFiniteError:
        """Return the error that says where the first loss or gradient is no number; it has not reached a parameter."""
        sites = [name for name, kl in report.kl.items() if not math.isfinite(kl)]
        if not math.isfinite(report.data):
            sites.append("the data (log-likelihood)")
        gradients = [name for name, norm in report.gradients.items() if not math.isfinite(norm)]
        what = f"the gradient of {', '.join(gradients) or 'all parameters together'}"
        if sites or not math.isfinite(report.loss):
            what = f"the loss, at {', '.join(sorted(sites)) or 'the sum of its terms'}"
        saved = f"; the last checkpoint is in {self.checkpoint.parent}" if self.checkpoint is not None else ""
        epoch = float(self.step / self.batches.per_epoch)
        return NonFiniteError(
            f"fit: step {self.step} (epoch {epoch:.2f}): {what} is not finite{saved}. "
            "Try a smaller learning rate, a smaller init_scale, or scaled inputs"
        )

    def close_epoch(self, learning_rate: float, kl_weight: float, bar: Any) -> None:
        """Add the averages of the epoch to the history."""
        n, mean = self.batches.num_data, {key: value / self.sums["steps"] for key, value in self.sums.items()}
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
        with own_randomness(self.device):
            try:
                for callback in callbacks:
                    callback(seen)
            except KeyboardInterrupt:
                self.stopping = True

    def posterior(self, device: torch.device | None = None) -> Posterior:
        """Return the posterior as it stands, made of copies."""
        (loss,) = copies(self.loss)
        return Posterior.from_loss(loss, device or self.device, self.example)

    def open_checkpoint(self, folder: Path, settings: dict[str, Any], resume: bool) -> None:
        """Save to this folder from now on; go on from what is in it if asked to."""
        groups = [
            {k: v for k, v in group.items() if k not in ("params", "lr")} for group in self.optimizer.param_groups
        ]
        self.identity = settings | {
            "compile": self.compile,
            "optimizer": f"{type(self.optimizer).__name__} {groups}",
            "device": self.device.type,
            "batch_size": self.batches.size,
            "num_data": self.batches.num_data,
            "data": self.batches.fingerprint(),
            "tensor": {name: f"{value.dtype} {list(value.shape)}" for name, value in self.loss.state_dict().items()},
        }
        there = (folder / "checkpoint.json").exists()
        if there and not resume:
            raise CheckpointError(
                f"{folder}: holds the checkpoint of a run; resume it (resume=True) or choose another folder"
            )
        if there:
            tensors, facts = load_tensors(folder / "checkpoint")
            saved = facts.get("identity", {})
            if settings["compile"] is None:  # as it was begun, however many steps are asked for now
                self.compile = self.identity["compile"] = saved.get("compile", False)
            require_same_run(folder, saved, self.identity)
            restore_run_state(tensors, self.loss, self.optimizer, generators(self.device))
            self.step, self.seconds, self.history, self.sums = (
                facts[key] for key in ("step", "seconds", "history", "sums")
            )
        require_folder(folder)
        self.checkpoint = folder / "checkpoint"

    def save(self) -> None:
        """Write parameters, optimizer, random state, history and position."""
        assert self.checkpoint is not None
        tensors = run_state(self.loss, self.optimizer, generators(self.device))
        facts = {key: getattr(self, key) for key in ("identity", "step", "seconds", "history", "sums")}
        save_tensors(self.checkpoint, tensors, facts)


def _at(schedule: Schedule, epoch: Fraction) -> float:
    return float(schedule(float(epoch))) if callable(schedule) else schedule
