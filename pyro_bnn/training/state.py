"""The state of a run: the number of steps that it has taken, and their measurements."""

from __future__ import annotations

from dataclasses import dataclass, field

from .steps import StepStats

__all__ = ["EpochSums", "TrainingState"]

HISTORY = ("epoch", "loss", "data", "kl", "kl_weight", "learning_rate", "seconds")


def _empty_history() -> dict[str, list[float]]:
    return {name: [] for name in HISTORY}


@dataclass
class EpochSums:
    """Sums over the steps of the present epoch; loss, data term and KL in nats."""

    loss: float = 0.0
    data: float = 0.0
    kl: float = 0.0
    steps: float = 0.0


@dataclass
class TrainingState:
    """The number of steps that a run has taken, and their measurements.

    Attributes:
        step: number of optimizer steps taken.
        seconds: training time, including the time before the run was resumed.
        history: one number per epoch under each name; see :class:`~pyro_bnn.training.Fit`.
        sums: sums over the steps of the epoch that has not ended yet.
        interrupted: whether Ctrl-C was pressed; not part of a checkpoint.
    """

    step: int = 0
    seconds: float = 0.0
    history: dict[str, list[float]] = field(default_factory=_empty_history)
    sums: EpochSums = field(default_factory=EpochSums)
    interrupted: bool = False

    @property
    def epochs(self) -> int:
        """The number of epochs that have ended."""
        return len(self.history["epoch"])

    def interrupt(self) -> None:
        """Stop the run after the present step."""
        self.interrupted = True

    def record_step(self, stats: StepStats) -> None:
        """Count a step and add its measurements to the sums."""
        self.step += 1
        sums = self.sums
        sums.loss += stats.loss
        sums.data += stats.data
        sums.kl += sum(stats.kl.values())
        sums.steps += 1

    def close_epoch(self, num_data: int, learning_rate: float, kl_weight: float) -> None:
        """Append the averages of the epoch to the history and begin the next one.

        Args:
            num_data: N, by which data term and KL are divided.
            learning_rate: its value at the last step of the epoch.
            kl_weight: its value at the last step of the epoch.
        """
        sums = self.sums
        row = {
            "epoch": self.epochs + 1,
            "loss": sums.loss / sums.steps,
            "data": sums.data / sums.steps / num_data,
            "kl": sums.kl / sums.steps / num_data,
            "kl_weight": kl_weight,
            "learning_rate": learning_rate,
            "seconds": self.seconds,
        }
        for name, value in row.items():
            self.history[name].append(value)
        self.sums = EpochSums()
