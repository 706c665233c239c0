"""Data sets as plain tensors, every file checked when it is read.

`digits` needs no file and is the default of every example. `mnist`, `not_mnist` and `uci` read from one data
directory: the argument `directory`, else the environment variable PYRO_BNN_DATA, else ./data. Nothing is downloaded
unless `mnist(download=True)` asks for it, and nothing is ever unpickled. Whatever is wrong with a file or an array,
the error is a `DataError`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pyro_bnn.runtime.validation import data_error

__all__ = ["Dataset"]


LARGEST_FILE = (
    2**28
)  # bytes, five times the largest file read here: no stray file or zip bomb fills the memory


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A training and a test set, and the affine map that undoes their scaling.

    `x_train` (n, ...) and `x_test` (m, ...) are float32; `y_train` (n,) and `y_test` (m,) are int64 labels in
    0..classes-1, or float32 targets where `classes` is None. Original units come back by

        x * x_std + x_mean        and        y * y_std + y_mean,

    with `x_mean` and `x_std` broadcast against one example. A root mean squared error on the scaled targets is
    therefore multiplied by `y_std`, a log-likelihood per example (nats) lowered by log(y_std).
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    x_mean: Tensor
    x_std: Tensor
    y_mean: float = 0.0
    y_std: float = 1.0
    classes: int | None = None

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """The pair `(x_train, y_train)`, as `fit` takes it."""
        return self.x_train, self.y_train

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """The pair `(x_test, y_test)`."""
        return self.x_test, self.y_test

    def __repr__(self) -> str:
        task = "regression" if self.classes is None else f"{self.classes} classes"
        shape = tuple(self.x_train.shape[1:])
        return f"Dataset({self.name!r}, {len(self.x_train)} train, {len(self.x_test)} test, x {shape}, {task})"


def require_data_folder(
    directory: str | os.PathLike[str] | None, folder: str, remedy: str
) -> tuple[Path, str]:
    """Return the folder to read, and the way out for an error there."""
    root = data_folder(directory)
    default = (
        "from PYRO_BNN_DATA"
        if os.environ.get("PYRO_BNN_DATA")
        else "the default, as PYRO_BNN_DATA is not set"
    )
    searched = f"Searched in {root} ({default if directory is None else 'as asked for'})"
    other = f"name a directory that holds {folder or 'it'}: --data-dir DIR, directory=DIR, or PYRO_BNN_DATA"
    return root / folder, f"{searched}. {remedy}, or {other}."


def data_folder(directory: str | os.PathLike[str] | None) -> Path:
    """Return the folder of all data sets: what is given, else what PYRO_BNN_DATA says, else ``data``."""
    return Path(os.environ.get("PYRO_BNN_DATA") or "data" if directory is None else directory)


def read_data_file(path: Path, way_out: str) -> bytes:
    """Return the bytes of a file.

    Raises:
        DataError: there is no such file, it cannot be read, or it is too large.
    """
    try:
        # Asked first, because opening a pipe would wait forever.
        if path.is_file() and path.stat().st_size <= LARGEST_FILE:
            return path.read_bytes()
        found = "a larger one" if path.is_file() else "something else" if path.exists() else "none"
    except OSError as error:  # no permission, a failing disk
        found = str(error)
    raise data_error(path, f"a readable file of at most {LARGEST_FILE} bytes", found, way_out)
