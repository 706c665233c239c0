"""Tables made of rows, and the data of each network."""

import dataclasses
import json

import pytest

from pyro_bnn import DataError
from pyro_bnn.datasets import digits
from pyro_bnn.reproduction import tables
from pyro_bnn.reproduction.tables import Row
from tests.reproduction.digits import experiment


def row(seed, error, **facts):
    sizes = {"weights": 1000, "nonzero": 50, "dense": 200, "architecture": "1-2", "minutes": 3.0}
    return Row("m", seed, error, 1.0, **sizes, **facts)


def test_a_table_has_means_and_ranges_over_seeds(tmp_path):
    folder = tmp_path / "sparse-vd" / "lenet-5"
    folder.mkdir(parents=True)
    rows = {
        "0-m-seed-0": row(0, 1.0, file_bytes=40),
        "0-m-seed-1": row(1, 2.0, file_bytes=20),
        "1-n-seed-0": row(0, 3.0),
    }
    for name, content in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(dataclasses.asdict(content)))
    lines = tables.format_rows("sparse-vd", "lenet-5", tmp_path).splitlines()
    assert len(lines) == 4
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[1:5] == [
        "0, 1",
        "1.50 % (1.00 % to 2.00 %)",
        "20.0x (20.0x to 20.0x)",
        "5.0x (5.0x to 5.0x)",
    ]
    assert cells[6] == "30 (20 to 40) bytes, 150x (100x to 200x)"
    assert "3.00 %" in lines[3]


def test_an_unknown_recipe_is_an_error_that_names_the_available_ones(tmp_path):
    with pytest.raises(ValueError, match="sparse-vd --network lenet-5"):
        next(tables.reproduce("sparse", "lenet-5", experiment(tmp_path), tmp_path))


def test_a_table_without_rows_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no rows"):
        tables.format_rows("sparse-vd", "lenet-5", tmp_path)


def test_mnist_without_enough_images_is_refused(monkeypatch):
    monkeypatch.setattr(tables, "mnist", lambda directory: digits())
    with pytest.raises(ValueError, match=r"1437 .*5000|5000 .*1437"):
        tables.data_for("lenet-5", None)


def test_vgg_takes_the_recompressed_images_only_where_the_published_ones_are_missing(
    monkeypatch, tmp_path
):
    def damaged(directory):
        raise DataError("damaged")

    monkeypatch.setattr(tables, "cifar10", damaged)
    monkeypatch.setattr(tables, "cifar10_jpeg", lambda directory: "the copy")
    monkeypatch.setattr(tables, "hold_out", lambda data, num: (data, num))
    assert tables.data_for("vgg", str(tmp_path)) == ("the copy", 5000)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    with pytest.raises(DataError, match="damaged"):
        tables.data_for("vgg", str(tmp_path))
