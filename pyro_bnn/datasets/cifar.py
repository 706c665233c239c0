"""CIFAR-10 as plain tensors: the original in its binary version, and a small copy that was recompressed as JPEG.

Both read from the data directory as :mod:`pyro_bnn.datasets.base` does. Nothing is downloaded and nothing is unpickled (the
"python version" of CIFAR-10 is a pickle); whatever is wrong with a file, the error is a ``DataError``.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_bnn.runtime.validation import data_error, require_labels

from .base import Dataset, read_data_file, require_data_folder

__all__ = ["cifar10", "cifar10_jpeg"]

_RECORD = 1 + 3 * 32 * 32  # bytes: a label, then red, green and blue
_RECORDS = 10_000  # in each file


def cifar10(directory: str | os.PathLike[str] | None = None) -> Dataset:
    r"""Return CIFAR-10, 50,000 training and 10,000 test images of 3 x 32 x 32, from DIR/cifar-10-batches-bin.

    With p a pixel in 0..255, m and s mean and standard deviation of its colour over the training images,

        x = (p - m) / s.

    Shapes: x (n, 3, 32, 32), y (n,) in 0..9. The folder is what the archive cifar-10-binary.tar.gz unpacks to.

    Raises:
        DataError: a file is missing or is no file of CIFAR-10.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    remedy = "Unpack cifar-10-binary.tar.gz of www.cs.toronto.edu/~kriz/cifar.html there"
    folder, way_out = require_data_folder(directory, "cifar-10-batches-bin", remedy)
    train = [_read_batch(folder / f"data_batch_{number}.bin", way_out) for number in range(1, 6)]
    images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
    return _scaled("CIFAR-10", (images, labels), _read_batch(folder / "test_batch.bin", way_out))


def cifar10_jpeg(directory: str | os.PathLike[str] | None = None) -> Dataset:
    """Return CIFAR-10 as it was recompressed with JPEG of quality 75, from DIR/cifar10-jpeg.npz.

    A fifth of the bytes, and other pixels: for trying things out, not for comparing with published errors. The file
    holds, for each part of train and test, PART_bytes (the JPEG files one after the other), PART_lengths (theirs) and
    PART_labels. It is in the order of its classes, so the training images are shuffled, always alike: else the last
    ones, which runs hold out, would be all of one class. Scaled as by :func:`cifar10`.

    Raises:
        DataError: the file is missing or damaged, or an image is no JPEG of 32 x 32 in colour.
    """
    root, way_out = require_data_folder(
        directory, "", "Put cifar10-jpeg.npz there (it is not downloaded)"
    )
    path = root / "cifar10-jpeg.npz"
    content = read_data_file(path, way_out)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            train, test = (
                _decode(*(archive[f"{part}_{what}"] for what in _ARRAYS))
                for part in ("train", "test")
            )
    except (
        Exception
    ) as error:  # numpy, zipfile and PIL raise a dozen types for a bad file; all mean the same here
        expected = "an npz file of JPEG images of 32 x 32"
        raise data_error(path, expected, f"{type(error).__name__}: {error}", way_out) from error
    for _, labels in (train, test):
        require_labels(labels, 10, path, way_out)
    order = torch.randperm(len(train[1]), generator=torch.Generator().manual_seed(0))
    return _scaled("CIFAR-10 (JPEG)", (train[0][order], train[1][order]), test)


_ARRAYS = ("bytes", "lengths", "labels")


def _decode(content: np.ndarray, lengths: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return images (n, 3, 32, 32) uint8 and labels (n,) int64."""
    from PIL import Image

    if (
        len(lengths) != len(labels)
        or not len(labels)
        or int(lengths.min()) < 1
        or int(lengths.sum()) != content.size
    ):
        raise ValueError(
            f"{len(labels)} labels and {len(lengths)} lengths for {content.size} bytes"
        )
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    ends = np.cumsum(lengths, dtype=np.int64)
    for image, end, length in zip(images, ends, lengths, strict=True):
        with Image.open(
            io.BytesIO(content[end - length : end].tobytes()), formats=["JPEG"]
        ) as picture:
            if picture.size != (32, 32) or picture.mode != "RGB":
                raise ValueError(f"an image of {picture.size} in mode {picture.mode}")
            image[:] = np.asarray(picture)
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64))


def _read_batch(path: Path, way_out: str) -> tuple[Tensor, Tensor]:
    """Return images (10000, 3, 32, 32) uint8 and labels (10000,) int64, one file of the binary version."""
    content = read_data_file(path, way_out)
    if len(content) != _RECORDS * _RECORD:
        raise data_error(
            path, f"{_RECORDS} records of {_RECORD} bytes", f"{len(content)} bytes", way_out
        )
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, _RECORD)
    labels = records[:, 0].long()
    require_labels(labels, 10, path, way_out)
    return records[:, 1:].reshape(-1, 3, 32, 32), labels


def _scaled(name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Dataset:
    """Centre and scale each colour by the training images."""
    histograms = torch.stack(
        [torch.bincount(train[0][:, colour].flatten(), minlength=256) for colour in range(3)]
    )
    share = histograms.double() / histograms.sum(
        1, keepdim=True
    )  # from counts: exact, and without a copy in float
    level = torch.arange(256, dtype=torch.float64)
    mean = share @ level
    std = (share @ level.square() - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 0, std, 1.0)  # a colour that is the same everywhere
    mean, std = mean.float().view(3, 1, 1), std.float().view(3, 1, 1)
    x_train, x_test = (
        images.float().sub_(mean).div_(std).contiguous() for images, _ in (train, test)
    )
    return Dataset(name, x_train, train[1], x_test, test[1], mean, std, classes=10)
