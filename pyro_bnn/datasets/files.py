"""Where the files of data sets lie, and how they are read.

The data directory is the argument ``directory``, otherwise the environment variable
``PYRO_BNN_DATA``, otherwise ``./data``. Whatever is wrong with a file, the error is a ``DataError``
that names the file and says how to get it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from pyro_bnn.runtime.validation import data_error

__all__ = ["LARGEST_FILE", "DataPath", "data_folder", "read_data_file", "require_data_folder"]

# Bytes, five times the largest file read here: no stray file or zip bomb fills the memory.
LARGEST_FILE = 2**28

_VARIABLE = "PYRO_BNN_DATA"


class DataPath(NamedTuple):
    """A file or folder of data, and the hint that errors about it give."""

    path: Path
    hint: str


def data_folder(directory: str | os.PathLike[str] | None) -> Path:
    """Return the data directory: the argument, otherwise ``PYRO_BNN_DATA``, otherwise ``data``."""
    if directory is not None:
        return Path(directory)
    return Path(os.environ.get(_VARIABLE) or "data")


def require_data_folder(
    directory: str | os.PathLike[str] | None, subfolder: str, remedy: str
) -> DataPath:
    """Return a folder in the data directory, with the hint for errors about its files.

    Args:
        directory: The data directory, as :func:`data_folder` takes it.
        subfolder: The folder in the data directory; empty for the directory itself.
        remedy: How to get the files; the beginning of a sentence.
    """
    root = data_folder(directory)
    hint = (
        f"Searched in {root} ({_origin(directory)}). {remedy}, or name a directory that holds "
        f"{subfolder or 'it'}: --data-dir DIR, directory=DIR, or {_VARIABLE}."
    )
    return DataPath(root / subfolder, hint)


def _origin(directory: str | os.PathLike[str] | None) -> str:
    """Say where the name of the data directory comes from."""
    if directory is not None:
        return "as asked for"
    if os.environ.get(_VARIABLE):
        return f"from {_VARIABLE}"
    return f"the default, as {_VARIABLE} is not set"


def read_data_file(path: Path, hint: str) -> bytes:
    """Return the bytes of a file.

    Raises:
        DataError: If the file is missing, unreadable or too large.
    """
    expected = f"a readable file of at most {LARGEST_FILE} bytes"
    try:
        # The kind of file is checked first, because opening a pipe would wait forever.
        if path.is_file() and path.stat().st_size <= LARGEST_FILE:
            return path.read_bytes()
        obstacle = _obstacle(path)
    except OSError as error:  # no permission, a failing disk
        obstacle = str(error)
    raise data_error(path, expected, obstacle, hint)


def _obstacle(path: Path) -> str:
    if path.is_file():
        return "a larger one"
    if path.exists():
        return "something else"
    return "none"
