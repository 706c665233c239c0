"""``pyro-bnn compare``: its files, and the methods that it runs."""

import json

import pytest

from pyro_bnn import Posterior, diagnostics
from pyro_bnn.guides import MeanField
from pyro_bnn.runs import comparison
from tests.cli.commands import assert_refused_at_once, call, succeed

SMALL = {"hidden": 3, "epochs": 5, "draws": 30, "nuts_draws": 25, "langevin_steps": 30}
NAMES = ["mean field", "full rank", "SGLD", "NUTS", "HMC"]


@pytest.fixture
def brief(monkeypatch):
    """Make the comparison short; its numbers are tested beside ``compare``."""
    settings = comparison.ComparisonSettings
    monkeypatch.setattr(comparison, "ComparisonSettings", lambda seed: settings(seed=seed, **SMALL))


@pytest.fixture
def without_inference(monkeypatch):
    """Let every method return a posterior that was not fitted, and compare few draws of it."""

    def methods(problem, settings, progress):
        guide = MeanField(problem.model, *problem.data)
        return dict.fromkeys(NAMES, lambda: Posterior.from_guide(problem.model, guide))

    monkeypatch.setattr(comparison, "inference_methods", methods)
    monkeypatch.setattr(diagnostics.comparison, "VARIATIONAL_DRAWS", 50)


def require_files(folder, result):
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "comparison.json").read_text())
    assert [row["method"] for row in record["rows"]] == NAMES
    assert record["settings"]["seed"] == 0
    table = (folder / "comparison.md").read_text()
    for name in NAMES:
        assert f"| {name} " in table
        assert (folder / f"{name.lower().replace(' ', '-')}.nc").stat().st_size > 1000
    assert "HMC (ref)" in result.stdout
    assert "HMC ...\n" in result.stderr


def test_compare_writes_table_figure_and_draws(tmp_path, brief, without_inference):
    result = succeed("compare", "--out", "new", "--no-progress")
    require_files(tmp_path / "new", result)


@pytest.mark.slow
def test_compare_runs_every_method(tmp_path, brief):
    result = succeed("compare", "--out", "new", "--no-progress")
    require_files(tmp_path / "new", result)


def test_every_method_runs_on_the_problem_of_the_comparison(traced_samplers, monkeypatch):
    fit = comparison.fit
    monkeypatch.setattr(
        comparison, "fit", lambda *args, **options: fit(*args, **options | {"compile": False})
    )
    settings = comparison.ComparisonSettings(**SMALL)
    problem = comparison.sine_with_gap(settings)
    methods = comparison.inference_methods(problem, settings, progress=False)
    assert list(methods) == NAMES
    for name in ("mean field", "full rank"):
        assert methods[name]().sample(2)["w1"].shape == (2, 1, 3)


def test_compare_refuses_a_folder_that_holds_something(tmp_path, brief):
    folder = tmp_path / "existing"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    refused = call("compare", "--out", "existing")
    assert_refused_at_once(refused, "existing: holds something already", "--out")
    assert_refused_at_once(call("compare", "--out", folder / "mine.txt"), "mine.txt", "--out")
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
