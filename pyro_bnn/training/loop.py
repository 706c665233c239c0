"""The loop of :func:`~pyro_bnn.fit`: take steps, close epochs, save, call the callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import pyro

from pyro_bnn.runtime.interrupt import graceful_interrupt

from .callbacks import Callback
from .checkpoint import Checkpoint
from .non_finite import non_finite_error
from .progress_bar import ProgressBar
from .schedules import Schedule, schedule_value
from .training_run import TrainingRun

__all__ = ["train"]


def train(
    run: TrainingRun,
    epochs: int,
    learning_rate: Schedule,
    kl_weight: Schedule,
    callbacks: Sequence[Callback],
    checkpoint: Checkpoint | None,
    progress: bool,
) -> None:
    """Take the remaining steps of a run; at the end of each epoch, record, save and call back.

    Ctrl-C stops the run after the present step, with a last checkpoint.

    Args:
        run: the run to continue; it is changed in place.
        epochs: number of epochs at the end of the run, including those before it was resumed.
        learning_rate: schedule of the learning rate.
        kl_weight: schedule of the weight of the KL terms.
        callbacks: functions to call at the end of each epoch.
        checkpoint: where to save the run; ``None`` saves nothing.
        progress: whether to show a progress bar.

    Raises:
        NonFiniteError: the loss or a gradient is NaN or infinite.
        CheckpointError: the checkpoint cannot be written.
    """
    state, per_epoch = run.state, run.batches.per_epoch
    last_step = math.ceil(epochs * per_epoch)
    stream = run.batches.stream(state.step, run.device)
    # the programs were checked when the run began; callbacks run with the user's setting
    validate = pyro.settings.get("validate_infer")
    with (
        ProgressBar(state.step, last_step, visible=progress) as bar,
        graceful_interrupt(state.interrupt),
        pyro.validation_enabled(False),
    ):
        started = time.perf_counter() - state.seconds
        while state.step < last_step and not state.interrupted:
            epoch = state.step / per_epoch
            rate = schedule_value(learning_rate, epoch)
            weight = schedule_value(kl_weight, epoch)
            stats = run.take_step(next(stream), rate, weight)
            if not stats.finite:
                folder = None if checkpoint is None else checkpoint.folder
                raise non_finite_error(stats, state.step, epoch, folder)
            state.record_step(stats)
            state.seconds = time.perf_counter() - started
            bar.update()
            if math.floor(state.step / per_epoch) == math.floor(epoch):
                continue
            state.close_epoch(run.batches.num_data, rate, weight)
            bar.show_epoch(state)
            if checkpoint and (checkpoint.is_due(state.epochs) or state.step == last_step):
                checkpoint.save(run)
            with pyro.validation_enabled(validate):
                run.call(callbacks)
        if checkpoint and state.interrupted:
            checkpoint.save(run)
