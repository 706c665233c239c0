"""The UCI sets: standardization, damaged and malformed files, names and splits."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_bnn.datasets import uci_regression
from pyro_bnn.datasets.uci_regression import UCI_SETS, uci
from pyro_bnn.runtime.validation import DataError
from tests.datasets.real_files import REAL, needs_folder


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


def test_uci_is_standardized_by_its_training_part(energy):
    arrays = table()
    for split in (0, 19, np.int64(7)):
        data = uci("energy", split)
        train, test = arrays["train"][split], arrays["test"][split]
        x_train, y_train = arrays["x"][train], arrays["y"][train]
        assert data.classes is None
        assert (
            data.x_train.dtype
            == data.y_train.dtype
            == data.x_test.dtype
            == data.y_test.dtype
            == torch.float32
        )
        assert data.x_train.shape == (36, 4)
        assert data.y_test.shape == (4,)
        std = x_train.std(0)
        std[2] = 1  # the constant column
        np.testing.assert_allclose(data.x_std, std, rtol=1e-6)
        np.testing.assert_allclose(
            data.x_test, (arrays["x"][test] - x_train.mean(0)) / std, atol=1e-5
        )
        np.testing.assert_allclose(data.x_train.mean(0), 0, atol=1e-6)
        assert data.y_std == pytest.approx(y_train.std(), rel=1e-12)
        np.testing.assert_allclose(
            data.y_test * data.y_std + data.y_mean, arrays["y"][test], rtol=1e-6
        )


def test_rounding_does_not_turn_a_constant_column_into_noise(energy):
    constant = torch.full((36,), 0.5601887513590341, dtype=torch.float64)
    assert constant.std(correction=0) > 0  # from the rounding of the mean
    np.savez(
        energy, **{**table(), "x": np.full((40, 1), constant[0]), "y": np.full(40, constant[0])}
    )
    data = uci("energy")
    assert data.x_std == data.y_std == 1
    assert max(data.x_train.abs().max(), data.y_test.abs().max()) < 1e-12


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
    "standardized x: expected finite": changed(
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
def test_a_malformed_table_is_a_data_error(energy, message):
    np.savez(energy, **BAD_TABLES[message]())
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        uci("energy")
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
            data = uci("energy")
        except DataError:
            errors += 1
            continue
        # A time stamp or an attribute in the zip directory may change; a number may not.
        assert kind in ("flip", "zero"), kind
        for field in ("x_train", "y_train", "x_test", "y_test", "x_mean", "x_std"):
            assert torch.equal(getattr(data, field), getattr(intact, field))
    assert errors > 350


def test_a_changed_dtype_in_an_array_header_is_a_data_error(energy):
    # stored without compression, "<f8" turned "<f4" reads as half the bytes, and zipfile alone
    # would not notice
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


def test_bytes_before_or_after_the_archive_are_a_data_error(energy):
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
def test_the_error_for_an_unknown_set_lists_all_and_suggests_the_nearest(energy, name, nearest):
    with pytest.raises(
        DataError,
        match=f"expected one of bostonHousing, .*, power-plant, found .*Did you mean '{nearest}'",
    ):
        uci(name)


@pytest.mark.parametrize("name", ["", "?", 3])
def test_a_name_unlike_all_sets_gets_the_list_alone(name):
    with pytest.raises(DataError, match=r"Choose one of these\."):
        uci(name)


@pytest.mark.parametrize("split", [-1, 20, 1.0, "0", None])
def test_a_split_outside_0_to_19_is_a_data_error(energy, split):
    with pytest.raises(DataError, match="split: expected an integer from 0 to 19"):
        uci("energy", split)


@needs_folder("uci")
@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [*zip(UCI_SETS, [506, 1030, 768, 8192, 11934, 9568], [13, 8, 8, 8, 16, 4], strict=True)],
)
def test_real_uci(name, rows, columns):
    for split in (0, 19):
        data = uci(name, split, REAL)
        assert data.x_train.shape[1] == columns
        assert len(data.x_train) + len(data.x_test) == rows
        assert len(data.x_test) == round(rows / 10)
        spread = data.x_train.double().std(0, correction=0)
        assert (
            (spread - 1).abs().lt(1e-4) | spread.lt(1e-6)
        ).all()  # constant columns stay at zero
        assert data.y_train.double().std(correction=0).item() == pytest.approx(1, abs=1e-4)
