"""Files in the IDX format, read through ``not_mnist``, which has no checksum to rely on."""

import os
import random
import struct
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_bnn.datasets import Dataset, digits
from pyro_bnn.datasets.mnist_images import not_mnist
from pyro_bnn.runtime.validation import DataError
from tests.datasets.idx_files import idx, small_images, write_half
from tests.datasets.real_files import REAL, needs_folder


@pytest.fixture
def letters(tmp_path):
    images, labels = small_images()
    raw = tmp_path / "letters" / "notMNIST" / "raw"
    write_half(raw, "t10k", images, labels)
    return types.SimpleNamespace(
        directory=tmp_path / "letters",
        images_path=raw / "t10k-images-idx3-ubyte",
        labels_path=raw / "t10k-labels-idx1-ubyte",
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels),
    )


def test_an_idx_file_gives_its_images_and_labels(letters):
    x, y = not_mnist(letters.directory)
    assert x.shape == (20, 784)
    assert x.dtype == torch.float32
    assert torch.equal((x * 256).long().reshape(20, 28, 28), letters.images)
    assert y.dtype == torch.int64
    assert torch.equal(y, letters.labels)


def test_letters_are_scaled_like_the_training_set(letters):
    mean = torch.rand(1, 28, 28) * 255
    like = Dataset(
        "m",
        torch.zeros(1, 1, 28, 28),
        torch.zeros(1),
        torch.zeros(1),
        torch.zeros(1),
        mean,
        torch.tensor(256.0),
    )
    x, _ = not_mnist(letters.directory, like=like)
    assert x.shape == (20, 1, 28, 28)
    torch.testing.assert_close(x * 256 + mean, letters.images[:, None].float())
    with pytest.raises(
        DataError, match=r"like: expected examples of 784 values, found shape \(64,\)"
    ):
        not_mnist(letters.directory, like=digits())


def corruptions(content, header):
    """Yield cuts near the header and later, extensions, and every bit of the header flipped."""
    chance = random.Random(0)
    for length in [
        *range(header + 2),
        *(chance.randrange(len(content)) for _ in range(40)),
        len(content) - 1,
    ]:
        yield f"cut to {length}", content[:length]
    for extra in (1, 2, 8, 784, 5000):
        yield f"extended by {extra}", content + bytes(extra)
    for bit in range(8 * header):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit} flipped", bytes(flipped)


@pytest.mark.parametrize(("field", "header"), [("images", 16), ("labels", 8)])
def test_every_corruption_of_an_idx_file_is_a_data_error(letters, field, header):
    path = getattr(letters, f"{field}_path")
    content = path.read_bytes()
    count = 0
    for corruption, corrupted in corruptions(content, header):
        path.write_bytes(corrupted)
        try:
            not_mnist(letters.directory)
        except DataError:
            count += 1
        else:
            pytest.fail(f"{field} {corruption}: accepted")
    assert count > 110
    path.write_bytes(content)
    not_mnist(letters.directory)  # the intact file was fine all along


@pytest.mark.parametrize("place", [0, 7, 19])
@pytest.mark.parametrize("label", [10, 128, 255])
def test_labels_beyond_nine_are_a_data_error(letters, place, label):
    labels = letters.labels.numpy().copy()
    labels[place] = label
    letters.labels_path.write_bytes(idx(labels))
    with pytest.raises(
        DataError,
        match=f"labels-idx1-ubyte: expected labels from 0 to 9, found {label} at index {place}",
    ):
        not_mnist(letters.directory)


def test_a_missing_label_is_a_data_error(letters):
    letters.labels_path.write_bytes(idx(letters.labels.numpy()[:19]))
    with pytest.raises(DataError, match="expected 20 labels, one for each image, found 19"):
        not_mnist(letters.directory)


@pytest.mark.parametrize("shape", [(20, 784, 1), (20, 27, 28), (0, 28, 28), (20, 0, 28)])
def test_images_of_another_shape_or_none_are_a_data_error(letters, shape):
    letters.images_path.write_bytes(idx(np.zeros(shape)))
    with pytest.raises(DataError, match="images-idx3-ubyte: expected"):
        not_mnist(letters.directory)


def test_a_header_that_announces_a_huge_array_costs_no_memory(letters):
    letters.images_path.write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3))
    with pytest.raises(DataError, match="bytes that the header announces"):
        not_mnist(letters.directory)


def replace_by_directory(path):
    path.unlink()
    path.mkdir()


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


def replace_by_dangling_link(path):
    path.unlink()
    path.symlink_to("nowhere")


def replace_by_huge_file(path):
    os.truncate(path, 2**33)  # sparse: takes no space


@pytest.mark.parametrize(
    "replace",
    [
        Path.unlink,
        replace_by_directory,
        replace_by_pipe,
        replace_by_dangling_link,
        replace_by_huge_file,
    ],
)
def test_what_is_not_a_file_is_a_data_error(letters, replace):
    replace(letters.labels_path)
    with pytest.raises(DataError, match="labels-idx1-ubyte: expected a readable file"):
        not_mnist(letters.directory)


def test_a_file_that_cannot_be_read_is_a_data_error(letters, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"found .*Permission denied"):
        not_mnist(letters.directory)


@needs_folder("notMNIST/raw")
def test_real_not_mnist():
    x, y = not_mnist(REAL)
    assert x.shape == (10_000, 784)
    assert y.bincount().tolist() == [1000] * 10
    assert (x.min(), x.max()) == (0, 255 / 256)
