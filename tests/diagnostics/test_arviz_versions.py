"""ArviZ 0.x and 1.x give the same groups and statistics."""

import importlib.metadata
import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyro_bnn.diagnostics import arviz_versions, save_netcdf, summary, to_arviz
from tests.diagnostics.networks import CLASSES, network, variational
from tests.diagnostics.regression import DATA, exact, leave_one_out_exactly


def test_ratios_without_a_tail_have_shape_0_and_tied_ones_a_large_shape():
    weights, shapes = arviz_versions.pareto_smoothed(np.full((2, 50), 3.0))
    assert np.ptp(weights) == 0
    assert (shapes == 0).all()
    tied = np.where(np.arange(100) < 60, 1.0, 0.0) + 1e-3 * (np.arange(100) > 60)
    assert (
        arviz_versions.pareto_smoothed(tied[None])[1][0] > 0.7
    )  # not a good one: it cannot be fitted


GROUPS = {
    *("posterior", "sample_stats", "log_likelihood", "posterior_predictive"),
    *("prior", "prior_predictive", "observed_data"),
}


@pytest.mark.skipif(importlib.util.find_spec("arviz_base") is None, reason="needs arviz_base")
def test_arviz_1_gets_the_same_groups_and_statistics(monkeypatch, tmp_path):
    import arviz_base
    import arviz_stats

    posterior = exact(4, 1000, statistics={"diverging": torch.zeros(4, 1000, dtype=torch.bool)})
    monkeypatch.setattr(arviz_versions, "is_version_1", lambda: True)
    data = to_arviz(posterior, DATA, prior_draws=5)
    assert type(data).__name__ == "DataTree"
    assert set(data.children) == GROUPS
    assert data["posterior"].attrs["sampler"] == "unknown"
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "example")
    assert float(arviz_stats.loo(data).elpd) == pytest.approx(
        float(leave_one_out_exactly().sum()), abs=0.1
    )
    assert "r_hat" in summary(data)
    independent = to_arviz(variational(network()), CLASSES, draws=50, prior_draws=0)
    assert "r_hat" not in summary(independent)
    path = save_netcdf(data, tmp_path / "b.nc")
    again = arviz_base.from_netcdf(str(path)) if hasattr(arviz_base, "from_netcdf") else None
    assert again is None or again["posterior"]["bias"].equals(data["posterior"]["bias"])
    values = np.random.default_rng(0).normal(size=(4, 200, 2))
    new = [
        f(values)
        for f in (arviz_versions.rank_rhat, arviz_versions.bulk_ess, arviz_versions.mean_ess)
    ]
    ratios = 0.5 * np.random.default_rng(0).normal(size=(2, 2000))
    smoothed = arviz_versions.pareto_smoothed(ratios)
    monkeypatch.setattr(arviz_versions, "is_version_1", lambda: False)
    old = [
        f(values)
        for f in (arviz_versions.rank_rhat, arviz_versions.bulk_ess, arviz_versions.mean_ess)
    ]
    assert np.allclose(new, old, rtol=1e-6)
    theirs = arviz_versions.pareto_smoothed(ratios)
    assert np.allclose(smoothed[1], theirs[1], atol=0.05)
    assert np.allclose(np.exp(smoothed[0]), np.exp(theirs[0]), atol=1e-4)


@pytest.mark.parametrize(("version", "expected"), [("0.23.4", False), ("1.0.0", True)])
def test_the_interface_follows_the_version(monkeypatch, version, expected):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert arviz_versions.is_version_1() is expected


def test_the_parts_of_arviz_1_alone_are_version_1(monkeypatch):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert arviz_versions.is_version_1()


def test_arviz_1_is_called_with_groups_axes_and_attributes(monkeypatch):
    """With a stand-in for arviz_base, whose from_dict takes groups and returns a DataTree."""
    calls = []
    stand_in = SimpleNamespace(from_dict=lambda *args, **options: calls.append((args, options)))
    monkeypatch.setattr(arviz_versions, "is_version_1", lambda: True)
    monkeypatch.setitem(sys.modules, "arviz_base", stand_in)
    values = np.zeros((2, 3, 4))
    arviz_versions.to_inference_data(
        {"posterior": {"w": values}}, {"w": ("axis",)}, {}, {"sampler": "svi"}
    )
    ((groups,), options) = calls[0]
    assert groups["posterior"]["w"] is values
    assert options["dims"] == {"w": ["axis"]}
    assert options["attrs"] == {"/": {"sampler": "svi"}, "posterior": {"sampler": "svi"}}
