"""Folders of results: nothing in them is overwritten, and what is written as JSON can be read by anyone."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyro_bnn.runtime.tensor_files import CheckpointError, write_atomically

__all__ = ["claimed", "require_empty", "write_json"]


def require_empty(folder: Path) -> None:
    """Refuse a folder that holds something already.

    Raises:
        CheckpointError: it does, or is no folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"{folder}: holds something already; choose a new or an empty folder with --out"
        )


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make a folder; should what follows fail before anything is written to it, take it away again.

    Raises:
        CheckpointError: it holds something already, or cannot be made.
    """
    existed = folder.exists()
    require_empty(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be made ({error.strerror})") from error
    try:
        yield
    except BaseException:
        if not existed:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts as JSON; numbers that are not finite become null.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(_finite(facts), indent=1) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write ({error.strerror})") from error


def _finite(value: Any) -> Any:
    """JSON has no infinity: a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
