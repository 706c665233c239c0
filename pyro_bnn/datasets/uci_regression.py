"""The UCI regression sets in their published splits."""

from __future__ import annotations

import difflib
import io
import os
import zipfile
from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_bnn.runtime.validation import data_error, require_finite, require_index

from .base import Dataset
from .files import LARGEST_FILE, DataPath, read_data_file, require_data_folder

__all__ = ["UCI_SETS", "uci"]

UCI_SETS = (
    "bostonHousing",
    "concrete",
    "energy",
    "kin8nm",
    "naval-propulsion-plant",
    "power-plant",
)
"""The names that :func:`uci` accepts."""

_SPLITS = 20
_FIELDS = ("x", "y", "train", "test")
_REAL, _INTEGER = "fiu", "iu"  # kinds of numpy dtypes

_Arrays = Mapping[str, npt.NDArray[np.generic]]


class _Layout(NamedTuple):
    """The expected form of an array: its number of axes, its length, and its kinds of dtype."""

    ndim: int
    length: int
    kinds: str


class _Moments(NamedTuple):
    """Mean and standard deviation along the first axis."""

    mean: Tensor
    std: Tensor


def uci(name: str, split: int = 0, directory: str | os.PathLike[str] | None = None) -> Dataset:
    """Return a UCI regression set in one of its 20 published 90/10 splits, from DIR/uci/NAME.npz.

    The file holds x (N, D), y (N,), and row indices train (20, n) and test (20, m). The columns of
    x, and y, are standardized by mean and standard deviation (divisor n) of the training part; a
    column that is constant there keeps the standard deviation 1. Shapes are x (n, D) and (m, D),
    and y (n,) and (m,).

    Args:
        name: One of :data:`UCI_SETS`.
        split: The number of the split, 0 to 19.
        directory: The data directory; see :mod:`pyro_bnn.datasets`.

    Raises:
        DataError: If the name or the split is unknown, or the file is missing or damaged, or it
            holds arrays of other shapes, NaN or infinity, indices out of range, or a row twice in
            one split.

    References:
        Hernandez-Lobato & Adams, "Probabilistic backpropagation for scalable learning of Bayesian
        neural networks", 2015. The splits are those of Gal & Ghahramani, "Dropout as a Bayesian
        approximation", 2016.
    """
    _require_name(name)
    require_index("split", split, _SPLITS)
    remedy = f"Put {name}.npz there (the UCI sets are not downloaded)"
    folder = require_data_folder(directory, "uci", remedy)
    file = DataPath(folder.path / f"{name}.npz", folder.hint)
    arrays = _read_npz(file)
    _require_layout(arrays, file)
    x, y = _as_double(arrays, "x", file), _as_double(arrays, "y", file)
    train, test = _rows_of_split(arrays, split, file)

    x_moments, y_moments = _moments(x[train]), _moments(y[train])
    x = ((x - x_moments.mean) / x_moments.std).float()
    y = ((y - y_moments.mean) / y_moments.std).float()
    # Numbers that are finite in the file may still exceed single precision, or have a standard
    # deviation that overflows.
    computed = {
        "mean of x": x_moments.mean,
        "deviation of x": x_moments.std,
        "mean of y": y_moments.mean,
        "deviation of y": y_moments.std,
        "standardized x": x,
        "standardized y": y,
    }
    for quantity, values in computed.items():
        require_finite(values.float(), f"{file.path}: {quantity}", file.hint)
    return Dataset(
        name=name,
        x_train=x[train],
        y_train=y[train],
        x_test=x[test],
        y_test=y[test],
        x_mean=x_moments.mean.float(),
        x_std=x_moments.std.float(),
        y_mean=y_moments.mean.item(),
        y_std=y_moments.std.item(),
    )


def _require_name(name: str) -> None:
    if name in UCI_SETS:
        return
    by_folded_name = {known.casefold(): known for known in UCI_SETS}
    nearest = difflib.get_close_matches(str(name).casefold(), by_folded_name, n=1, cutoff=0.3)
    hint = "Choose one of these."
    if nearest:
        hint = f"Did you mean {by_folded_name[nearest[0]]!r}?"
    raise data_error("name", f"one of {', '.join(UCI_SETS)}", repr(name), hint)


def _read_npz(file: DataPath) -> _Arrays:
    """Read the four arrays; the file must be one whole zip archive, undamaged."""
    content = read_data_file(file.path, file.hint)
    try:
        _require_whole_archive(content)
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            _require_sound_members(archive)
            return {field: archive[field] for field in _FIELDS}
    except Exception as error:  # numpy, zipfile and zlib raise a dozen types for a bad file
        expected = f"an npz file with arrays {', '.join(_FIELDS)} and nothing pickled"
        received = f"{type(error).__name__}: {error}"
        raise data_error(file.path, expected, received, file.hint) from error


def _require_whole_archive(content: bytes) -> None:
    # zipfile ignores bytes before and after the archive; here the archive must be the whole file
    if content[:4] != b"PK\3\4" or content[-22:-18] != b"PK\5\6":
        raise ValueError("not one whole zip archive")


def _require_sound_members(archive: np.lib.npyio.NpzFile) -> None:
    """Refuse surplus bytes, too many of them, wrong checksums, and a missing array."""
    zipped = cast("zipfile.ZipFile", archive.zip)
    members = zipped.infolist()
    if min(member.header_offset for member in members) != 0:
        raise ValueError("other bytes before the zip archive")
    if sum(member.file_size for member in members) > LARGEST_FILE:
        raise ValueError(f"more than {LARGEST_FILE} bytes once unpacked")
    # Before any array is read: zipfile compares checksums at the end of a member, and a damaged
    # numpy header can make the array end earlier.
    damaged = zipped.testzip()
    if damaged:
        raise ValueError(f"{damaged} with a wrong checksum")
    missing = [field for field in _FIELDS if field not in archive.files]
    if missing:
        raise ValueError(f"no array {', '.join(missing)}")


def _require_layout(arrays: _Arrays, file: DataPath) -> None:
    """Refuse arrays of other dtypes and shapes than described in :func:`uci`."""
    rows = len(arrays["x"]) if arrays["x"].ndim else 0
    layouts = {
        "x": _Layout(2, rows, _REAL),
        "y": _Layout(1, rows, _REAL),
        "train": _Layout(2, _SPLITS, _INTEGER),
        "test": _Layout(2, _SPLITS, _INTEGER),
    }
    for field, layout in layouts.items():
        array = arrays[field]
        if not _has_layout(array, layout):
            numbers = "integers" if layout.kinds == _INTEGER else "real numbers"
            raise data_error(
                f"{file.path}: {field}",
                f"{numbers} along {layout.ndim} axes, {layout.length} along the first",
                f"{array.dtype} of shape {array.shape}",
                file.hint,
            )


def _has_layout(array: npt.NDArray[np.generic], layout: _Layout) -> bool:
    if array.ndim != layout.ndim or array.dtype.kind not in layout.kinds:
        return False
    return len(array) == layout.length and array.size > 0


def _as_double(arrays: _Arrays, field: str, file: DataPath) -> Tensor:
    """Return an array in double precision, after a check that it is finite."""
    with np.errstate(all="ignore"):  # a number that overflows becomes infinite and is reported
        values = torch.from_numpy(arrays[field].astype(np.float64))
    require_finite(values, f"{file.path}: {field}", file.hint)
    return values


def _rows_of_split(arrays: _Arrays, split: int, file: DataPath) -> tuple[Tensor, Tensor]:
    """Return the training and the test rows of a split, after a check that they are disjoint."""
    train = arrays["train"][split].astype(np.int64)
    test = arrays["test"][split].astype(np.int64)
    rows, counts = np.unique(np.concatenate([train, test]), return_counts=True)
    subject = f"{file.path}: train and test"
    if rows[0] < 0 or rows[-1] >= len(arrays["x"]):
        received = f"{rows[0]} to {rows[-1]} in split {split}"
        raise data_error(subject, f"rows from 0 to {len(arrays['x']) - 1}", received, file.hint)
    if counts.max() > 1:
        received = f"row {rows[counts.argmax()]} more than once in split {split}"
        raise data_error(subject, "disjoint rows", received, file.hint)
    return torch.from_numpy(train), torch.from_numpy(test)


def _moments(values: Tensor) -> _Moments:
    std = values.std(0, correction=0)
    # The computed deviation of a constant column may be 1e-16 rather than 0; dividing by it would
    # magnify rounding errors.
    is_constant = values.amin(0) == values.amax(0)
    return _Moments(values.mean(0), torch.where(is_constant, torch.ones_like(std), std))
