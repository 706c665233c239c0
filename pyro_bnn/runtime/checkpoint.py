"""Tensors and facts on disk: safetensors beside JSON, written atomically, checked by hash, never unpickled.

``name.json`` holds the facts and the SHA-256 of the tensors' file it belongs to, whose name carries the first digits
of that hash, and a SHA-256 of its own content. The tensors are written first and the JSON is replaced in one step, so
at every moment the JSON names a complete file; a full disk or a kill leaves the previous pair.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

__all__ = ["CheckpointError", "load_tensors", "restore", "save_tensors", "write_atomically"]


class CheckpointError(RuntimeError):
    """A file that is missing, corrupted, or does not belong to what it is loaded into."""


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write ``path.json`` and the tensors it names.

    Args:
        path: without a suffix; its folder is made.
        tensors: on any device.
        facts: what JSON can hold.

    Raises:
        CheckpointError: the disk is full or cannot be written; what was there before is still there.
    """
    path = Path(path)
    content = save(
        {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    )
    digest = hashlib.sha256(content).hexdigest()
    file = path.with_name(f"{path.name}-{digest[:12]}.safetensors")
    record = {"tensors": file.name, "sha256": digest, "facts": facts}
    text = json.dumps(record | {"checksum": _checksum(record)}, indent=1, allow_nan=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)
        write_atomically(path.with_name(f"{path.name}.json"), text.encode())
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot write ({error.strerror}); what was saved before is still there"
        ) from error
    _remove_old(path, file)


def _remove_old(path: Path, file: Path) -> None:
    """Remove the tensors of earlier saves, and what a killed process left half written."""
    name = glob.escape(path.name)
    patterns = (
        f"{name}-{'[0-9a-f]' * 12}.safetensors",
        f".{name}-{'[0-9a-f]' * 12}.safetensors.*.part",
        f".{name}.json.*.part",
    )
    for pattern in patterns:
        for old in path.parent.glob(pattern):
            if old != file:
                with contextlib.suppress(OSError):
                    old.unlink()


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the facts of ``path.json``.

    Raises:
        CheckpointError: a file is missing, is not what it should be, or its content does not match its hash.
    """
    path = Path(path)
    index = path.with_name(f"{path.name}.json")
    try:
        record = json.loads(index.read_bytes())
        checksum = record.pop("checksum")
        name, digest, facts = str(record["tensors"]), record["sha256"], record["facts"]
        expected = f"{path.name}-{digest[:12]}.safetensors"
        if checksum != _checksum(record):
            raise ValueError("its checksum is wrong: the file was changed or damaged")
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: there is no such file") from error
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = "JSON with tensors, sha256, facts and their checksum"
        raise CheckpointError(
            f"{index}: expected {what}, found something else ({type(error).__name__}: {error})"
        ) from error
    if Path(name).name != name or not name.endswith(expected.removeprefix(path.name)):
        raise CheckpointError(
            f"{index}: expected tensors in a file beside it, such as {expected}, found the name {name!r}"
        )
    file = path.with_name(name)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise CheckpointError(
            f"{file}: expected SHA-256 {digest[:12]}..., found {found[:12]}...: the file was changed or damaged"
        )
    try:
        return load(content), facts
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{file}: not a safetensors file ({error})") from error


def restore(
    state: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Copy saved tensors into those of a model and its guide.

    Raises:
        CheckpointError: names, dtypes or shapes differ: the file belongs to another model or guide.
    """
    expected, found = (
        {name: f"{value.dtype} {tuple(value.shape)}" for name, value in tensors.items()}
        for tensors in (state, saved)
    )
    different = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if different:
        name = different[0]
        raise CheckpointError(
            f"{path}: belongs to another model or guide; {len(different)} tensors differ, first {name}: "
            f"expected {expected.get(name, 'none')}, found {found.get(name, 'none')}"
        )
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(saved[name])


def _checksum(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what JSON makes of the record."""
    return hashlib.sha256(
        json.dumps(json.loads(json.dumps(record)), sort_keys=True).encode()
    ).hexdigest()


def write_atomically(file: Path, content: bytes) -> None:
    """Replace a file in one step: it is either as before or complete, also after a power cut."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# --- What a run is made of --------------------------------------------------------------------------------------------


def require_folder(folder: Path) -> None:
    """Make a folder for checkpoints, before the work that they are to hold is done.

    Raises:
        CheckpointError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: this folder cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise CheckpointError(f"{folder}: this folder cannot be written to")
