import hashlib
import os
import random
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_bnn.datasets import Dataset, digits, mnist_images, uci_regression
from pyro_bnn.datasets.mnist_images import mnist, not_mnist
from pyro_bnn.datasets.uci_regression import UCI_SETS, uci
from pyro_bnn.runtime.validation import DataError, validate

HALVES = ("train", "t10k")
REAL = Path(
    os.environ.get("PYRO_BNN_DATA") or "data"
).resolve()  # before any test changes the variable


def needs(folder):
    return pytest.mark.skipif(
        not (REAL / folder).is_dir(), reason=f"no {folder} in PYRO_BNN_DATA or ./data"
    )


@pytest.fixture(autouse=True)
def no_data_directory(monkeypatch, tmp_path):
    """No test reads a data directory that it does not name."""
    monkeypatch.delenv("PYRO_BNN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


# --- digits


def test_digits_are_a_stratified_partition_of_the_bundled_set():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    got = digits()
    assert got.x_train.shape == (1437, 64)
    assert got.x_test.shape == (360, 64)
    assert got.x_train.dtype == got.x_test.dtype == torch.float32
    assert got.y_train.dtype == got.y_test.dtype == torch.int64
    assert got.classes == 10

    rows = np.column_stack(
        [torch.cat([got.x_train, got.x_test]).numpy() * 16, torch.cat([got.y_train, got.y_test])]
    )
    expected = np.column_stack([pixels, labels])
    assert np.array_equal(np.unique(rows, axis=0), np.unique(expected, axis=0))
    assert len(rows) == len(expected) == 1797
    # Stratified: each class gives a fifth of its examples to the test set, up to rounding.
    assert (
        got.y_test.bincount() - torch.from_numpy(labels).bincount() * 360 / 1797
    ).abs().max() < 1


def test_digits_depend_on_the_seed_alone():
    state = np.random.get_state()[1].copy()
    first, again, other = digits(seed=3), digits(seed=3), digits(seed=4)
    assert torch.equal(first.x_train, again.x_train)
    assert torch.equal(first.y_test, again.y_test)
    assert not torch.equal(first.y_test, other.y_test)
    assert np.array_equal(state, np.random.get_state()[1])


@pytest.mark.parametrize("seed", [-1, 2**32, None, 0.5, "0"])
def test_digits_refuse_a_seed_that_would_not_fix_the_split(seed):
    with pytest.raises(DataError, match="seed: expected an integer from 0"):
        digits(seed=seed)


def test_the_default_split_of_digits_stays_what_it_is():
    got = digits()
    assert (
        hashlib.sha256(got.y_test.numpy().astype("u1").tobytes()).hexdigest()[:16]
        == "70ee2850bb25b543"
    )


# --- IDX files, through not_mnist, which has no checksum to hide behind


def idx(array):
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        + array.astype("u1").tobytes()
    )


def small_images(n=20, seed=0):
    random_numbers = np.random.default_rng(seed)
    return random_numbers.integers(0, 256, (n, 28, 28)), np.arange(n) % 10


def write_half(raw, half, images, labels):
    raw.mkdir(parents=True, exist_ok=True)
    (raw / f"{half}-images-idx3-ubyte").write_bytes(idx(images))
    (raw / f"{half}-labels-idx1-ubyte").write_bytes(idx(labels))


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


def test_idx_round_trip(letters):
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
    """Every cut near the header and some later ones, extensions, and every bit of the header flipped."""
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
    for what, corrupted in corruptions(content, header):
        path.write_bytes(corrupted)
        try:
            not_mnist(letters.directory)
        except DataError:
            count += 1
        else:
            pytest.fail(f"{field} {what}: accepted")
    assert count > 110
    path.write_bytes(content)
    not_mnist(letters.directory)  # the intact file was fine all along


@pytest.mark.parametrize("place", [0, 7, 19])
@pytest.mark.parametrize("label", [10, 128, 255])
def test_labels_beyond_nine_are_refused(letters, place, label):
    labels = letters.labels.numpy().copy()
    labels[place] = label
    letters.labels_path.write_bytes(idx(labels))
    with pytest.raises(
        DataError,
        match=f"labels-idx1-ubyte: expected labels from 0 to 9, found {label} at index {place}",
    ):
        not_mnist(letters.directory)


def test_as_many_labels_as_images(letters):
    letters.labels_path.write_bytes(idx(letters.labels.numpy()[:19]))
    with pytest.raises(DataError, match="expected 20 labels, one for each image, found 19"):
        not_mnist(letters.directory)


@pytest.mark.parametrize("shape", [(20, 784, 1), (20, 27, 28), (0, 28, 28), (20, 0, 28)])
def test_images_are_28_by_28_and_there_are_some(letters, shape):
    letters.images_path.write_bytes(idx(np.zeros(shape)))
    with pytest.raises(DataError, match="images-idx3-ubyte: expected"):
        not_mnist(letters.directory)


def test_a_header_that_announces_the_world_costs_no_memory(letters):
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


def test_a_name_that_no_file_can_have_is_a_data_error():
    with pytest.raises(DataError, match="expected a readable file"):
        not_mnist("a\0b")


# --- the data directory


def test_the_argument_precedes_the_environment_which_precedes_the_default(tmp_path, monkeypatch):
    for folder, label in (("argument", 1), ("environment", 2), ("data", 3)):
        write_half(
            tmp_path / folder / "notMNIST" / "raw", "t10k", np.zeros((1, 28, 28)), np.array([label])
        )
    assert not_mnist()[1].item() == 3
    monkeypatch.setenv("PYRO_BNN_DATA", "")  # as good as unset
    assert not_mnist()[1].item() == 3
    monkeypatch.setenv("PYRO_BNN_DATA", str(tmp_path / "environment"))
    assert not_mnist()[1].item() == 2
    assert not_mnist("argument")[1].item() == 1


@pytest.mark.parametrize(
    "load", [mnist, not_mnist, lambda directory=None: uci("energy", directory=directory)]
)
def test_a_missing_file_says_where_it_was_sought_and_how_to_get_it(load, monkeypatch):
    with pytest.raises(
        DataError,
        match=r"found none\. Searched in data \(the default, as PYRO_BNN_DATA is not set\)",
    ):
        load()
    with pytest.raises(
        DataError,
        match=r"Searched in here \(as asked for\).* or name a directory that holds .*--data-dir DIR",
    ):
        load("here")
    monkeypatch.setenv("PYRO_BNN_DATA", "there")
    with pytest.raises(DataError, match=r"Searched in there \(from PYRO_BNN_DATA\)"):
        load()


def test_missing_mnist_names_both_ways_to_download():
    with pytest.raises(DataError, match=r"download=True \(command line: --download\)"):
        mnist()


# --- MNIST


def mnist_files(raw):
    return [
        raw / f"{half}-{stem}-ubyte" for half in HALVES for stem in ("images-idx3", "labels-idx1")
    ]


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


def test_mnist_is_centred_by_the_training_images(small_mnist):
    train, test = small_images(20, seed=1)[0] / 256, small_images(10, seed=2)[0] / 256
    centred, plain = mnist(small_mnist, flatten=False), mnist(small_mnist, center=False)
    assert centred.x_train.shape == (20, 1, 28, 28)
    assert plain.x_train.shape == (20, 784)
    for got, expected in (
        (plain.x_train, train),
        (plain.x_test, test),
        (centred.x_train, train - train.mean(0)),
        (centred.x_test, test - train.mean(0)),
    ):
        torch.testing.assert_close(
            got.double().reshape(-1, 28, 28), torch.from_numpy(expected), atol=1e-7, rtol=0
        )
    assert centred.x_train.dtype == torch.float32
    assert centred.y_test.tolist() == list(range(10))
    for got in (centred, plain):
        pixels = got.x_test * got.x_std + got.x_mean
        torch.testing.assert_close(pixels.reshape(10, 28, 28), torch.from_numpy(test * 256).float())


def test_mnist_needs_no_torchvision_to_be_read(small_mnist, monkeypatch):
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


def test_other_images_are_not_taken_for_mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    for half in HALVES:
        write_half(raw, half, *small_images())
    found = hashlib.md5((raw / "train-images-idx3-ubyte").read_bytes()).hexdigest()
    with pytest.raises(
        DataError,
        match=f"train-images-idx3-ubyte: .*md5 6bbc9ace898e44ae57da46a324031adb, found md5 {found}",
    ):
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
    with pytest.raises(DataError):
        mnist(tmp_path / "new")
    assert not roots
    got = mnist(tmp_path / "new", download=True)
    assert torch.equal(got.x_train, mnist(small_mnist).x_train)
    assert len(roots) == 1
    # torchvision worked in a scratch folder, and nothing of it is left
    assert sorted((tmp_path / "new" / "MNIST" / "raw").iterdir()) == sorted(
        mnist_files(tmp_path / "new" / "MNIST" / "raw")
    )
    mnist(tmp_path / "new", download=True)
    assert len(roots) == 1


def test_a_failed_download_is_a_data_error_and_leaves_nothing(monkeypatch, tmp_path):
    def fail(root):
        write_half(root / "MNIST" / "raw", "train", *small_images())
        raise OSError("no route to host")

    pretend_torchvision(monkeypatch, fail)
    with pytest.raises(
        DataError, match="MNIST/raw: expected to download MNIST, found OSError: no route to host"
    ):
        mnist(tmp_path, download=True)
    assert not list((tmp_path / "MNIST" / "raw").iterdir())


def test_a_download_of_something_else_is_a_data_error(monkeypatch, tmp_path):
    def something_else(root):
        for half in HALVES:
            write_half(root / "MNIST" / "raw", half, *small_images())

    pretend_torchvision(monkeypatch, something_else)
    with pytest.raises(DataError, match="expected the original MNIST file"):
        mnist(tmp_path, download=True)


def test_a_torchvision_that_does_not_fit_torch_is_explained(monkeypatch, tmp_path):
    (tmp_path / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        DataError, match=r"nms does not exist.*pip install --force-reinstall torch torchvision"
    ):
        mnist(tmp_path, download=True)


# --- UCI


def table(seed=0):
    """Forty rows of four columns, the third of which is constant, in twenty splits of 36 and 4."""
    random_numbers = np.random.default_rng(seed)
    x = random_numbers.normal(size=(40, 4)) * [1, 10, 0, 1000] + [0, 5, 0.998, -7]
    rows = np.stack([random_numbers.permutation(40) for _ in range(20)]).astype(np.int32)
    return {
        "x": x,
        "y": random_numbers.normal(size=40) * 3 + 50,
        "train": rows[:, :36],
        "test": rows[:, 36:],
    }


@pytest.fixture
def energy(tmp_path):
    (tmp_path / "data" / "uci").mkdir(parents=True)
    path = tmp_path / "data" / "uci" / "energy.npz"
    np.savez(path, **table())
    return path


def test_uci_is_standardised_by_its_training_part(energy):
    arrays = table()
    for split in (0, 19, np.int64(7)):
        got = uci("energy", split)
        train, test = arrays["train"][split], arrays["test"][split]
        x_train, y_train = arrays["x"][train], arrays["y"][train]
        assert got.classes is None
        assert (
            got.x_train.dtype
            == got.y_train.dtype
            == got.x_test.dtype
            == got.y_test.dtype
            == torch.float32
        )
        assert got.x_train.shape == (36, 4)
        assert got.y_test.shape == (4,)
        std = x_train.std(0)
        std[2] = 1  # the constant column
        np.testing.assert_allclose(got.x_std, std, rtol=1e-6)
        np.testing.assert_allclose(
            got.x_test, (arrays["x"][test] - x_train.mean(0)) / std, atol=1e-5
        )
        np.testing.assert_allclose(got.x_train.mean(0), 0, atol=1e-6)
        assert got.y_std == pytest.approx(y_train.std(), rel=1e-12)
        np.testing.assert_allclose(
            got.y_test * got.y_std + got.y_mean, arrays["y"][test], rtol=1e-6
        )


def test_rounding_does_not_turn_a_constant_column_into_noise(energy):
    constant = torch.full((36,), 0.5601887513590341, dtype=torch.float64)
    assert constant.std(correction=0) > 0  # what the rounding of the mean leaves
    np.savez(
        energy, **{**table(), "x": np.full((40, 1), constant[0]), "y": np.full(40, constant[0])}
    )
    got = uci("energy")
    assert got.x_std == got.y_std == 1
    assert max(got.x_train.abs().max(), got.y_test.abs().max()) < 1e-12


def changed(**changes):
    """Return a function that applies `changes` (functions of an array) to the table."""
    return lambda: {
        **table(),
        **{field: change(table()[field]) for field, change in changes.items()},
    }


def put(array, place, value):
    array[place] = value
    return array


BAD_TABLES = {
    "x: expected finite numbers, found nan at index [3, 1] (1 of 160": changed(
        x=lambda x: put(x, (3, 1), np.nan)
    ),
    "x: expected finite numbers, found -inf": changed(x=lambda x: put(x, (0, 0), -np.inf)),
    "y: expected finite numbers, found nan at index [39]": changed(y=lambda y: put(y, 39, np.nan)),
    "mean of x: expected finite numbers, found inf at index [0]": changed(
        x=lambda x: put(x, (slice(20), 0), 1e308)
    ),
    "deviation of x: expected finite numbers, found inf": changed(
        x=lambda x: put(x, (slice(None), 0), [1e39, -1e39] * 20)
    ),
    "mean of y: expected finite numbers, found inf": changed(y=lambda y: y * 1e200),
    "standardised x: expected finite": changed(
        x=lambda x: put(x, (table()["test"][0, 0], 2), 1e39)
    ),
    "x: expected real numbers along 2 axes": changed(x=lambda x: x[:, 0]),
    "x: expected real numbers along 2 axes, 40 along the first, found <U": changed(
        x=lambda x: x.astype("U")
    ),
    "x: expected real numbers along 2 axes, 40 along the first, found comp": changed(
        x=lambda x: x.astype(complex)
    ),
    "x: expected real numbers along 2 axes, 0 along the first": changed(x=lambda x: x.sum()),
    "y: expected real numbers along 1 axes, 39 along the first": changed(x=lambda x: x[:39]),
    "y: expected real numbers along 1 axes, 40 along the first": changed(y=lambda y: y[:, None]),
    "train: expected integers along 2 axes, 20 along": changed(train=lambda rows: rows[:19]),
    "train: expected integers": changed(train=lambda rows: rows.astype(float)),
    "test: expected integers along 2 axes": changed(test=lambda rows: rows[:, :0]),
    "rows from 0 to 39, found -1 to 39": changed(train=lambda rows: put(rows, (0, 0), -1)),
    "rows from 0 to 39, found 0 to 40": changed(test=lambda rows: put(rows, (0, 0), 40)),
    "disjoint rows, found row": changed(
        test=lambda rows: put(rows, (0, 0), table()["train"][0, 5])
    ),
    "more than once in split 0": changed(train=lambda rows: put(rows, (0, 0), rows[0, 1])),
    "no array test": lambda: {field: array for field, array in table().items() if field != "test"},
}


@pytest.mark.parametrize("message", BAD_TABLES)
def test_a_bad_table_is_a_data_error(energy, message):
    np.savez(energy, **BAD_TABLES[message]())
    with pytest.raises(DataError) as caught:
        uci("energy")
    assert message in str(caught.value)
    assert "energy.npz" in str(caught.value)


def mutations(content, count):
    chance = random.Random(0)
    for _ in range(count):
        place, kind = (
            chance.randrange(len(content)),
            chance.choice(["flip", "cut", "zero", "insert", "delete"]),
        )
        mutated = bytearray(content)
        if kind == "flip":
            mutated[place] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del mutated[place:]
        elif kind == "zero":
            mutated[place : place + 16] = bytes(len(mutated[place : place + 16]))
        elif kind == "insert":
            mutated[place:place] = chance.randbytes(3)
        else:
            del mutated[place : place + 5]
        yield kind, bytes(mutated)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_a_data_error_or_harmless(energy, save):
    save(energy, **table())
    content, intact, errors = energy.read_bytes(), uci("energy"), 0
    for kind, mutated in mutations(content, 400):
        energy.write_bytes(mutated)
        try:
            got = uci("energy")
        except DataError:
            errors += 1
            continue
        # A time stamp or an attribute in the zip directory may change; a number may not.
        assert kind in ("flip", "zero"), kind
        for field in ("x_train", "y_train", "x_test", "y_test", "x_mean", "x_std"):
            assert torch.equal(getattr(got, field), getattr(intact, field))
    assert errors > 350


def test_a_bit_flipped_in_an_array_header_is_found(energy):
    # Stored without compression, "<f8" turned "<f4" reads as half the bytes, and zipfile alone would not notice.
    content = energy.read_bytes()
    assert b"'<f8'" in content
    energy.write_bytes(content.replace(b"'<f8'", b"'<f4'", 1))
    with pytest.raises(DataError, match="checksum"):
        uci("energy")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content + b"\0",
        lambda content: b"\0" + content,
        lambda content: content + content,
        lambda content: b"\x80\x04N.",  # a pickle
        lambda content: b"\x93NUMPY\x01\x00" + bytes(100),
        lambda content: b"PK\3\4" + bytes(50) + b"PK\5\6" + bytes(18),
    ],
)
def test_what_is_not_an_npz_is_a_data_error(energy, change):
    energy.write_bytes(change(energy.read_bytes()))
    with pytest.raises(
        DataError, match=r"energy\.npz: expected an npz file with arrays x, y, train, test"
    ):
        uci("energy")


def test_bytes_around_the_archive_are_named_as_such(energy):
    content = energy.read_bytes()
    for wrapped in (b"\0" + content, content + b"\0"):
        energy.write_bytes(wrapped)
        with pytest.raises(DataError, match="found ValueError: not one whole zip archive"):
            uci("energy")


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


def test_nothing_is_unpickled(energy, tmp_path):
    np.savez(energy, **{**table(), "x": np.array([[Trap()]], dtype=object)})
    with pytest.raises(DataError, match="nothing pickled"):
        uci("energy")
    assert not (tmp_path / "sprung").exists()


def test_a_zip_bomb_is_not_unpacked(energy, monkeypatch):
    np.savez_compressed(energy, **table(), z=np.zeros(1_000_000))
    assert uci("energy").x_train.shape == (36, 4)
    monkeypatch.setattr(uci_regression, "LARGEST_FILE", 1_000_000)
    assert energy.stat().st_size < 1_000_000
    with pytest.raises(DataError, match="more than 1000000 bytes once unpacked"):
        uci("energy")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("boston", "bostonHousing"),
        ("Energy", "energy"),
        ("power_plant", "power-plant"),
        ("../uci/energy", "energy"),
    ],
)
def test_an_unknown_set_lists_the_known_ones_and_the_nearest(energy, name, nearest):
    with pytest.raises(
        DataError,
        match=f"expected one of bostonHousing, .*, power-plant, found .*Did you mean '{nearest}'",
    ):
        uci(name)


@pytest.mark.parametrize("name", ["", "?", 3])
def test_a_name_like_none_gets_the_list_alone(name):
    with pytest.raises(DataError, match=r"Choose one of these\."):
        uci(name)


@pytest.mark.parametrize("split", [-1, 20, 1.0, "0", None])
def test_splits_go_from_0_to_19(energy, split):
    with pytest.raises(DataError, match="split: expected an integer from 0 to 19"):
        uci("energy", split)


# --- validate


def test_good_data_pass():
    validate(torch.zeros(3, 2), torch.zeros(3))
    validate(torch.zeros(3, 2), torch.zeros(3, 4))
    validate(torch.tensor([3e38, 3e38]), torch.zeros(2))  # the sum overflows, the values are finite
    validate(torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 2, 1]), classes=3)
    validate(torch.zeros(2, 2), torch.tensor([0, 255], dtype=torch.uint8), classes=300)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_values_that_are_not_finite_are_counted_and_placed(bad, dtype):
    x, y = torch.zeros(5, 3, dtype=dtype), torch.zeros(5, dtype=dtype)
    x[2, 1] = x[4, 0] = bad
    with pytest.raises(
        DataError, match=rf"x: .*, found {bad} at index \[2, 1\] \(2 of 15 are not\)"
    ):
        validate(x, y)
    y[3] = bad
    with pytest.raises(DataError, match=rf"y: .*, found {bad} at index \[3\] \(1 of 5 are not\)"):
        validate(torch.zeros(5, 3), y)


def test_infinities_do_not_cancel():
    with pytest.raises(DataError, match="2 of 2"):
        validate(torch.tensor([float("inf"), -float("inf")]), torch.zeros(2))


@pytest.mark.parametrize(
    ("x", "y", "classes", "message"),
    [
        (np.zeros((2, 2)), torch.zeros(2), None, "x: expected a tensor, found ndarray"),
        (torch.zeros(2, 2), [0, 1], None, "y: expected a tensor, found list"),
        (torch.zeros(0, 2), torch.zeros(0), None, "x: expected at least one example"),
        (torch.zeros(2, 0), torch.zeros(2), None, "x: expected at least one example"),
        (torch.tensor(1.0), torch.zeros(1), None, "x: expected at least one example"),
        (torch.zeros(1), torch.tensor(1.0), None, "y: expected at least one example"),
        (torch.zeros(3, 2), torch.zeros(2), None, "x and y: expected equal lengths, found 3 and 2"),
        (
            torch.zeros(2, 2),
            torch.zeros(2),
            3,
            "y: expected integer labels of 3 classes, found torch.float32",
        ),
        (torch.zeros(2, 2), torch.zeros(2, dtype=torch.bool), 2, "found torch.bool"),
        (torch.zeros(2, 2), torch.zeros(2, dtype=torch.cfloat), 2, "found torch.complex64"),
        (
            torch.zeros(2, 2),
            torch.zeros(2, 1).long(),
            3,
            r"y: expected labels of shape \(2,\), found shape \(2, 1\)",
        ),
        (
            torch.zeros(2, 2),
            torch.tensor([0, 3]),
            3,
            "y: expected labels from 0 to 2, found 3 at index 1",
        ),
        (torch.zeros(3, 2), torch.tensor([0, -1, 9]), 3, "found -1 at index 1"),
        (torch.zeros(1, 2), torch.tensor([44], dtype=torch.uint8), 10, "found 44 at index 0"),
    ],
)
def test_bad_data_are_refused(x, y, classes, message):
    with pytest.raises(DataError, match=message):
        validate(x, y, classes)


# --- the real files, where they are


@needs("MNIST/raw")
def test_real_mnist():
    got = mnist(REAL)
    assert got.x_train.shape == (60_000, 784)
    assert got.y_test.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert got.y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert got.x_train.mean(0).abs().max() < 1e-5
    # The mean intensity that every MNIST tutorial divides by 255: 0.1307.
    assert got.x_mean.mean().item() / 255 == pytest.approx(0.1307, abs=5e-5)
    validate(*got.train, classes=got.classes)


@needs("notMNIST/raw")
def test_real_not_mnist():
    x, y = not_mnist(REAL)
    assert x.shape == (10_000, 784)
    assert y.bincount().tolist() == [1000] * 10
    assert (x.min(), x.max()) == (0, 255 / 256)


@needs("uci")
@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [*zip(UCI_SETS, [506, 1030, 768, 8192, 11934, 9568], [13, 8, 8, 8, 16, 4], strict=True)],
)
def test_real_uci(name, rows, columns):
    for split in (0, 19):
        got = uci(name, split, REAL)
        assert got.x_train.shape[1] == columns
        assert len(got.x_train) + len(got.x_test) == rows
        assert len(got.x_test) == round(rows / 10)
        spread = got.x_train.double().std(0, correction=0)
        assert (
            (spread - 1).abs().lt(1e-4) | spread.lt(1e-6)
        ).all()  # constant columns stay at zero
        assert got.y_train.double().std(correction=0).item() == pytest.approx(1, abs=1e-4)
