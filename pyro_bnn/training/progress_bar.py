"""The progress bar of a run."""

from __future__ import annotations

from types import TracebackType

from tqdm.auto import tqdm

from .state import TrainingState

__all__ = ["ProgressBar"]


class ProgressBar:
    """Show the steps taken, the epoch, and the terms of the loss in nats per datum.

    Args:
        step: number of steps taken before the bar is shown.
        last_step: number of steps at the end of the run.
        visible: whether to show anything.
    """

    def __init__(self, step: int, last_step: int, visible: bool) -> None:
        self._bar = tqdm(
            initial=step,
            total=last_step,
            disable=not visible,
            desc="fit",
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
        )
        self.update = self._bar.update

    def show_epoch(self, state: TrainingState) -> None:
        """Show number and averages of the epoch that has just ended."""
        history = state.history
        data, kl = history["data"][-1], history["kl"][-1]
        self._bar.set_description(f"epoch {state.epochs}", refresh=False)
        self._bar.set_postfix_str(f"data {data:.4f}  KL {kl:.4f} nats/datum", refresh=False)

    def __enter__(self) -> ProgressBar:
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, error, traceback)
