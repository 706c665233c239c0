"""Ctrl-C as a wish to stop soon, not as an error in the middle of a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["graceful_interrupt"]


@contextlib.contextmanager
def graceful_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` at the first Ctrl-C, so that the present step is not left half done; a second one acts as usual.

    A ``KeyboardInterrupt`` that is raised inside ends the context, quietly, after a call of ``stop``. Outside the main
    thread, which alone hears signals, this is all that happens.
    """
    previous = signal.getsignal(signal.SIGINT)
    # a handler that Python did not set (None) could not be put back
    ours = threading.current_thread() is threading.main_thread() and previous is not None

    def once(*_: Any) -> None:
        stop()
        signal.signal(signal.SIGINT, previous)

    if ours:
        signal.signal(signal.SIGINT, once)
    try:
        yield
    except KeyboardInterrupt:
        stop()
    finally:
        if ours:
            signal.signal(signal.SIGINT, previous)
