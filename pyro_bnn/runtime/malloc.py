"""Freed memory is kept for the next step.

glibc gives blocks of a megabyte or more back to the system as soon as they are freed, and takes new ones at the next
step, which the system has to clear page by page: a third of the time of a training step whose tensors are that large.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools

__all__ = ["retain_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@functools.cache
def retain_freed_memory() -> None:
    """Tell glibc's malloc, where that is what there is, to keep up to a gigabyte of freed memory in the process."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
