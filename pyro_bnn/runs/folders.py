"""Folders of results, which are never overwritten, and JSON files in them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pyro_bnn.runtime.tensor_files import CheckpointError, write_atomically

__all__ = ["JsonValue", "new_folder", "require_empty", "write_json"]

JsonValue = str | int | float | bool | None | Sequence["JsonValue"] | Mapping[str, "JsonValue"]


def require_empty(folder: Path) -> None:
    """Refuse a folder that is not empty; a folder that does not exist is accepted.

    Raises:
        CheckpointError: if the folder contains something or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"{folder}: holds something already; choose a new or an empty folder with --out"
        )


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Create a folder, and remove it again if the body fails before it writes anything.

    Raises:
        CheckpointError: if the folder is not empty or cannot be made.
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
            with contextlib.suppress(OSError):  # not empty: keep what was written
                folder.rmdir()
        raise


def write_json(path: Path, content: Mapping[str, JsonValue]) -> None:
    """Write JSON; numbers that are NaN or infinity become ``null``.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    text = json.dumps(_finite(content), indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write ({error.strerror})") from error


def _finite(value: JsonValue) -> JsonValue:
    """Return the value with ``None`` for NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
