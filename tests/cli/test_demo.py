"""``pyro-bnn demo`` and ``pyro-bnn compare``."""

import json

import pytest

from pyro_bnn.runs import comparison
from tests.cli.commands import assert_refused, assert_refused_at_once, call, succeed


def test_demo_writes_metrics_and_figures_into_the_next_free_folder(tmp_path):
    result = succeed("demo", "--epochs", 3)
    folder = tmp_path / "runs" / "demo"
    for name in ("loss_terms", "weights", "draws", "digits", "summary"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {
        *("data", "test_examples", "network", "mean_network", "draws"),
        *("uncertainty", "sparsity", "training"),
    }
    assert metrics["network"] == "pruned posterior mean"
    assert set(metrics["uncertainty"]) == {
        *("total", "aleatoric", "epistemic", "epistemic_right", "epistemic_wrong")
    }
    assert "50,200 weights left" in result.stderr
    succeed("evaluate", folder)
    assert_refused(call("demo", "--epochs", 3, "--out", folder), "holds a run")
    succeed("demo", "--epochs", 1)
    assert (tmp_path / "runs" / "demo-2" / "summary.png").exists()


@pytest.fixture
def brief(monkeypatch):
    """Make the comparison short: what it finds is tested beside ``compare``."""
    sizes = {"hidden": 3, "epochs": 5, "draws": 30, "nuts_draws": 25, "langevin_steps": 30}
    settings = comparison.ComparisonSettings
    monkeypatch.setattr(comparison, "ComparisonSettings", lambda seed: settings(seed=seed, **sizes))


def test_compare_writes_table_figure_and_draws(tmp_path, brief):
    result = succeed("compare", "--out", "new", "--no-progress")
    folder = tmp_path / "new"
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "comparison.json").read_text())
    names = [row["method"] for row in record["rows"]]
    assert names == ["mean field", "full rank", "SGLD", "NUTS", "HMC"]
    assert record["settings"]["seed"] == 0
    table = (folder / "comparison.md").read_text()
    for name in names:
        assert f"| {name} " in table
        assert (folder / f"{name.lower().replace(' ', '-')}.nc").stat().st_size > 1000
    assert "HMC (ref)" in result.stdout
    assert "HMC ...\n" in result.stderr


def test_compare_refuses_a_folder_that_holds_something(tmp_path, brief):
    folder = tmp_path / "existing"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    refused = call("compare", "--out", "existing")
    assert_refused_at_once(refused, "existing: holds something already", "--out")
    assert_refused_at_once(call("compare", "--out", folder / "mine.txt"), "mine.txt", "--out")
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
