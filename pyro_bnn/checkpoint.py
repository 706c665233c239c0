"""Tensors and facts on disk: safetensors beside JSON, written atomically, checked by hash, never unpickled.

``name.json`` holds the facts and the SHA-256 of the tensors' file it belongs to, whose name carries the first digits of that hash. The
tensors are written first and the JSON is replaced in one step, so at every moment the JSON names a complete file; a full disk or a kill
leaves the previous pair.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

__all__ = ["CheckpointError", "load_tensors", "save_tensors", "write_atomically"]


class CheckpointError(RuntimeError):
    """A file that is missing, corrupted, or does not belong to what it is loaded into."""


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write ``path.json`` and the tensors it names.

    Args:
        path: without a suffix; its folder is made.
        tensors: on any device.
        facts: what JSON can hold.

    Raises:
        CheckpointError: the disk is full or cannot be written; what was there before is still there.
    """
    path = Path(path)
    content = save({key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()})
    digest = hashlib.sha256(content).hexdigest()
    file = path.with_name(f"{path.name}-{digest[:12]}.safetensors")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)
        record = {"tensors": file.name, "sha256": digest, "facts": facts}
        write_atomically(path.with_name(f"{path.name}.json"), json.dumps(record, indent=1, allow_nan=True).encode())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write ({error.strerror}); what was saved before is still there") from error
    for old in path.parent.glob(f"{path.name}-{'[0-9a-f]' * 12}.safetensors"):
        if old != file:
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
        name, digest, facts = str(record["tensors"]), record["sha256"], record["facts"]
        file = path.with_name(Path(name).name)
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: there is no such file") from error
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index}: expected JSON with tensors, sha256 and facts, found something else ({error})") from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise CheckpointError(f"{file}: expected SHA-256 {str(digest)[:12]}..., found {found[:12]}...: the file was changed or damaged")
    try:
        return load(content), facts
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{file}: not a safetensors file ({error})") from error


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
