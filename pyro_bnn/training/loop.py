"""The loop of :func:`~pyro_bnn.fit`."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor
from tqdm.auto import tqdm

from pyro_bnn.posterior.posterior import Posterior
from pyro_bnn.runtime.copying import deepcopy_together
from pyro_bnn.runtime.interrupt import graceful_interrupt
from pyro_bnn.runtime.minibatches import LoaderBatches, TensorBatches
from pyro_bnn.runtime.program_checks import require_observable, require_whole_plate
from pyro_bnn.runtime.rng import fork_rng, generators
from pyro_bnn.runtime.run_identity import require_same_run
from pyro_bnn.runtime.tensor_files import (
    CheckpointError,
    load_tensors,
    require_folder,
    save_tensors,
)
from pyro_bnn.training.checkpoint import restore_run_state, run_state
from pyro_bnn.training.steps import CompiledStep, PlainStep, StepStats
from pyro_bnn.variational.elbo import ELBOModule

__all__ = ["HISTORY", "Loop", "NonFiniteError", "Progress", "Schedule", "at_progress"]

Schedule = float | Callable[[float], float]


class NonFiniteError(RuntimeError):
    """The loss or a gradient became infinite or NaN; the message names the step and the site."""


@dataclass(frozen=True)
class Progress:
    """What a callback is shown after each epoch: the history so far, and the posterior as it stands."""

    epoch: int
    history: dict[str, list[float]]
    posterior: Callable[[], Posterior]


HISTORY = ("epoch", "loss", "data", "kl", "kl_weight", "learning_rate", "seconds")


class Loop:
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
        self.history: dict[str, list[float]] = {key: [] for key in HISTORY}
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
        self.example = tuple(
            part[:1].clone() for part in batch
        )  # for a guide that reads its arguments
        model_trace = self.loss.trace(*batch)
        self.loss.train()
        everything = (
            self.batches.tensors[1:] if isinstance(self.batches, TensorBatches) else batch[1:]
        )
        for name, site in model_trace.nodes.items():
            if (
                site["type"] == "sample"
                and site["is_observed"]
                and len(batch) > 1
                and site["value"] is batch[1]
            ):
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
        look: dict[str, Any] = {
            "desc": "fit",
            "unit": "step",
            "dynamic_ncols": True,
            "mininterval": 0.5,
        }
        bar = tqdm(total=total, initial=self.step, disable=not progress, **look)
        with bar, graceful_interrupt(self.stop), pyro.validation_enabled(False):
            started = time.perf_counter() - self.seconds
            while self.step < total and not self.stopping:
                epoch = self.step / per_epoch
                self.take_step(
                    next(stream), at_progress(learning_rate, epoch), at_progress(kl_weight, epoch)
                )
                bar.update()
                self.seconds = time.perf_counter() - started
                if math.floor(self.step / per_epoch) > math.floor(epoch):
                    self.close_epoch(
                        at_progress(learning_rate, epoch), at_progress(kl_weight, epoch), bar
                    )
                    number = len(self.history["epoch"])
                    if self.checkpoint is not None and (
                        number % checkpoint_every == 0 or self.step == total
                    ):
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
            self.take = CompiledStep(
                self.take
            )  # from the second step on: the first gives the optimizer its state
        report = self.take(batch, learning_rate, kl_weight)
        if not report.finite:
            raise self.non_finite(report)
        self.step += 1
        for key, value in (
            ("loss", report.loss),
            ("data", report.data),
            ("kl", sum(report.kl.values())),
            ("steps", 1),
        ):
            self.sums[key] += value

    def non_finite(self, report: StepStats) -> NonFiniteError:
        """Return the error that says where the first loss or gradient is no number; it has not reached a parameter."""
        sites = [name for name, kl in report.kl.items() if not math.isfinite(kl)]
        if not math.isfinite(report.data):
            sites.append("the data (log-likelihood)")
        gradients = [name for name, norm in report.gradients.items() if not math.isfinite(norm)]
        what = f"the gradient of {', '.join(gradients) or 'all parameters together'}"
        if sites or not math.isfinite(report.loss):
            what = f"the loss, at {', '.join(sorted(sites)) or 'the sum of its terms'}"
        saved = (
            f"; the last checkpoint is in {self.checkpoint.parent}"
            if self.checkpoint is not None
            else ""
        )
        epoch = float(self.step / self.batches.per_epoch)
        return NonFiniteError(
            f"fit: step {self.step} (epoch {epoch:.2f}): {what} is not finite{saved}. "
            "Try a smaller learning rate, a smaller init_scale, or scaled inputs"
        )

    def close_epoch(self, learning_rate: float, kl_weight: float, bar: Any) -> None:
        """Add the averages of the epoch to the history."""
        n, mean = (
            self.batches.num_data,
            {key: value / self.sums["steps"] for key, value in self.sums.items()},
        )
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
        with fork_rng(self.device):
            try:
                for callback in callbacks:
                    callback(seen)
            except KeyboardInterrupt:
                self.stopping = True

    def posterior(self, device: torch.device | None = None) -> Posterior:
        """Return the posterior as it stands, made of copies."""
        (loss,) = deepcopy_together(self.loss)
        return Posterior.from_loss(loss, device or self.device, self.example)

    def open_checkpoint(self, folder: Path, settings: dict[str, Any], resume: bool) -> None:
        """Save to this folder from now on; go on from what is in it if asked to."""
        groups = [
            {k: v for k, v in group.items() if k not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        self.identity = settings | {
            "compile": self.compile,
            "optimizer": f"{type(self.optimizer).__name__} {groups}",
            "device": self.device.type,
            "batch_size": self.batches.size,
            "num_data": self.batches.num_data,
            "data": self.batches.fingerprint(),
            "tensor": {
                name: f"{value.dtype} {list(value.shape)}"
                for name, value in self.loss.state_dict().items()
            },
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
        facts = {
            key: getattr(self, key) for key in ("identity", "step", "seconds", "history", "sums")
        }
        save_tensors(self.checkpoint, tensors, facts)


def at_progress(schedule: Schedule, epoch: Fraction) -> float:
    """Return the value of a schedule at this epoch."""
    return float(schedule(float(epoch))) if callable(schedule) else schedule
