"""The progress bar of a run."""

from __future__ import annotations

import time
from types import TracebackType

from tqdm.auto import tqdm

from .run_folder import Counters
from .sampler import Info

__all__ = ["ProgressBar"]

SECONDS_BETWEEN_TEXTS = 0.5
FORMATS = {"lp": ".1f", "acceptance_rate": ".2f", "step_size": ".2g"}


class ProgressBar:
    """A bar of steps that shows, twice a second, what the sampler reports.

    Args:
        name: Usual name of the method.
        done: Steps taken before.
        total: Steps of the whole run.
        enabled: Whether to show anything.
    """

    def __init__(self, name: str, done: int, total: int, enabled: bool) -> None:
        self.name, self.enabled = name, enabled
        self.shown_at = time.perf_counter()
        self.bar = tqdm(
            total=total,
            initial=done,
            disable=not enabled,
            mininterval=SECONDS_BETWEEN_TEXTS,
            desc=name,
            unit="step",
            dynamic_ncols=True,
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()

    def advance(self) -> None:
        """Count one step."""
        self.bar.update()

    def is_due(self, now: float) -> bool:
        """Return whether the text should be renewed at a time in seconds, and take note of it."""
        if not self.enabled or now - self.shown_at <= SECONDS_BETWEEN_TEXTS:
            return False
        self.shown_at = now
        return True

    def show(self, info: Info, warming_up: bool, divergent: int | None, counters: Counters) -> None:
        """Show the means over the chains, and the number of gradients per second."""
        texts = []
        for name, form in FORMATS.items():
            if hasattr(info, name):
                texts.append(f"{name} {float(getattr(info, name).mean()):{form}}")
        if divergent is not None:
            texts.append(f"diverging {divergent}")
        texts.append(f"{counters.gradients / max(counters.seconds, 1e-9):.0f} gradients/s")
        self.bar.set_description(f"{self.name} {'warm-up' if warming_up else 'draws'}")
        self.bar.set_postfix_str("  ".join(texts))
