"""CIFAR-10 in its binary version and as JPEG, from small files."""

import io

import numpy as np
import pytest
import torch

from pyro_bnn import DataError
from pyro_bnn.datasets import cifar, cifar10, cifar10_jpeg


def jpeg(color):
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(file, "JPEG", quality=95)
    return np.frombuffer(file.getvalue(), np.uint8)


def write_jpegs(path, change=None):
    files = [jpeg(color) for color in ((200, 0, 100), (0, 200, 100), (100, 100, 100))]
    arrays = {}
    for part, jpegs in (("train", files), ("test", files[:1])):
        arrays |= {
            f"{part}_bytes": np.concatenate(jpegs),
            f"{part}_lengths": np.array([len(file) for file in jpegs], np.int32),
            f"{part}_labels": np.arange(len(jpegs), dtype=np.uint8),
        }
    np.savez(path / "cifar10-jpeg.npz", **{**arrays, **(change or {})})


def test_jpegs_are_decoded_shuffled_and_scaled(tmp_path):
    write_jpegs(tmp_path)
    data = cifar10_jpeg(tmp_path)
    assert data.x_train.shape == (3, 3, 32, 32)
    assert data.x_test.shape == (1, 3, 32, 32)
    assert (
        sorted(data.y_train.tolist()) == [0, 1, 2] != data.y_train.tolist()
    )  # the file is in order of its classes
    assert torch.equal(data.y_train, cifar10_jpeg(tmp_path).y_train)
    assert data.classes == 10
    assert data.x_train.mean((0, 2, 3)).abs().max() < 1e-5
    assert torch.allclose(
        data.x_train[:, :2].std((0, 2, 3), correction=0), torch.ones(2), atol=1e-4
    )
    pixels = data.x_train * data.x_std + data.x_mean
    expected = torch.tensor([[200.0, 0, 100], [0, 200, 100], [100, 100, 100]])
    assert (pixels.mean((2, 3)) - expected[data.y_train]).abs().max() < 3  # what JPEG changes
    assert torch.equal(data.x_test, data.x_train[data.y_train == 0])


@pytest.mark.parametrize(
    "change",
    [
        {"train_lengths": np.array([10, 20, 30], np.int32)},
        {"train_lengths": np.array([5], np.int32)},
        {"test_labels": np.array([11], np.uint8)},
        {"test_bytes": np.zeros(7, np.uint8), "test_lengths": np.array([7], np.int32)},
        {"train_labels": np.array([{}], object)},
    ],
)
def test_a_damaged_or_missing_file_is_a_data_error(tmp_path, change):
    write_jpegs(tmp_path, change)
    with pytest.raises(DataError, match=r"cifar10-jpeg\.npz: expected"):
        cifar10_jpeg(tmp_path)
    with pytest.raises(DataError, match="cifar-10-binary"):
        cifar10(tmp_path)
    (tmp_path / "cifar10-jpeg.npz").unlink()
    with pytest.raises(DataError, match=r"cifar10-jpeg\.npz"):
        cifar10_jpeg(tmp_path)


def test_the_binary_version_is_read_and_its_size_is_checked(tmp_path, monkeypatch):
    assert cifar._RECORDS == 10_000
    monkeypatch.setattr(cifar, "_RECORDS", 40)  # the real files have 30 MB each
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (40, 3073), dtype=np.uint8)
    first[:, 0] %= 10
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        (folder / name).write_bytes(first.tobytes())
    data = cifar10(tmp_path)
    assert data.x_train.shape == (200, 3, 32, 32)
    assert torch.equal(data.y_test, torch.from_numpy(first[:, 0]).long())
    pixels = data.x_test[7] * data.x_std + data.x_mean
    assert torch.allclose(pixels.flatten(), torch.from_numpy(first[7, 1:]).float(), atol=1e-3)
    (folder / "test_batch.bin").write_bytes(first.tobytes()[:-1])
    with pytest.raises(DataError, match="40 records of 3073 bytes, found 122919"):
        cifar10(tmp_path)
