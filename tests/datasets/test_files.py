"""Where data files are searched, and what errors say when they are missing."""

import numpy as np
import pytest

from pyro_bnn.datasets.mnist_images import mnist, not_mnist
from pyro_bnn.datasets.uci_regression import uci
from pyro_bnn.runtime.validation import DataError
from tests.datasets.idx_files import write_half


def test_a_name_that_no_file_can_have_is_a_data_error():
    with pytest.raises(DataError, match="expected a readable file"):
        not_mnist("a\0b")


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
def test_the_error_for_a_missing_file_says_where_it_was_searched_and_how_to_get_it(
    load, monkeypatch
):
    with pytest.raises(
        DataError,
        match=r"found none\. Searched in data \(the default, as PYRO_BNN_DATA is not set\)",
    ):
        load()
    message = r"Searched in here \(as asked for\).* or name a directory that holds .*--data-dir DIR"
    with pytest.raises(DataError, match=message):
        load("here")
    monkeypatch.setenv("PYRO_BNN_DATA", "there")
    with pytest.raises(DataError, match=r"Searched in there \(from PYRO_BNN_DATA\)"):
        load()


def test_the_error_for_missing_mnist_names_both_ways_to_download():
    with pytest.raises(DataError, match=r"download=True \(command line: --download\)"):
        mnist()
