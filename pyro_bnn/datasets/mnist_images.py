"""MNIST and notMNIST as plain tensors."""

import hashlib
import math
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pyro_bnn.datasets.base import Dataset, read_data_file, require_data_folder
from pyro_bnn.runtime.validation import data_error, require_labels

__all__ = ["mnist", "not_mnist"]

_MNIST_MD5 = {  # of the original files, uncompressed
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


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
    raw, way_out = require_data_folder(
        directory, "MNIST/raw", "Fetch it once with download=True (command line: --download)"
    )
    if download and not all(os.path.isfile(raw / name) for name in _MNIST_MD5):
        _download_mnist(raw)
    train, y_train = _read_images(raw, "train", way_out, _MNIST_MD5)
    test, y_test = _read_images(raw, "t10k", way_out, _MNIST_MD5)
    # Summed as integers: a single-precision sum over 60,000 images would depend on its order.
    mean = (
        (train.sum(0, dtype=torch.int64).double() / len(train)).float()
        if center
        else torch.zeros(28, 28)
    )
    shape = (784,) if flatten else (1, 28, 28)
    # In place, because the training images are 188 MB.
    x_train, x_test = (
        images.float().sub_(mean).div_(256).reshape(-1, *shape) for images in (train, test)
    )
    return Dataset(
        "MNIST",
        x_train,
        y_train,
        x_test,
        y_test,
        mean.reshape(shape),
        torch.tensor(256.0),
        classes=10,
    )


def not_mnist(
    directory: str | os.PathLike[str] | None = None, *, like: Dataset | None = None
) -> tuple[Tensor, Tensor]:
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
        raise data_error(
            "like", "examples of 784 values", f"shape {tuple(shape)}", "Pass the result of mnist()."
        )
    raw, way_out = require_data_folder(
        directory, "notMNIST/raw", "Put its IDX files there (notMNIST is not downloaded)"
    )
    images, labels = _read_images(raw, "t10k", way_out)
    pixels = images.float().reshape(-1, *shape)
    return pixels / 256 if like is None else (pixels - like.x_mean) / like.x_std, labels


def _read_images(
    raw: Path, half: str, way_out: str, md5: Mapping[str, str] | None = None
) -> tuple[Tensor, Tensor]:
    """Return images (n, 28, 28) uint8 and labels (n,) int64."""
    images_path, labels_path = raw / f"{half}-images-idx3-ubyte", raw / f"{half}-labels-idx1-ubyte"
    images, labels = (
        _read_idx(images_path, 3, way_out, md5),
        _read_idx(labels_path, 1, way_out, md5),
    )
    if images.shape[1:] != (28, 28):
        raise data_error(
            images_path, "images of shape (28, 28)", f"{tuple(images.shape[1:])}", way_out
        )
    if len(images) != len(labels):
        raise data_error(
            labels_path, f"{len(images)} labels, one for each image", f"{len(labels)}", way_out
        )
    require_labels(labels, 10, labels_path, way_out)
    return images, labels.long()


def _read_idx(path: Path, ndim: int, way_out: str, md5: Mapping[str, str] | None) -> Tensor:
    """Read bytes 0, 0, 8 (unsigned bytes), ndim; big-endian 32-bit sizes; the values, and not a byte more."""
    content = read_data_file(path, way_out)
    if md5 is not None:
        # Against damage and mix-ups (Fashion-MNIST has the same file names), not attackers: md5 is what was published.
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5[path.name]:
            replace = f"Damaged, or another data set: delete it and get the original. {way_out}"
            raise data_error(
                path, f"the original MNIST file, md5 {md5[path.name]}", f"md5 {found}", replace
            )
    magic, start = bytes([0, 0, 8, ndim]), 4 + 4 * ndim
    if content[:4] != magic or len(content) < start:
        found = f"{len(content)} bytes, first 0x{content[:4].hex()}" if content else "an empty file"
        raise data_error(
            path, f"an IDX header of {start} bytes, first 0x{magic.hex()}", found, way_out
        )
    sizes = struct.unpack(f">{ndim}I", content[4:start])
    expected = start + math.prod(sizes)
    if len(content) != expected or expected == start:
        announced = f"at least one value, and the {expected} bytes that the header announces for shape {sizes}"
        raise data_error(path, announced, f"{len(content)} bytes", way_out)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(sizes)


def _download_mnist(raw: Path) -> None:
    try:
        from torchvision import datasets
    except Exception as error:  # builds that do not match raise RuntimeError, ImportError, OSError or AttributeError
        way_out = (
            "Most often torch and torchvision are builds of different kinds (CPU and CUDA): reinstall them together, "
            "pip install --force-reinstall torch torchvision"
        )
        raise data_error(
            "download=True", "a working torchvision", f"{type(error).__name__}: {error}", way_out
        ) from error
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
        raise data_error(
            raw, "to download MNIST", f"{type(error).__name__}: {error}", way_out
        ) from error
