"""Data sets as plain tensors, every file checked when it is read.

`digits` needs no file and is the default of every example. `mnist`, `not_mnist` and `uci` read from one data
directory: the argument `directory`, else the environment variable PYRO_BNN_DATA, else ./data. Nothing is downloaded
unless `mnist(download=True)` asks for it, and nothing is ever unpickled. Whatever is wrong with a file or an array,
the error is a `DataError`.
"""

import difflib
import hashlib
import io
import math
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["UCI_SETS", "DataError", "Dataset", "digits", "mnist", "not_mnist", "uci", "validate"]

UCI_SETS = ("bostonHousing", "concrete", "energy", "kin8nm", "naval-propulsion-plant", "power-plant")
"""Names that `uci` knows."""

_UCI_SPLITS = 20
_LARGEST_FILE = 2**28  # bytes, five times the largest file read here: no stray file or zip bomb fills the memory
_MNIST_MD5 = {  # of the original files, uncompressed
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class DataError(ValueError):
    """Raised for data that is missing, unreadable, corrupted, or not what it should be.

    The text names the file or field, what was expected, what was found, and what to do about it.
    """


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


def digits(seed: int = 0) -> Dataset:
    """Return the handwritten digits that ship with scikit-learn, in a stratified 80/20 split fixed by `seed`.

    Shapes: x (1437, 64) and (360, 64), the pixels of 8x8 images divided by 16, so in [0, 1]; y in 0..9.

    Raises `DataError` if `seed` is not an integer from 0 to 2**32 - 1.

    Source: Alpaydin & Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998 (its test part).

    >>> data = digits()
    >>> data
    Dataset('digits', 1437 train, 360 test, x (64,), 10 classes)
    >>> data.x_train.min().item(), data.x_train.max().item()
    (0.0, 1.0)
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    _require_index("seed", seed, 2**32)
    pixels, labels = load_digits(return_X_y=True)
    rows = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=seed)
    train, test = (torch.from_numpy(part) for part in rows)
    x, y = torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels).long()
    return Dataset("digits", x[train], y[train], x[test], y[test], torch.tensor(0.0), torch.tensor(16.0), classes=10)


def mnist(
    directory: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    flatten: bool = True,
    center: bool = True,
) -> Dataset:
    """Return MNIST, 60,000 training and 10,000 test images of 28x28, from DIR/MNIST/raw.

    With p a pixel in 0..255 and m the mean of that pixel over the training images,

        x = (p - m) / 256    with `center=True`, the default: the inputs of the LeNet recipe,
        x = p / 256          with `center=False`,

    and the test images are centred by the same training mean. Shapes: x (n, 784), or (n, 1, 28, 28) with
    `flatten=False`; y (n,) in 0..9. The four uncompressed files must be the originals, bit for bit (md5).
    torchvision is needed only for `download=True`, which fetches them if one is missing and else does nothing.

    Raises `DataError` if a file is missing, unreadable or not the original, or if the download fails.

    Source: LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition", 1998; scaled
    as by Molchanov, Ashukha & Vetrov, "Variational dropout sparsifies deep neural networks", 2017 (their code).
    """
    raw, way_out = _folder(directory, "MNIST/raw", "Fetch it once with download=True (command line: --download)")
    if download and not all(os.path.isfile(raw / name) for name in _MNIST_MD5):
        _download_mnist(raw)
    train, y_train = _read_images(raw, "train", way_out, _MNIST_MD5)
    test, y_test = _read_images(raw, "t10k", way_out, _MNIST_MD5)
    # Summed as integers: a single-precision sum over 60,000 images would depend on its order.
    mean = (train.sum(0, dtype=torch.int64).double() / len(train)).float() if center else torch.zeros(28, 28)
    shape = (784,) if flatten else (1, 28, 28)
    # In place, because the training images are 188 MB.
    x_train, x_test = (images.float().sub_(mean).div_(256).reshape(-1, *shape) for images in (train, test))
    return Dataset("MNIST", x_train, y_train, x_test, y_test, mean.reshape(shape), torch.tensor(256.0), classes=10)


def not_mnist(directory: str | os.PathLike[str] | None = None, *, like: Dataset | None = None) -> tuple[Tensor, Tensor]:
    """Return the letters of notMNIST's test half from DIR/notMNIST/raw: inputs that no digit network has seen.

    A network must meet the letters scaled as its training images were: `not_mnist(like=mnist())` applies the mean,
    scale and shape of that set. Without `like`, x = p / 256 for a pixel p in 0..255. Shapes: x (10000, 784), or as
    the examples of `like`; y (10000,) in 0..9 for A..J.

    The files t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte have no published checksum: headers, lengths, counts
    and labels are checked, pixels cannot be.

    Raises `DataError` if a file is missing, unreadable or malformed, or if an example of `like` has not 784 values.

    Source: Bulatov, "notMNIST dataset", 2011.
    """
    shape = torch.Size([784]) if like is None else like.x_train.shape[1:]
    if shape.numel() != 784:
        raise _error("like", "examples of 784 values", f"shape {tuple(shape)}", "Pass the result of mnist().")
    raw, way_out = _folder(directory, "notMNIST/raw", "Put its IDX files there (notMNIST is not downloaded)")
    images, labels = _read_images(raw, "t10k", way_out)
    pixels = images.float().reshape(-1, *shape)
    return pixels / 256 if like is None else (pixels - like.x_mean) / like.x_std, labels


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
        raise _error("name", f"one of {', '.join(UCI_SETS)}", repr(name), way_out)
    _require_index("split", split, _UCI_SPLITS)
    folder, way_out = _folder(directory, "uci", f"Put {name}.npz there (the UCI sets are not downloaded)")
    path = folder / f"{name}.npz"
    arrays = _read_npz(path, way_out)
    x, y = _regression_table(arrays, path, way_out)
    train, test = _split_rows(arrays, split, path, way_out)

    (x_mean, x_std), (y_mean, y_std) = _moments(x[train]), _moments(y[train])
    x, y = ((x - x_mean) / x_std).float(), ((y - y_mean) / y_std).float()
    scaling = (x_mean.float(), x_std.float(), y_mean.item(), y_std.item())
    # Finite in the file, and yet perhaps beyond single precision, or with a deviation that overflows to infinity.
    computed = {"mean of x": x_mean, "deviation of x": x_std, "mean of y": y_mean, "deviation of y": y_std}
    for what, values in {**computed, "standardised x": x, "standardised y": y}.items():
        _require_finite(values.float(), f"{path}: {what}", way_out)
    return Dataset(name, x[train], y[train], x[test], y[test], *scaling)


def validate(x: Tensor, y: Tensor, classes: int | None = None) -> None:
    """Check that inputs x (n, ...) and targets y (n, ...) can be trained on; with `classes`, that y (n,) holds labels.

    Raises `DataError` if x or y is no tensor, is empty, differs in length from the other, or holds a number that is
    not finite; with `classes`, also if y is not a vector of integers in 0..classes-1.

    >>> validate(torch.zeros(3, 2), torch.tensor([0, 4, 1]), classes=3)
    Traceback (most recent call last):
        ...
    pyro_bnn.data.DataError: y: expected labels from 0 to 2, found 4 at index 1. Number the classes from 0.
    """
    for name, values in (("x", x), ("y", y)):
        if not isinstance(values, Tensor):
            raise _error(name, "a tensor", type(values).__name__, "Convert it with torch.as_tensor.")
        if values.ndim == 0 or values.numel() == 0:
            raise _error(name, "at least one example", f"shape {tuple(values.shape)}", "Examples lie along axis 0.")
    if len(x) != len(y):
        raise _error("x and y", "equal lengths", f"{len(x)} and {len(y)}", "Pass one target for each example.")
    _require_finite(x, "x", "Remove or fill in these examples.")
    _require_finite(y, "y", "Remove these examples.")
    if classes is None:
        return
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise _error("y", f"integer labels of {classes} classes", str(y.dtype), "Convert them with y.long().")
    if y.ndim != 1:
        way_out = "Use y.squeeze(1) for a column, y.argmax(1) for one-hot rows."
        raise _error("y", f"labels of shape ({len(x)},)", f"shape {tuple(y.shape)}", way_out)
    _require_labels(y, classes, "y", "Number the classes from 0.")


def _error(what: str | Path, expected: str, found: str, way_out: str) -> DataError:
    return DataError(f"{what}: expected {expected}, found {found}. {way_out}")


def _folder(directory: str | os.PathLike[str] | None, folder: str, remedy: str) -> tuple[Path, str]:
    """Return the folder to read, and the way out for an error there."""
    root = data_folder(directory)
    default = "from PYRO_BNN_DATA" if os.environ.get("PYRO_BNN_DATA") else "the default, as PYRO_BNN_DATA is not set"
    searched = f"Searched in {root} ({default if directory is None else 'as asked for'})"
    other = f"name a directory that holds {folder or 'it'}: --data-dir DIR, directory=DIR, or PYRO_BNN_DATA"
    return root / folder, f"{searched}. {remedy}, or {other}."


def data_folder(directory: str | os.PathLike[str] | None) -> Path:
    """Return the folder of all data sets: what is given, else what PYRO_BNN_DATA says, else ``data``."""
    return Path(os.environ.get("PYRO_BNN_DATA") or "data" if directory is None else directory)


def _read_file(path: Path, way_out: str) -> bytes:
    try:
        # Asked first, because opening a pipe would wait forever.
        if path.is_file() and path.stat().st_size <= _LARGEST_FILE:
            return path.read_bytes()
        found = "a larger one" if path.is_file() else "something else" if path.exists() else "none"
    except OSError as error:  # no permission, a failing disk
        found = str(error)
    raise _error(path, f"a readable file of at most {_LARGEST_FILE} bytes", found, way_out)


def _read_images(raw: Path, half: str, way_out: str, md5: Mapping[str, str] | None = None) -> tuple[Tensor, Tensor]:
    """Return images (n, 28, 28) uint8 and labels (n,) int64."""
    images_path, labels_path = raw / f"{half}-images-idx3-ubyte", raw / f"{half}-labels-idx1-ubyte"
    images, labels = _read_idx(images_path, 3, way_out, md5), _read_idx(labels_path, 1, way_out, md5)
    if images.shape[1:] != (28, 28):
        raise _error(images_path, "images of shape (28, 28)", f"{tuple(images.shape[1:])}", way_out)
    if len(images) != len(labels):
        raise _error(labels_path, f"{len(images)} labels, one for each image", f"{len(labels)}", way_out)
    _require_labels(labels, 10, labels_path, way_out)
    return images, labels.long()


def _read_idx(path: Path, ndim: int, way_out: str, md5: Mapping[str, str] | None) -> Tensor:
    """Read bytes 0, 0, 8 (unsigned bytes), ndim; big-endian 32-bit sizes; the values, and not a byte more."""
    content = _read_file(path, way_out)
    if md5 is not None:
        # Against damage and mix-ups (Fashion-MNIST has the same file names), not attackers: md5 is what was published.
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5[path.name]:
            replace = f"Damaged, or another data set: delete it and get the original. {way_out}"
            raise _error(path, f"the original MNIST file, md5 {md5[path.name]}", f"md5 {found}", replace)
    magic, start = bytes([0, 0, 8, ndim]), 4 + 4 * ndim
    if content[:4] != magic or len(content) < start:
        found = f"{len(content)} bytes, first 0x{content[:4].hex()}" if content else "an empty file"
        raise _error(path, f"an IDX header of {start} bytes, first 0x{magic.hex()}", found, way_out)
    sizes = struct.unpack(f">{ndim}I", content[4:start])
    expected = start + math.prod(sizes)
    if len(content) != expected or expected == start:
        announced = f"at least one value, and the {expected} bytes that the header announces for shape {sizes}"
        raise _error(path, announced, f"{len(content)} bytes", way_out)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(sizes)


def _download_mnist(raw: Path) -> None:
    try:
        from torchvision import datasets
    except Exception as error:  # builds that do not match raise RuntimeError, ImportError, OSError or AttributeError
        way_out = (
            "Most often torch and torchvision are builds of different kinds (CPU and CUDA): reinstall them together, "
            "pip install --force-reinstall torch torchvision"
        )
        raise _error("download=True", "a working torchvision", f"{type(error).__name__}: {error}", way_out) from error
    try:
        raw.mkdir(parents=True, exist_ok=True)
        # Through a scratch folder: an interrupted download never looks like MNIST, and torchvision, which would
        # load an old cache found beside the files with torch.load, finds none.
        with tempfile.TemporaryDirectory(dir=raw) as scratch:
            datasets.MNIST(scratch, download=True)
            for name in _MNIST_MD5:
                os.replace(Path(scratch) / "MNIST" / "raw" / name, raw / name)
    except Exception as error:  # network, disk and server each raise types of their own
        way_out = "Check the connection and that the folder can be written, or copy the four files there yourself."
        raise _error(raw, "to download MNIST", f"{type(error).__name__}: {error}", way_out) from error


def _read_npz(path: Path, way_out: str) -> dict[str, np.ndarray]:
    content = _read_file(path, way_out)
    fields = ("x", "y", "train", "test")
    try:
        # zipfile ignores what lies before and after the archive; here the file must be the archive, end to end.
        if content[:4] != b"PK\3\4" or content[-22:-18] != b"PK\5\6":
            raise ValueError("not one whole zip archive")
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            members = archive.zip.infolist()
            if min(member.header_offset for member in members) != 0:
                raise ValueError("other bytes before the zip archive")
            if sum(member.file_size for member in members) > _LARGEST_FILE:
                raise ValueError(f"more than {_LARGEST_FILE} bytes once unpacked")
            # Before any array: zipfile compares checksums at the end of a member, and a damaged numpy header can
            # make the array end earlier.
            if damaged := archive.zip.testzip():
                raise ValueError(f"{damaged} with a wrong checksum")
            if missing := [field for field in fields if field not in archive.files]:
                raise ValueError(f"no array {', '.join(missing)}")
            return {field: archive[field] for field in fields}
    except Exception as error:  # numpy, zipfile and zlib raise a dozen types for a bad file; all mean the same here
        expected = f"an npz file with arrays {', '.join(fields)} and nothing pickled"
        raise _error(path, expected, f"{type(error).__name__}: {error}", way_out) from error


def _regression_table(arrays: Mapping[str, np.ndarray], path: Path, way_out: str) -> tuple[Tensor, Tensor]:
    """Return x (N, D) and y (N,) in double precision, after checking the layout of all four arrays."""
    rows = len(arrays["x"]) if arrays["x"].ndim else 0
    splits, real, whole = _UCI_SPLITS, "fiu", "iu"  # real and whole: kinds of numpy dtypes
    layout = (("x", 2, rows, real), ("y", 1, rows, real), ("train", 2, splits, whole), ("test", 2, splits, whole))
    for field, ndim, length, kinds in layout:
        array = arrays[field]
        if array.ndim != ndim or len(array) != length or array.size == 0 or array.dtype.kind not in kinds:
            numbers = "integers" if kinds == whole else "real numbers"
            expected = f"{numbers} along {ndim} axes, {length} along the first"
            raise _error(f"{path}: {field}", expected, f"{array.dtype} of shape {array.shape}", way_out)
    with np.errstate(all="ignore"):  # what overflows becomes infinite, and is reported as such
        x, y = (torch.from_numpy(arrays[field].astype(np.float64)) for field in ("x", "y"))
    _require_finite(x, f"{path}: x", way_out)
    _require_finite(y, f"{path}: y", way_out)
    return x, y


def _split_rows(arrays: Mapping[str, np.ndarray], split: int, path: Path, way_out: str) -> tuple[Tensor, Tensor]:
    train, test = arrays["train"][split], arrays["test"][split]
    rows, counts = np.unique(np.concatenate([train, test]), return_counts=True)
    if rows[0] < 0 or rows[-1] >= len(arrays["x"]):
        found = f"{rows[0]} to {rows[-1]} in split {split}"
        raise _error(f"{path}: train and test", f"rows from 0 to {len(arrays['x']) - 1}", found, way_out)
    if counts.max() > 1:
        found = f"row {rows[counts.argmax()]} more than once in split {split}"
        raise _error(f"{path}: train and test", "disjoint rows", found, way_out)
    return torch.from_numpy(train.astype(np.int64)), torch.from_numpy(test.astype(np.int64))


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    std = values.std(0, correction=0)
    # The computed deviation of a constant column may be 1e-16, not 0: dividing by it would blow up rounding errors.
    constant = values.amin(0) == values.amax(0)
    return values.mean(0), torch.where(constant, torch.ones_like(std), std)


def _require_finite(values: Tensor, what: str, way_out: str) -> None:
    if torch.isfinite(values.sum()):  # one cheap pass: a sum is finite only if every term is
        return
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        found = f"{values[tuple(bad[0])].item()} at index {bad[0].tolist()} ({len(bad)} of {values.numel()} are not)"
        raise _error(what, "finite numbers", found, way_out)


def _require_labels(labels: Tensor, classes: int, what: str | Path, way_out: str) -> None:
    outside = ((labels.long() < 0) | (labels.long() >= classes)).nonzero()
    if len(outside):
        first = int(outside[0])
        raise _error(what, f"labels from 0 to {classes - 1}", f"{labels[first].item()} at index {first}", way_out)


def _require_index(name: str, value: int, stop: int) -> None:
    if not isinstance(value, int | np.integer) or not 0 <= value < stop:
        raise _error(name, f"an integer from 0 to {stop - 1}", repr(value), "Pass one of these.")
