import json
import shutil
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from pyro_bnn import runs
from pyro_bnn.cli.entry import app
from pyro_bnn.runs import comparison as comparison_demo
from pyro_bnn.runs.registry import (
    data_by_name,
    guides_by_name,
    known,
    models_by_name,
    priors_by_name,
)

SMALL = [
    "--hidden",
    "8",
    "--prior",
    "normal",
    "--guide",
    "mean-field",
    "--kl-warmup",
    "0:1",
    "--draws",
    "5",
]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """No test writes into the checkout or reads a data directory that it does not name."""
    monkeypatch.delenv("PYRO_BNN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def fit(out, *more, epochs=2):
    return call("fit", "mlp", *SMALL, "--epochs", epochs, "--out", out, *more)


def refused(result, *expected, code=2):
    """The answer is one line on stderr that has these words in it."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("pyro-bnn: ")
    assert result.stderr.count("\n") == 1
    for words in expected:
        assert str(words) in result.stderr


def results(folder):
    """What a run found, its times left out."""
    metrics = json.loads((folder / "metrics.json").read_text())
    training = metrics.pop("training")
    return (
        metrics,
        training["epochs"],
        json.loads((folder / "posterior.json").read_text())["sha256"],
    )


# --- help and lists


@pytest.mark.parametrize("command", ["fit", "demo", "compare", "evaluate", "list"])
def test_every_command_explains_itself(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"pyro-bnn {command}" in result.stdout or command == "list"
    assert "Traceback" not in result.output


def test_help_names_all_commands():
    result = call("--help")
    assert result.exit_code == 0
    assert all(
        f"\n  {command} " in result.stdout
        for command in ("fit", "demo", "compare", "evaluate", "list")
    )


def test_the_command_line_itself_imports_nothing_heavy():
    # in a package of that name that is empty otherwise, so that only the imports of cli.py count
    code = """
import pathlib, sys, types
package = types.ModuleType("pyro_bnn")
package.__path__ = [str(pathlib.Path(sys.argv[1]).parent)]
sys.modules["pyro_bnn"] = package
import pyro_bnn.cli.entry
print([name for name in ("torch", "pyro", "matplotlib", "sklearn", "numpy") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, runs.__file__], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_list_shows_every_name_with_a_line():
    lines = call("list").stdout.splitlines()
    for names in (models_by_name(), priors_by_name(), guides_by_name(), data_by_name()):
        for name in names:
            line = next(line for line in lines if line.startswith(f"  {name} "))
            assert len(line.split(maxsplit=1)[1]) > 20
            assert ":math:" not in line
            assert "\\" not in line


# --- mistakes


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["fit", "lenet-300"], "lenet-300-100"),
        (["fit", "mlp", "--prior", "log-unifrom"], "log-uniform"),
        (["fit", "mlp", "--guide", "sparse-dv"], "sparse-vd"),
        (["fit", "mlp", "--data", "boston"], "bostonHousing"),
        (["evaluate", "nowhere", "--ood", "notmnst"], "notmnist"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(words, near, tmp_path):
    refused(
        call(*words, *(["--out", "run"] if words[0] == "fit" else [])),
        f"did you mean {near}?",
        "There are",
    )
    assert list(tmp_path.iterdir()) == []


def test_names_do_not_mind_their_case():
    assert known("data set", "BOSTONhousing", ["digits", "bostonHousing"]) == "bostonHousing"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "expected --out DIR"),
        (["--out", "run"], "expected a MODEL"),
        (["--out", "run", "--resume"], "no run to resume"),
        (["lenet-5", "--out", "run"], "size >= 16"),
        (["mlp-regression", "--out", "run"], "take the model mlp, lenet-300-100 or lenet-5"),
        (
            ["lenet-300-100", "--hidden", "9", "--out", "run"],
            "the layers of lenet-300-100 are fixed",
        ),
        (["mlp", "--hidden", "9,x", "--out", "run"], "'9,x'"),
        (["mlp", "--schedule", "cosine", "--out", "run"], "'cosine'"),
        (["mlp", "--kl-warmup", "7:7", "--out", "run"], "'7:7'"),
        (["mlp", "--learning-rate", "-1", "--out", "run"], "learning rate above zero"),
        (["mlp", "--epochs", "0", "--out", "run"], "--epochs"),
        (["mlp", "--epoch", "5", "--out", "run"], "--epoch"),
        (
            ["mlp", "--prior", "laplace", "--prior-scale", "-1", "--out", "run"],
            "--prior-scale above zero",
        ),
        (
            ["mlp", "--prior-scale", "0.1", "--out", "run"],
            "--prior-scale: the prior log-uniform does not read it",
        ),
        (["mlp", "--dropout", "0.1", "--out", "run"], "only bernoulli-dropout, gaussian-dropout"),
        (
            ["mlp", "--prior", "normal", "--guide", "gaussian", "--no-tricks", "--out", "run"],
            "--no-tricks",
        ),
        (["mlp", "--seed", str(2**70), "--out", "run"], "--seed"),
        (["mlp", "--prior", "normal", "--guide", "group", "--out", "run"], "NormalJeffreys"),
        (
            ["mlp", "--prior", "log-uniform", "--guide", "group-horseshoe", "--out", "run"],
            "decomposed",
        ),
        (["mlp", "--batch-size", "5000", "--out", "run"], "batch_size=5000"),
        (["mlp", "--device", "cuda:77", "--out", "run"], "cuda:77"),
        (["mlp", "--data", "mnist", "--data-dir", "nowhere", "--out", "run"], "nowhere"),
        (
            ["mlp-regression", "--data", "concrete", "--data-dir", "nowhere", "--out", "run"],
            "concrete.npz",
        ),
    ],
)
def test_mistakes_take_one_line_and_leave_nothing_behind(words, expected, tmp_path):
    refused(call("fit", *words), expected)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_is_a_failure_of_the_run():
    refused(fit("run", "--learning-rate", "1e30", epochs=3), "finite", code=1)


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(runs, "schedules", lambda settings: {}["defect"])
    result = fit("run")
    assert isinstance(result.exception, KeyError)


# --- runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = fit(folder, epochs=3)
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def test_fit_writes_what_it_promises(run):
    folder, text = run
    assert {path.name.split("-")[0] for path in folder.iterdir()} == {
        *("run.json", "posterior.json", "posterior", "metrics.json", "loss_terms.png", "checkpoint")
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["training"]["epochs"] == 3
    assert metrics["training"]["interrupted"] is False
    for row in (metrics["mean_network"], metrics["draws"]):
        assert row["accuracy"] == pytest.approx(1 - row["error"])
        assert f"{row['accuracy']:.2%}" in text
        assert f"{row['nll']:.4f}" in text
    assert [layer["shape"] for layer in metrics["sparsity"]["layers"]] == [[8, 64], [10, 8]]
    settings = json.loads((folder / "run.json").read_text())
    assert settings["settings"]["kl_warmup"] == "0:1"
    assert settings["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_evaluate_prints_what_fit_printed(run):
    folder, text = run
    before = results(folder)
    result = call("evaluate", folder, "--draws", 5)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == text.split("\n\nwritten to")[0].strip()
    assert results(folder) == before


def test_equal_settings_give_equal_results_and_another_seed_does_not(run, tmp_path):
    fit(tmp_path / "again", epochs=3)
    fit(tmp_path / "other", "--seed", 1, epochs=3)
    assert results(tmp_path / "again") == results(run[0])
    assert results(tmp_path / "other")[2] != results(run[0])[2]


def test_a_killed_run_resumes_bit_for_bit_from_its_folder_alone(run, tmp_path, monkeypatch):
    def kill(seen):
        if seen.epoch == 2:
            raise MemoryError("killed")

    train = runs.train
    with monkeypatch.context() as patch:
        patch.setattr(
            runs, "train", lambda *args, **options: train(*args[:6], [kill], progress=False)
        )
        refused(fit("run", epochs=3), "killed", code=1)
    refused(call("evaluate", "run"), "not over", "--resume")
    result = call("fit", "--out", "run", "--resume", "--draws", 5)
    assert result.exit_code == 0, result.output
    assert results(tmp_path / "run") == results(run[0])


def test_ctrl_c_leaves_a_result_to_resume(run, tmp_path, monkeypatch):
    def interrupt(seen):
        if seen.epoch == 1:
            raise KeyboardInterrupt

    train = runs.train
    with monkeypatch.context() as patch:
        patch.setattr(
            runs, "train", lambda *args, **options: train(*args[:6], [interrupt], progress=False)
        )
        result = fit("run", epochs=3)
    assert result.exit_code == 130
    assert "fit --out run --resume" in result.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["training"]["interrupted"] is True
    assert metrics["training"]["epochs"] == 1
    assert call("fit", "--out", "run", "--resume", "--draws", 5).exit_code == 0
    assert results(tmp_path / "run") == results(run[0])


def test_a_folder_that_holds_another_run_is_refused(run):
    before = results(run[0])
    refused(fit(run[0], "--seed", 9), "holds a run", "--resume", "another --out")
    assert results(run[0]) == before


def test_a_folder_that_holds_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    refused(fit(tmp_path), "holds something already")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_resuming_with_other_settings_is_refused_by_their_names(run):
    refused(
        fit(run[0], "--seed", 9, "--resume", epochs=4),
        "epochs (3 there, 4 now)",
        "seed (0 there, 9 now)",
    )


def test_resuming_with_the_same_settings_and_another_place_goes_on(run):
    before = results(run[0])
    assert fit(run[0], "--resume", "--threads", torch.get_num_threads(), epochs=3).exit_code == 0
    assert results(run[0]) == before


@pytest.mark.parametrize("file", ["run.json", "posterior.json", "posterior-*.safetensors"])
def test_damaged_files_are_answered_with_one_line(file, run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "copy")
    (path,) = folder.glob(file)
    path.write_bytes(path.read_bytes()[:-20])
    refused(call("evaluate", folder), path.name)


def test_a_posterior_of_another_program_is_refused(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "copy")
    record = json.loads((folder / "run.json").read_text())
    record["settings"]["hidden"] = "9"
    (folder / "run.json").write_text(json.dumps(record))
    refused(call("evaluate", folder), "another model")


def test_evaluate_without_a_run_says_so():
    refused(call("evaluate", "nowhere"), "nowhere: holds no run")


def test_letters_are_refused_for_a_network_of_other_inputs(run):
    refused(call("evaluate", run[0], "--ood", "notmnist"), "784")


@pytest.mark.parametrize(
    ("prior", "guide"),
    [
        ("log-uniform", "sparse-vd"),
        ("log-uniform", "gaussian-dropout"),
        ("normal", "bernoulli-dropout"),
        ("normal", "gaussian"),
        ("normal", "point"),
        ("normal-jeffreys", "group"),
        ("horseshoe", "group-horseshoe"),
        ("horseshoe", "mean-field"),
        ("gaussian-mixture", "mean-field"),
        ("student-t", "mean-field"),
        ("laplace", "mean-field"),
        ("learned-normal", "mean-field"),
    ],
)
def test_every_prior_and_guide_runs(prior, guide):
    words = (
        "fit",
        "mlp",
        "--hidden",
        6,
        "--epochs",
        1,
        "--prior",
        prior,
        "--guide",
        guide,
        "--draws",
        3,
        "--out",
        "run",
    )
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert call("evaluate", "run", "--draws", 3).exit_code == 0


def test_regression_is_measured_in_original_units(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    y = 1000 + 50 * x[:, 0]
    rows = np.stack([rng.permutation(200) for _ in range(20)])
    (tmp_path / "uci").mkdir()
    np.savez(tmp_path / "uci" / "concrete.npz", x=x, y=y, train=rows[:, :180], test=rows[:, 180:])
    words = (
        "--prior",
        "normal",
        "--guide",
        "mean-field",
        "--epochs",
        40,
        "--learning-rate",
        0.02,
        "--kl-warmup",
        "none",
    )
    result = call(
        "fit",
        "mlp-regression",
        "--data",
        "concrete",
        "--data-dir",
        tmp_path,
        *words,
        "--out",
        tmp_path / "run",
    )
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    # y has the standard deviation 50: a line is fitted far better, and no density of y is higher than its noise allows
    assert 0.5 < metrics["draws"]["rmse"] < 25
    assert -6 < metrics["draws"]["log_likelihood"] < 0
    assert (
        0
        <= metrics["uncertainty"]["coverage"]["50%"]
        <= metrics["uncertainty"]["coverage"]["90%"]
        <= 1
    )
    assert metrics["uncertainty"]["total"] > metrics["uncertainty"]["epistemic"]


# --- schedules


def test_the_defaults_are_the_published_recipe():
    rate, weight = runs.schedules(runs.Settings("lenet-300-100"))
    assert [rate(epoch) for epoch in (0, 99.9, 100, 150.5, 199.99)] == pytest.approx(
        [1e-3, 1e-3, 1e-3, 0.5e-3, 1e-5]
    )
    assert [weight(epoch) for epoch in (4.99, 5.99, 6, 12.5, 20)] == pytest.approx(
        [0, 0, 1 / 15, 7 / 15, 1]
    )


@pytest.mark.parametrize(
    ("schedule", "end"), [("constant", 1.0), ("linear", 0.1), ("half-linear", 0.2)]
)
def test_schedules_end_where_they_should(schedule, end):
    rate, weight = runs.schedules(
        runs.Settings("mlp", epochs=10, learning_rate=1.0, schedule=schedule, kl_warmup="none")
    )
    assert (rate(0.0), rate(9.5), weight(0.0)) == pytest.approx((1.0, end, 1.0))


# --- demo


def test_demo_writes_all_its_pictures(tmp_path):
    result = call("demo", "--epochs", 3)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "runs" / "demo"
    for name in ("loss_terms", "weights", "draws", "digits", "summary"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {
        *(
            "data",
            "test_examples",
            "network",
            "mean_network",
            "draws",
            "uncertainty",
            "sparsity",
            "training",
        )
    }
    assert metrics["network"] == "pruned posterior mean"
    assert set(metrics["uncertainty"]) == {
        "total",
        "aleatoric",
        "epistemic",
        "epistemic_right",
        "epistemic_wrong",
    }
    assert "50,200 weights left" in result.stderr
    assert call("evaluate", folder).exit_code == 0
    refused(call("demo", "--epochs", 3, "--out", folder), "holds a run")
    assert call("demo", "--epochs", 1).exit_code == 0  # where no folder is named, the next free one
    assert (tmp_path / "runs" / "demo-2" / "summary.png").exists()


# --- compare


@pytest.fixture
def brief(monkeypatch):
    """The comparison with next to no computing: its claims are tested where compare is."""
    little = {"hidden": 3, "epochs": 5, "draws": 30, "nuts_draws": 25, "langevin_steps": 30}
    settings = comparison_demo.Settings
    monkeypatch.setattr(comparison_demo, "Settings", lambda seed: settings(seed=seed, **little))


def test_compare_writes_table_picture_and_draws(tmp_path, brief):
    result = call("compare", "--out", "new", "--no-progress")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "new"
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((folder / "comparison.json").read_text())
    names = [row["method"] for row in found["rows"]]
    assert {"mean field", "full rank", "SGLD", "HMC"} <= set(names)
    assert found["settings"]["seed"] == 0
    table = (folder / "comparison.md").read_text()
    assert all(f"| {name} " in table for name in names)
    assert "HMC (ref)" in result.stdout
    for name in names:
        assert (folder / f"{name.lower().replace(' ', '-')}.nc").stat().st_size > 1000
    assert "HMC ...\n" in result.stderr


def test_compare_writes_into_no_folder_that_holds_something(tmp_path, brief):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    refused(call("compare", "--out", "there"), "there: holds something already", "--out")
    refused(call("compare", "--out", tmp_path / "there" / "mine.txt"), "mine.txt", "--out")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine.txt"]
