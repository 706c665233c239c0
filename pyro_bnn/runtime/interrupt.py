"""Ctrl-C as a request to stop after the present step, instead of an error in the middle of it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["graceful_interrupt"]


@contextlib.contextmanager
def graceful_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` at the first Ctrl-C inside a ``with`` block; a second one acts as usual.

    A ``KeyboardInterrupt`` that is raised inside the block ends it without an error, after a call
    of ``stop``. Outside the main thread, which alone receives signals, nothing else is done.
    """
    previous = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    # Python returns None for a handler that it did not install and therefore cannot restore
    handled = in_main_thread and previous is not None

    def on_interrupt(signal_number: int, frame: FrameType | None) -> None:
        stop()
        signal.signal(signal.SIGINT, previous)

    if handled:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    except KeyboardInterrupt:
        stop()
    finally:
        if handled:
            signal.signal(signal.SIGINT, previous)
