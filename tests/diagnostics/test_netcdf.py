"""Inference data of both versions of ArviZ are written to NetCDF files and read back."""

import warnings

import numpy as np
import pytest
import torch
import xarray

from pyro_bnn.diagnostics import save_netcdf, to_arviz
from tests.diagnostics.regression import DATA, exact

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz")


def test_a_file_is_read_back_and_not_overwritten_unasked(tmp_path):
    data = to_arviz(
        exact(2, 10, statistics={"diverging": torch.zeros(2, 10, dtype=torch.bool)}),
        DATA,
        prior_draws=3,
    )
    path = save_netcdf(data, tmp_path / "deep" / "a.nc")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"a\.nc: this file exists already; .*overwrite=True"):
        save_netcdf(data, path)
    assert path.read_bytes() == before
    assert save_netcdf(data, path, overwrite=True) == path
    assert [file.name for file in path.parent.iterdir()] == ["a.nc"]
    again = az.from_netcdf(str(path))
    assert again["posterior"].equals(data["posterior"])
    assert again["sample_stats"].equals(data["sample_stats"])
    assert again["posterior"].attrs["sampler"] == "unknown"


@pytest.mark.skipif(not hasattr(xarray, "DataTree"), reason="needs xarray with DataTree")
def test_the_data_tree_of_arviz_1_is_written_and_read_back(tmp_path):
    axes = ("chain", "draw")
    draws = np.random.default_rng(0).normal(size=(2, 5))
    posterior = xarray.Dataset({"0.weight": (axes, draws)}, attrs={"sampler": "hmc"})
    statistics = xarray.Dataset({"diverging": (axes, draws > 0)})
    tree = xarray.DataTree.from_dict({"posterior": posterior, "sample_stats": statistics})
    path = save_netcdf(tree, tmp_path / "tree.nc")
    with xarray.open_datatree(path, engine="h5netcdf") as restored:
        assert restored["posterior"].attrs["sampler"] == "hmc"
        assert np.array_equal(restored["posterior"]["0.weight"], draws)
        assert restored["sample_stats"]["diverging"].dtype == bool


def test_a_failed_write_leaves_no_file(tmp_path):
    class Broken:
        def to_netcdf(self, path, *, engine):
            open(path, "w").close()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_netcdf(Broken(), tmp_path / "a.nc")
    assert not list(tmp_path.iterdir())
