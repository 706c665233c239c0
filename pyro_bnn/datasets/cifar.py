"""CIFAR-10: the original in its binary version, and a small copy recompressed as JPEG.

The "python version" of CIFAR-10 is a pickle and is not read.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_bnn.runtime.validation import data_error, require_labels

from .base import Dataset
from .files import read_data_file, require_data_folder

__all__ = ["cifar10", "cifar10_jpeg"]

_RECORD_BYTES = 1 + 3 * 32 * 32  # a label, then the red, green and blue pixels
_RECORDS = 10_000  # in each file


class _LabeledImages(NamedTuple):
    """Images (n, 3, 32, 32) uint8 and their labels (n,) int64."""

    images: Tensor
    labels: Tensor


def cifar10(directory: str | os.PathLike[str] | None = None) -> Dataset:
    """Return CIFAR-10, 50,000 training and 10,000 test images, from DIR/cifar-10-batches-bin.

    With p a pixel in 0..255, and m and s the mean and standard deviation of its color over the
    training images, the inputs are ``x = (p - m) / s``. Shapes are x (n, 3, 32, 32) and y (n,) in
    0..9. The folder is the one that the archive cifar-10-binary.tar.gz unpacks to.

    Args:
        directory: The data directory; see :mod:`pyro_bnn.datasets`.

    Raises:
        DataError: If a file is missing or is not a file of CIFAR-10.

    References:
        Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    remedy = "Unpack cifar-10-binary.tar.gz of www.cs.toronto.edu/~kriz/cifar.html there"
    folder, hint = require_data_folder(directory, "cifar-10-batches-bin", remedy)
    batches = [_read_batch(folder / f"data_batch_{number}.bin", hint) for number in range(1, 6)]
    images = torch.cat([batch.images for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    test = _read_batch(folder / "test_batch.bin", hint)
    return _scaled("CIFAR-10", _LabeledImages(images, labels), test)


def cifar10_jpeg(directory: str | os.PathLike[str] | None = None) -> Dataset:
    """Return CIFAR-10 recompressed as JPEG of quality 75, from DIR/cifar10-jpeg.npz.

    The copy has a fifth of the bytes and other pixels: it is for trying things out, not for
    comparisons with published errors. Inputs are scaled as by :func:`cifar10`.

    For each PART of train and test the file holds PART_bytes (the JPEG files one after the other),
    PART_lengths (their lengths) and PART_labels. Its examples are sorted by class. The training
    images are therefore shuffled, always in the same way; otherwise the last ones, which runs hold
    out, would all be of one class.

    Args:
        directory: The data directory; see :mod:`pyro_bnn.datasets`.

    Raises:
        DataError: If the file is missing or damaged, or an image is not a color JPEG of 32 x 32.
    """
    remedy = "Put cifar10-jpeg.npz there (it is not downloaded)"
    folder, hint = require_data_folder(directory, "", remedy)
    path = folder / "cifar10-jpeg.npz"
    content = read_data_file(path, hint)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            train = _decode_part(archive, "train")
            test = _decode_part(archive, "test")
    except Exception as error:  # numpy, zipfile and PIL raise a dozen types for a bad file
        expected = "an npz file of JPEG images of 32 x 32"
        raise data_error(path, expected, f"{type(error).__name__}: {error}", hint) from error
    require_labels(train.labels, 10, path, hint)
    require_labels(test.labels, 10, path, hint)
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))
    shuffled = _LabeledImages(train.images[order], train.labels[order])
    return _scaled("CIFAR-10 (JPEG)", shuffled, test)


def _decode_part(archive: np.lib.npyio.NpzFile, part: str) -> _LabeledImages:
    """Decode the images of one part, ``"train"`` or ``"test"``."""
    from PIL import Image

    content, lengths = archive[f"{part}_bytes"], archive[f"{part}_lengths"]
    labels = archive[f"{part}_labels"]
    _require_lengths(content, lengths, labels)
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    ends = np.cumsum(lengths, dtype=np.int64)
    for image, end, length in zip(images, ends, lengths, strict=True):
        jpeg = io.BytesIO(content[end - length : end].tobytes())
        with Image.open(jpeg, formats=["JPEG"]) as picture:
            if picture.size != (32, 32) or picture.mode != "RGB":
                raise ValueError(f"an image of {picture.size} in mode {picture.mode}")
            image[:] = np.asarray(picture)
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)
    return _LabeledImages(channels_first, torch.from_numpy(labels.astype(np.int64)))


def _require_lengths(
    content: npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
) -> None:
    """Refuse lengths that do not cut the bytes into one image for each label."""
    one_per_label = len(lengths) == len(labels) > 0
    if not one_per_label or int(lengths.min()) < 1 or int(lengths.sum()) != content.size:
        raise ValueError(
            f"{len(labels)} labels and {len(lengths)} lengths for {content.size} bytes"
        )


def _read_batch(path: Path, hint: str) -> _LabeledImages:
    """Read one file of the binary version."""
    content = read_data_file(path, hint)
    if len(content) != _RECORDS * _RECORD_BYTES:
        expected = f"{_RECORDS} records of {_RECORD_BYTES} bytes"
        raise data_error(path, expected, f"{len(content)} bytes", hint)
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, _RECORD_BYTES)
    labels = records[:, 0].long()
    require_labels(labels, 10, path, hint)
    return _LabeledImages(records[:, 1:].reshape(-1, 3, 32, 32), labels)


def _scaled(name: str, train: _LabeledImages, test: _LabeledImages) -> Dataset:
    """Return the data set with each color centered and scaled by the training images."""
    mean, std = _color_moments(train.images)
    return Dataset(
        name=name,
        x_train=train.images.float().sub_(mean).div_(std).contiguous(),
        y_train=train.labels,
        x_test=test.images.float().sub_(mean).div_(std).contiguous(),
        y_test=test.labels,
        x_mean=mean,
        x_std=std,
        classes=10,
    )


def _color_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each color, both of shape (3, 1, 1).

    They are computed from counts of the 256 levels: exactly, and without a copy of the images in
    floating point.
    """
    histograms = [images[:, color].flatten().bincount(minlength=256) for color in range(3)]
    counts = torch.stack(histograms).double()
    fraction = counts / counts.sum(1, keepdim=True)
    level = torch.arange(256, dtype=torch.float64)
    mean = fraction @ level
    std = (fraction @ level.square() - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 0, std, 1.0)  # a color that is the same everywhere
    return mean.float().view(3, 1, 1), std.float().view(3, 1, 1)
