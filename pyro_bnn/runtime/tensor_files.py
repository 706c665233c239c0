"""Tensors and facts on disk: safetensors beside JSON, written atomically, never unpickled.

:func:`save_tensors` writes two files. ``NAME-DIGITS.safetensors`` holds the tensors, where
``DIGITS`` are the first digits of the SHA-256 of its content. ``NAME.json`` holds the facts, the
name and the SHA-256 of that file, and a checksum of its own content.

The tensors are written first, and the JSON is then replaced in one step. At every moment the JSON
therefore names a complete file: a full disk or a killed process leaves the previous pair intact.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

__all__ = [
    "CheckpointError",
    "SavedTensors",
    "load_tensors",
    "require_folder",
    "restore_tensors",
    "save_tensors",
    "tensors_under",
    "write_atomically",
]


class CheckpointError(RuntimeError):
    """A saved file is missing, damaged, or belongs to something else."""


class SavedTensors(NamedTuple):
    """The content of a pair of files."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write ``path.json`` and the file of tensors that it names.

    Args:
        path: the common path of both files, without a suffix. Its folder is created where
            necessary.
        tensors: tensors on any device, by name.
        facts: anything that JSON can represent.

    Raises:
        CheckpointError: the disk is full or cannot be written to. Files that were saved before are
            unchanged.
    """
    path = Path(path)
    content = save({name: _for_file(tensor) for name, tensor in tensors.items()})
    digest = hashlib.sha256(content).hexdigest()
    tensor_file = path.with_name(_tensor_file_name(path, digest))
    record = {"tensors": tensor_file.name, "sha256": digest, "facts": facts}
    text = json.dumps(record | {"checksum": _checksum(record)}, indent=1, allow_nan=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(tensor_file, content)
        write_atomically(_index_file(path), text.encode())
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot write ({error.strerror}); the files saved before are unchanged"
        ) from error
    _remove_outdated(path, tensor_file)


def load_tensors(path: str | os.PathLike[str]) -> SavedTensors:
    """Return the tensors and the facts that :func:`save_tensors` wrote.

    Raises:
        CheckpointError: a file is missing, has another format, or does not match its hash.
    """
    path = Path(path)
    index = _read_index(path)
    tensor_file = path.with_name(index.tensor_file)
    try:
        content = tensor_file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{tensor_file}: cannot be read ({error.strerror})") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != index.digest:
        raise CheckpointError(
            f"{tensor_file}: expected SHA-256 {index.digest[:12]}..., found {digest[:12]}...: "
            "the file was changed or damaged"
        )
    try:
        return SavedTensors(load(content), index.facts)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{tensor_file}: not a safetensors file ({error})") from error


def restore_tensors(
    state: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Copy saved tensors into those of a model and its guide.

    Args:
        state: the tensors to overwrite.
        saved: tensors of the same names, dtypes and shapes.
        path: the file that they come from, for the error message.

    Raises:
        CheckpointError: names, dtypes or shapes differ, so the file belongs to another model or
            guide.
    """
    expected, found = _describe(state), _describe(saved)
    different = []
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            different.append(name)
    if different:
        name = different[0]
        raise CheckpointError(
            f"{path}: belongs to another model or guide; {len(different)} tensors differ, "
            f"first {name}: expected {expected.get(name, 'none')}, found {found.get(name, 'none')}"
        )
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(saved[name])


def tensors_under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix and a dot, under the rest of the name.

    >>> tensors_under("loss", {"loss.weight": torch.ones(2), "step": torch.zeros(())})
    {'weight': tensor([1., 1.])}
    """
    selected = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}."):
            selected[name.removeprefix(f"{prefix}.")] = value
    return selected


def require_folder(folder: Path) -> None:
    """Create a folder for files that are written later, and check that it can be written to.

    Called before a long run, so that a wrong folder is reported before the work and not after it.

    Raises:
        CheckpointError: the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: this folder cannot be created ({error.strerror}); choose another one"
        ) from error
    if not os.access(folder, os.W_OK):
        raise CheckpointError(f"{folder}: this folder cannot be written to; choose another one")


def write_atomically(file: Path, content: bytes) -> None:
    """Replace a file in one step: it is either unchanged or complete, even after a power cut.

    Raises:
        OSError: the disk is full or cannot be written to. The file is unchanged.
    """
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
    with contextlib.suppress(OSError):  # some file systems cannot synchronize a folder
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@dataclass(frozen=True)
class _Index:
    """The content of ``NAME.json``."""

    tensor_file: str
    digest: str
    facts: dict[str, Any]


def _read_index(path: Path) -> _Index:
    """Read ``path.json`` and check it.

    The file of tensors must lie beside it: a forged name cannot make the caller read another file.
    """
    file = _index_file(path)
    try:
        record = json.loads(file.read_bytes())
        checksum = record.pop("checksum")
        index = _Index(str(record["tensors"]), record["sha256"], record["facts"])
        expected_name = _tensor_file_name(path, index.digest)
        if checksum != _checksum(record):
            raise ValueError("its checksum is wrong: the file was changed or damaged")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error.filename}: expected a file that was saved before, found none; check the path"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file}: expected JSON with tensors, sha256, facts and their checksum, "
            f"found something else ({type(error).__name__}: {error})"
        ) from error
    name = index.tensor_file
    # a saved pair may have been renamed, so only the end of the name is compared
    if Path(name).name != name or not name.endswith(expected_name.removeprefix(path.name)):
        raise CheckpointError(
            f"{file}: expected tensors in a file beside it, such as {expected_name}, "
            f"found the name {name!r}"
        )
    return index


def _index_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _tensor_file_name(path: Path, digest: str) -> str:
    return f"{path.name}-{digest[:12]}.safetensors"


def _remove_outdated(path: Path, current: Path) -> None:
    """Remove the tensors of earlier saves, and files that a killed process left unfinished."""
    name = glob.escape(path.name)
    tensor_file = f"{name}-{'[0-9a-f]' * 12}.safetensors"
    for pattern in (tensor_file, f".{tensor_file}.*.part", f".{name}.json.*.part"):
        for outdated in path.parent.glob(pattern):
            if outdated != current:
                with contextlib.suppress(OSError):
                    outdated.unlink()


def _checksum(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record in the form that it has after a round trip through JSON."""
    canonical = json.dumps(json.loads(json.dumps(record)), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _for_file(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares memory with no other tensor."""
    return tensor.detach().cpu().contiguous().clone()


def _describe(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return dtype and shape of every tensor."""
    return {name: f"{tensor.dtype} {tuple(tensor.shape)}" for name, tensor in tensors.items()}
