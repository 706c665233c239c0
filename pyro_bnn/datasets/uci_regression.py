"""The UCI regression sets in their published splits."""

import difflib
import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_bnn.datasets.base import LARGEST_FILE, Dataset, read_data_file, require_data_folder
from pyro_bnn.runtime.validation import data_error, require_finite, require_index

__all__ = ["UCI_SETS", "uci"]

UCI_SETS = (
    "bostonHousing",
    "concrete",
    "energy",
    "kin8nm",
    "naval-propulsion-plant",
    "power-plant",
)
"""Names that `uci` knows."""


_UCI_SPLITS = 20


def uci(name: str, split: int = 0, directory: str | os.PathLike[str] | None = None) -> Dataset:
    """Return one of the `UCI_SETS` for regression, in one of its 20 published 90/10 splits, from DIR/uci/NAME.npz.

    The file holds x (N, D), y (N,), and row indices train (20, n) and test (20, m). The columns of x, and y, are
    standardised by mean and standard deviation (divisor n) of the training part; a column that is constant there
    keeps the standard deviation 1. Shapes: x (n, D) and (m, D), y (n,) and (m,).

    Raises `DataError` if the name or the split is unknown, or the file is missing, damaged, or holds arrays of other
    shapes, numbers that are not finite, indices out of range, or a row twice in one split.

    Source: Hernandez-Lobato & Adams, "Probabilistic backpropagation for scalable learning of Bayesian neural
    networks", 2015; splits of Gal & Ghahramani, "Dropout as a Bayesian approximation", 2016.
    """
    if name not in UCI_SETS:
        folded = {known.casefold(): known for known in UCI_SETS}
        nearest = difflib.get_close_matches(str(name).casefold(), folded, n=1, cutoff=0.3)
        way_out = f"Did you mean {folded[nearest[0]]!r}?" if nearest else "Choose one of these."
        raise data_error("name", f"one of {', '.join(UCI_SETS)}", repr(name), way_out)
    require_index("split", split, _UCI_SPLITS)
    folder, way_out = require_data_folder(
        directory, "uci", f"Put {name}.npz there (the UCI sets are not downloaded)"
    )
    path = folder / f"{name}.npz"
    arrays = _read_npz(path, way_out)
    x, y = _regression_table(arrays, path, way_out)
    train, test = _split_rows(arrays, split, path, way_out)

    (x_mean, x_std), (y_mean, y_std) = _moments(x[train]), _moments(y[train])
    x, y = ((x - x_mean) / x_std).float(), ((y - y_mean) / y_std).float()
    scaling = (x_mean.float(), x_std.float(), y_mean.item(), y_std.item())
    # Finite in the file, and yet perhaps beyond single precision, or with a deviation that overflows to infinity.
    computed = {
        "mean of x": x_mean,
        "deviation of x": x_std,
        "mean of y": y_mean,
        "deviation of y": y_std,
    }
    for what, values in {**computed, "standardised x": x, "standardised y": y}.items():
        require_finite(values.float(), f"{path}: {what}", way_out)
    return Dataset(name, x[train], y[train], x[test], y[test], *scaling)


def _read_npz(path: Path, way_out: str) -> dict[str, np.ndarray]:
    content = read_data_file(path, way_out)
    fields = ("x", "y", "train", "test")
    try:
        # zipfile ignores what lies before and after the archive; here the file must be the archive, end to end.
        if content[:4] != b"PK\3\4" or content[-22:-18] != b"PK\5\6":
            raise ValueError("not one whole zip archive")
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            members = archive.zip.infolist()
            if min(member.header_offset for member in members) != 0:
                raise ValueError("other bytes before the zip archive")
            if sum(member.file_size for member in members) > LARGEST_FILE:
                raise ValueError(f"more than {LARGEST_FILE} bytes once unpacked")
            # Before any array: zipfile compares checksums at the end of a member, and a damaged numpy header can
            # make the array end earlier.
            if damaged := archive.zip.testzip():
                raise ValueError(f"{damaged} with a wrong checksum")
            if missing := [field for field in fields if field not in archive.files]:
                raise ValueError(f"no array {', '.join(missing)}")
            return {field: archive[field] for field in fields}
    except Exception as error:  # numpy, zipfile and zlib raise a dozen types for a bad file; all mean the same here
        expected = f"an npz file with arrays {', '.join(fields)} and nothing pickled"
        raise data_error(path, expected, f"{type(error).__name__}: {error}", way_out) from error


def _regression_table(
    arrays: Mapping[str, np.ndarray], path: Path, way_out: str
) -> tuple[Tensor, Tensor]:
    """Return x (N, D) and y (N,) in double precision, after checking the layout of all four arrays."""
    rows = len(arrays["x"]) if arrays["x"].ndim else 0
    splits, real, whole = _UCI_SPLITS, "fiu", "iu"  # real and whole: kinds of numpy dtypes
    layout = (
        ("x", 2, rows, real),
        ("y", 1, rows, real),
        ("train", 2, splits, whole),
        ("test", 2, splits, whole),
    )
    for field, ndim, length, kinds in layout:
        array = arrays[field]
        if (
            array.ndim != ndim
            or len(array) != length
            or array.size == 0
            or array.dtype.kind not in kinds
        ):
            numbers = "integers" if kinds == whole else "real numbers"
            expected = f"{numbers} along {ndim} axes, {length} along the first"
            raise data_error(
                f"{path}: {field}", expected, f"{array.dtype} of shape {array.shape}", way_out
            )
    with np.errstate(all="ignore"):  # what overflows becomes infinite, and is reported as such
        x, y = (torch.from_numpy(arrays[field].astype(np.float64)) for field in ("x", "y"))
    require_finite(x, f"{path}: x", way_out)
    require_finite(y, f"{path}: y", way_out)
    return x, y


def _split_rows(
    arrays: Mapping[str, np.ndarray], split: int, path: Path, way_out: str
) -> tuple[Tensor, Tensor]:
    train, test = arrays["train"][split], arrays["test"][split]
    rows, counts = np.unique(np.concatenate([train, test]), return_counts=True)
    if rows[0] < 0 or rows[-1] >= len(arrays["x"]):
        found = f"{rows[0]} to {rows[-1]} in split {split}"
        raise data_error(
            f"{path}: train and test", f"rows from 0 to {len(arrays['x']) - 1}", found, way_out
        )
    if counts.max() > 1:
        found = f"row {rows[counts.argmax()]} more than once in split {split}"
        raise data_error(f"{path}: train and test", "disjoint rows", found, way_out)
    return torch.from_numpy(train.astype(np.int64)), torch.from_numpy(test.astype(np.int64))


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    std = values.std(0, correction=0)
    # The computed deviation of a constant column may be 1e-16, not 0: dividing by it would blow up rounding errors.
    constant = values.amin(0) == values.amax(0)
    return values.mean(0), torch.where(constant, torch.ones_like(std), std)
