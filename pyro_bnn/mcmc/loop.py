"""The loop of all samplers: one step after another, until the last draw or Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic

from torch import Tensor

from pyro_bnn.runtime.interrupt import graceful_interrupt

from .draws import DrawBuffer
from .noise import Noise
from .options import RunOptions
from .progress import ProgressBar
from .run_folder import Counters, RunFolder
from .sampler import Batch, Info, Sampler, SamplingError, State, Update

__all__ = ["Run", "minibatch"]

SECONDS_BETWEEN_SAVES = 30
STEPS_BETWEEN_CHECKS = 500  # a long warm-up of NaN would be wasted


@dataclass
class Run(Generic[State]):
    """A run in progress.

    Attributes:
        sampler: The settings of the sampler.
        options: The options of the run.
        update: The tensor operations of one step.
        data: All the data.
        full_batch: Whether every step uses all the data.
        noise: The random numbers.
        state: The state of the chains.
        draws: The draws so far.
        draw_steps: The number of steps taken when each draw is kept.
        folder: Where the run is saved; ``None`` if it is not.
        counters: How far the run has come.
        stopping: Whether Ctrl-C was pressed.
    """

    sampler: Sampler[State]
    options: RunOptions
    update: Update
    data: Batch
    full_batch: bool
    noise: Noise
    state: State
    draws: DrawBuffer
    draw_steps: Sequence[int]
    folder: RunFolder | None = None
    counters: Counters = field(default_factory=Counters)
    stopping: bool = False

    def loop(self) -> None:
        """Take the remaining steps, and save the run where it has a folder."""
        total, counters = self.draw_steps[-1], self.counters
        bar = ProgressBar(self.sampler.name, counters.steps, total, self.options.progress)
        began = saved = time.perf_counter()
        seconds_before = counters.seconds
        with bar, graceful_interrupt(self.stop):
            while counters.steps < total and not self.stopping:
                info = self.take_step()
                now = time.perf_counter()
                counters.seconds = seconds_before + now - began
                bar.advance()
                if bar.is_due(now):
                    warming_up = counters.steps < self.options.warmup
                    bar.show(info, warming_up, self.draws.divergent(), counters)
                if self.folder is not None and now - saved > SECONDS_BETWEEN_SAVES:
                    saved = now
                    self.save()
        self.save()

    def take_step(self) -> Info:
        """Take one step of all chains, and keep the positions if a draw is due."""
        random = self.noise.next()
        batch = self.data if self.full_batch else minibatch(self.data, random.examples)
        self.state, info = self.sampler.step(
            self.update, self.state, self.counters.steps, random, batch
        )
        self.counters.steps += 1
        self.counters.gradients += self.options.chains * _gradients_per_chain(info)
        if self.counters.steps == self.draw_steps[self.draws.count]:
            self.keep_draw(info)
        elif self.counters.steps % STEPS_BETWEEN_CHECKS == 0:
            self.require_finite()
        return info

    def keep_draw(self, info: Info) -> None:
        """Keep the present positions as a draw of each chain."""
        self.require_finite()
        self.draws.append(self.state.position, info)

    def require_finite(self) -> None:
        """Raise an error if a position is NaN or infinite.

        Raises:
            SamplingError: Naming the step.
        """
        if not bool(self.state.position.isfinite().all()):
            raise SamplingError(
                f"{self.options.caller}: at step {self.counters.steps} the position of a chain is "
                "NaN or infinite; the step size is too large for the curvature of the posterior: "
                "try a tenth of it"
            )

    def stop(self) -> None:
        """Stop after the present step."""
        self.stopping = True

    def save(self) -> None:
        """Write the state of the run to its folder, if it has one."""
        if self.folder is not None:
            self.folder.save(self.state, self.noise, self.draws, self.counters)

    def resume(self) -> None:
        """Continue from the state in the folder, if it holds one."""
        if self.folder is not None and self.folder.holds_run:
            self.state, self.counters = self.folder.restore(self.state, self.noise, self.draws)


def minibatch(data: Batch, examples: Tensor) -> Batch:
    """Return examples of every tensor, a minibatch for each chain.

    Args:
        data: Tensors (N, ...).
        examples: Indices of examples, (chains, B).

    Returns:
        Tensors (chains, B, ...).
    """
    rows = examples.flatten()
    batch = []
    for tensor in data:
        selected = tensor.index_select(0, rows)
        batch.append(selected.view(*examples.shape, *tensor.shape[1:]))
    return tuple(batch)


def _gradients_per_chain(info: Info) -> int:
    """Return the number of gradients that a step took: ``n_steps`` of its report, or one."""
    n_steps: Tensor | None = getattr(info, "n_steps", None)
    return 1 if n_steps is None else int(n_steps[0])
