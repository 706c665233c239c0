"""MNIST: its scaling, its checksums and its download."""

import hashlib
import random
import sys
import types
from pathlib import Path

import pytest
import torch

from pyro_bnn.datasets import mnist_images
from pyro_bnn.datasets.mnist_images import mnist
from pyro_bnn.runtime.validation import DataError, validate
from tests.datasets.idx_files import HALVES, mnist_files, small_images, write_half
from tests.datasets.real_files import REAL, needs_folder


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """Thirty images under the names of MNIST, declared to be the originals."""
    raw = tmp_path / "small" / "MNIST" / "raw"
    write_half(raw, "train", *small_images(20, seed=1))
    write_half(raw, "t10k", *small_images(10, seed=2))
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in mnist_files(raw)}
    assert md5.keys() == mnist_images._MNIST_MD5.keys()
    monkeypatch.setattr(mnist_images, "_MNIST_MD5", md5)
    return tmp_path / "small"


def test_mnist_is_centered_by_the_training_images(small_mnist):
    train, test = small_images(20, seed=1)[0] / 256, small_images(10, seed=2)[0] / 256
    centered, plain = mnist(small_mnist, flatten=False), mnist(small_mnist, center=False)
    assert centered.x_train.shape == (20, 1, 28, 28)
    assert plain.x_train.shape == (20, 784)
    for values, expected in (
        (plain.x_train, train),
        (plain.x_test, test),
        (centered.x_train, train - train.mean(0)),
        (centered.x_test, test - train.mean(0)),
    ):
        torch.testing.assert_close(
            values.double().reshape(-1, 28, 28), torch.from_numpy(expected), atol=1e-7, rtol=0
        )
    assert centered.x_train.dtype == torch.float32
    assert centered.y_test.tolist() == list(range(10))
    for data in (centered, plain):
        pixels = data.x_test * data.x_std + data.x_mean
        torch.testing.assert_close(pixels.reshape(10, 28, 28), torch.from_numpy(test * 256).float())


def test_reading_mnist_needs_no_torchvision(small_mnist, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    mnist(small_mnist)
    mnist(small_mnist, download=True)  # nothing is missing, so nothing is imported or fetched


def test_every_changed_byte_of_mnist_is_a_data_error(small_mnist):
    chance = random.Random(0)
    for path in mnist_files(small_mnist / "MNIST" / "raw"):
        content = path.read_bytes()
        for _ in range(50):
            changed = bytearray(content)
            changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(
                DataError, match=f"{path.name}: expected the original MNIST file, md5"
            ):
                mnist(small_mnist)
        path.write_bytes(content)
    mnist(small_mnist)


def test_other_images_under_the_names_of_mnist_are_a_data_error(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    for half in HALVES:
        write_half(raw, half, *small_images())
    received = hashlib.md5((raw / "train-images-idx3-ubyte").read_bytes()).hexdigest()
    original = "6bbc9ace898e44ae57da46a324031adb"
    message = f"train-images-idx3-ubyte: .*md5 {original}, found md5 {received}"
    with pytest.raises(DataError, match=message):
        mnist(tmp_path)


def pretend_torchvision(monkeypatch, download):
    class MNIST:
        def __init__(self, root, download):
            fetch(Path(root))
            assert download

    fetch = download
    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(MNIST=MNIST)
    monkeypatch.setitem(sys.modules, "torchvision", module)


def test_download_fetches_what_is_missing_only_when_asked(small_mnist, monkeypatch, tmp_path):
    roots = []

    def download(root):
        roots.append(root)
        write_half(root / "MNIST" / "raw", "train", *small_images(20, seed=1))
        write_half(root / "MNIST" / "raw", "t10k", *small_images(10, seed=2))

    pretend_torchvision(monkeypatch, download)
    with pytest.raises(DataError, match="Fetch it once with download=True"):
        mnist(tmp_path / "new")
    assert not roots
    data = mnist(tmp_path / "new", download=True)
    assert torch.equal(data.x_train, mnist(small_mnist).x_train)
    assert len(roots) == 1
    # torchvision worked in a scratch folder, and nothing of it is left
    assert sorted((tmp_path / "new" / "MNIST" / "raw").iterdir()) == sorted(
        mnist_files(tmp_path / "new" / "MNIST" / "raw")
    )
    mnist(tmp_path / "new", download=True)
    assert len(roots) == 1


def test_a_failed_download_is_a_data_error_and_leaves_no_files(monkeypatch, tmp_path):
    def fail(root):
        write_half(root / "MNIST" / "raw", "train", *small_images())
        raise OSError("no route to host")

    pretend_torchvision(monkeypatch, fail)
    with pytest.raises(
        DataError, match="MNIST/raw: expected to download MNIST, found OSError: no route to host"
    ):
        mnist(tmp_path, download=True)
    assert not list((tmp_path / "MNIST" / "raw").iterdir())


def test_a_download_of_other_images_is_a_data_error(monkeypatch, tmp_path):
    def something_else(root):
        for half in HALVES:
            write_half(root / "MNIST" / "raw", half, *small_images())

    pretend_torchvision(monkeypatch, something_else)
    with pytest.raises(DataError, match="expected the original MNIST file"):
        mnist(tmp_path, download=True)


def test_a_torchvision_built_for_another_torch_is_explained(monkeypatch, tmp_path):
    (tmp_path / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        DataError, match=r"nms does not exist.*pip install --force-reinstall torch torchvision"
    ):
        mnist(tmp_path, download=True)


@needs_folder("MNIST/raw")
def test_real_mnist():
    data = mnist(REAL)
    assert data.x_train.shape == (60_000, 784)
    assert data.y_test.bincount().tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert data.y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.x_train.mean(0).abs().max() < 1e-5
    # The mean intensity that every MNIST tutorial divides by 255: 0.1307.
    assert data.x_mean.mean().item() / 255 == pytest.approx(0.1307, abs=5e-5)
    validate(*data.train, classes=data.classes)
