"""MNIST, and the letters of notMNIST as inputs that no digit network has seen."""

from __future__ import annotations

import hashlib
import math
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_bnn.runtime.validation import data_error, require_labels

from .base import Dataset
from .files import DataPath, read_data_file, require_data_folder

__all__ = ["mnist", "not_mnist"]

# The md5 sums of the original files, uncompressed. They protect against damage and mix-ups
# (Fashion-MNIST has the same file names), not against attackers: md5 is what was published.
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class _LabeledImages(NamedTuple):
    """Images (n, 28, 28) uint8 and their labels (n,) int64."""

    images: Tensor
    labels: Tensor


def mnist(
    directory: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    flatten: bool = True,
    center: bool = True,
) -> Dataset:
    """Return MNIST, 60,000 training and 10,000 test images of 28 x 28, from DIR/MNIST/raw.

    With p a pixel in 0..255 and m the mean of that pixel over the training images, the inputs are

    - ``x = (p - m) / 256`` with ``center=True``, the inputs of the LeNet recipe;
    - ``x = p / 256`` with ``center=False``.

    The test images are centered by the mean of the training images. The four uncompressed files
    must be the originals, bit for bit (md5).

    Args:
        directory: The data directory; see :mod:`pyro_bnn.datasets`.
        download: Download the files if one is missing. Only this needs torchvision.
        flatten: Return x of shape (n, 784) rather than (n, 1, 28, 28). Labels y (n,) are 0 to 9.
        center: Subtract the mean of the training images.

    Raises:
        DataError: If a file is missing, unreadable or not the original, or the download fails.

    References:
        LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition",
        1998. Scaled as in the code of Molchanov, Ashukha & Vetrov, "Variational dropout sparsifies
        deep neural networks", 2017.
    """
    remedy = "Fetch it once with download=True (command line: --download)"
    folder = require_data_folder(directory, "MNIST/raw", remedy)
    if download and not _has_all_files(folder.path):
        _download_mnist(folder.path)
    train = _read_images(folder, "train", _MNIST_MD5)
    test = _read_images(folder, "t10k", _MNIST_MD5)
    mean = _mean_image(train.images) if center else torch.zeros(28, 28)
    shape = (784,) if flatten else (1, 28, 28)
    return Dataset(
        name="MNIST",
        x_train=_scaled(train.images, mean, shape),
        y_train=train.labels,
        x_test=_scaled(test.images, mean, shape),
        y_test=test.labels,
        x_mean=mean.reshape(shape),
        x_std=torch.tensor(256.0),
        classes=10,
    )


def not_mnist(
    directory: str | os.PathLike[str] | None = None, *, like: Dataset | None = None
) -> tuple[Tensor, Tensor]:
    """Return the letters A to J of the test half of notMNIST, from DIR/notMNIST/raw.

    The files t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte have no published checksum: headers,
    lengths, counts and labels are checked, pixels cannot be.

    Args:
        directory: The data directory; see :mod:`pyro_bnn.datasets`.
        like: The data set that a network was trained on. The letters are scaled as its images
            were, so ``not_mnist(like=mnist())`` applies the mean, scale and shape of MNIST. By
            default x = p / 256 for a pixel p in 0..255.

    Returns:
        x (10000, 784), or of the shape of the examples of ``like``, and y (10000,) in 0..9.

    Raises:
        DataError: If a file is missing, unreadable or malformed, or if an example of ``like`` does
            not have 784 values.

    References:
        Bulatov, "notMNIST dataset", 2011.
    """
    shape = torch.Size([784]) if like is None else like.x_train.shape[1:]
    if shape.numel() != 784:
        hint = "Pass the result of mnist()."
        raise data_error("like", "examples of 784 values", f"shape {tuple(shape)}", hint)
    remedy = "Put its IDX files there (notMNIST is not downloaded)"
    folder = require_data_folder(directory, "notMNIST/raw", remedy)
    letters = _read_images(folder, "t10k")
    pixels = letters.images.float().reshape(-1, *shape)
    if like is None:
        return pixels / 256, letters.labels
    return (pixels - like.x_mean) / like.x_std, letters.labels


def _has_all_files(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _MNIST_MD5)


def _mean_image(images: Tensor) -> Tensor:
    # summed as integers: a single-precision sum over 60,000 images would depend on its order
    return (images.sum(0, dtype=torch.int64).double() / len(images)).float()


def _scaled(images: Tensor, mean: Tensor, shape: tuple[int, ...]) -> Tensor:
    # in place, because the training images take 188 MB
    return images.float().sub_(mean).div_(256).reshape(-1, *shape)


def _read_images(
    folder: DataPath, half: str, md5: Mapping[str, str] | None = None
) -> _LabeledImages:
    """Read the images and the labels of one half, ``"train"`` or ``"t10k"``."""
    images_path = folder.path / f"{half}-images-idx3-ubyte"
    labels_path = folder.path / f"{half}-labels-idx1-ubyte"
    images = _read_idx(images_path, 3, folder.hint, md5)
    labels = _read_idx(labels_path, 1, folder.hint, md5)
    if images.shape[1:] != (28, 28):
        shape = f"{tuple(images.shape[1:])}"
        raise data_error(images_path, "images of shape (28, 28)", shape, folder.hint)
    if len(images) != len(labels):
        expected = f"{len(images)} labels, one for each image"
        raise data_error(labels_path, expected, f"{len(labels)}", folder.hint)
    require_labels(labels, 10, labels_path, folder.hint)
    return _LabeledImages(images, labels.long())


def _read_idx(path: Path, ndim: int, hint: str, md5: Mapping[str, str] | None) -> Tensor:
    """Return the unsigned bytes in an IDX file.

    The file holds the bytes 0, 0, 8 (the type code) and ``ndim``, then big-endian 32-bit sizes,
    then the values and nothing more.
    """
    content = read_data_file(path, hint)
    if md5 is not None:
        _require_md5(path, content, md5[path.name], hint)
    magic, start = bytes([0, 0, 8, ndim]), 4 + 4 * ndim
    if content[:4] != magic or len(content) < start:
        expected = f"an IDX header of {start} bytes, first 0x{magic.hex()}"
        received = f"{len(content)} bytes, first 0x{content[:4].hex()}"
        raise data_error(path, expected, received if content else "an empty file", hint)
    sizes = struct.unpack(f">{ndim}I", content[4:start])
    length = start + math.prod(sizes)
    if len(content) != length or length == start:
        expected = (
            f"at least one value, and the {length} bytes that the header announces for shape "
            f"{sizes}"
        )
        raise data_error(path, expected, f"{len(content)} bytes", hint)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(sizes)


def _require_md5(path: Path, content: bytes, md5: str, hint: str) -> None:
    received = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if received != md5:
        replace = f"It is damaged or of another data set: delete it and get the original. {hint}"
        raise data_error(path, f"the original MNIST file, md5 {md5}", f"md5 {received}", replace)


def _download_mnist(folder: Path) -> None:
    try:
        from torchvision import datasets
    except Exception as error:  # mismatched builds raise errors of many types
        hint = (
            "Most often torch and torchvision are builds of different kinds (CPU and CUDA): "
            "reinstall them together, pip install --force-reinstall torch torchvision"
        )
        received = f"{type(error).__name__}: {error}"
        raise data_error("download=True", "a working torchvision", received, hint) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In a scratch folder: an interrupted download never looks like MNIST, and torchvision,
        # which would load an old cache beside the files with torch.load, finds none.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            datasets.MNIST(scratch, download=True)
            for name in _MNIST_MD5:
                os.replace(Path(scratch) / "MNIST" / "raw" / name, folder / name)
    except Exception as error:  # network, disk and server each raise their own types
        hint = (
            "Check the connection and that the folder can be written, or copy the four files there "
            "yourself."
        )
        received = f"{type(error).__name__}: {error}"
        raise data_error(folder, "to download MNIST", received, hint) from error
