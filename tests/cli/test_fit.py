"""``pyro-bnn fit``: what it writes, how it resumes, and which folders it refuses."""

import json

import numpy as np
import pytest
import torch

from pyro_bnn.runs.snapshots import read_snapshots
from tests.cli.commands import SPARSE, assert_refused_at_once, call, fit_small, results, succeed


def test_fit_writes_settings_checkpoint_posterior_metrics_and_a_figure(small_run):
    folder, text = small_run
    kinds = {path.name.split("-")[0] for path in folder.iterdir()}
    assert kinds == {
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
    record = json.loads((folder / "run.json").read_text())
    assert record["settings"]["kl_warmup"] == "0:1"
    assert record["settings"]["prior"] == "normal"
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_equal_settings_give_equal_results_and_another_seed_does_not(small_run, tmp_path):
    fit_small(tmp_path / "again", epochs=3)
    fit_small(tmp_path / "other", "--seed", 1, epochs=3)
    assert results(tmp_path / "again") == results(small_run[0])
    assert results(tmp_path / "other")[2] != results(small_run[0])[2]


def test_a_killed_run_resumes_bit_for_bit_from_its_folder_alone(
    small_run, tmp_path, training_stops
):
    with training_stops(2, MemoryError("killed")):
        assert_refused_at_once(fit_small("run", epochs=3), "killed", code=1)
    assert_refused_at_once(call("evaluate", "run"), "not over", "--resume")
    succeed("fit", "--out", "run", "--resume", "--draws", 5)
    assert results(tmp_path / "run") == results(small_run[0])


def test_ctrl_c_leaves_a_result_that_can_be_resumed(small_run, tmp_path, training_stops):
    with training_stops(1, KeyboardInterrupt):
        result = fit_small("run", epochs=3)
    assert result.exit_code == 130
    assert "fit --out run --resume" in result.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["training"]["interrupted"] is True
    assert metrics["training"]["epochs"] == 1
    succeed("fit", "--out", "run", "--resume", "--draws", 5)
    assert results(tmp_path / "run") == results(small_run[0])


def test_snapshots_do_not_change_a_run_and_a_resumed_run_writes_the_same_ones(
    sparse_run, tmp_path, training_stops
):
    with training_stops(10, MemoryError("killed")):
        assert_refused_at_once(call("fit", *SPARSE, "--out", "again"), "killed", code=1)
    again = tmp_path / "again"
    assert [snapshot.epoch for snapshot in read_snapshots(again / "snapshots")] == [7]
    succeed("fit", "--out", "again", "--resume", "--draws", 2)
    expected, found = read_snapshots(sparse_run / "snapshots"), read_snapshots(again / "snapshots")
    assert [snapshot.epoch for snapshot in expected] == [7, 14]
    for one, other in zip(expected, found, strict=True):
        assert one.epoch == other.epoch
        assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert results(again)[2] == results(sparse_run)[2]


def test_a_folder_with_another_run_is_refused(small_run):
    before = results(small_run[0])
    refused = fit_small(small_run[0], "--seed", 9)
    assert_refused_at_once(refused, "holds a run", "--resume", "another --out")
    assert results(small_run[0]) == before


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert_refused_at_once(fit_small(tmp_path), "holds something already")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_resuming_with_other_settings_is_refused_by_their_names(small_run):
    refused = fit_small(small_run[0], "--seed", 9, "--resume", epochs=4)
    assert_refused_at_once(refused, "epochs (3 in the run, 4 now)", "seed (0 in the run, 9 now)")


def test_resuming_with_the_same_settings_on_other_threads_goes_on(small_run):
    before = results(small_run[0])
    threads = torch.get_num_threads()
    assert fit_small(small_run[0], "--resume", "--threads", threads, epochs=3).exit_code == 0
    assert results(small_run[0]) == before


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
def test_every_prior_and_guide_can_be_fitted_and_evaluated(prior, guide):
    options = ("--hidden", 6, "--epochs", 1, "--prior", prior, "--guide", guide, "--draws", 3)
    succeed("fit", "mlp", *options, "--out", "run")
    succeed("evaluate", "run", "--draws", 3)


def test_a_regression_is_measured_in_the_original_units(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    y = 1000 + 50 * x[:, 0]
    rows = np.stack([rng.permutation(200) for _ in range(20)])
    (tmp_path / "uci").mkdir()
    np.savez(tmp_path / "uci" / "concrete.npz", x=x, y=y, train=rows[:, :180], test=rows[:, 180:])
    options = ("--prior", "normal", "--guide", "mean-field", "--kl-warmup", "none")
    training = ("--epochs", 40, "--learning-rate", 0.02, "--out", tmp_path / "run")
    data = ("--data", "concrete", "--data-dir", tmp_path)
    succeed("fit", "mlp-regression", *data, *options, *training)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    # y has the standard deviation 50: a line fits far better, and no density of y exceeds what its
    # noise allows
    assert 0.5 < metrics["draws"]["rmse"] < 25
    assert -6 < metrics["draws"]["log_likelihood"] < 0
    uncertainty = metrics["uncertainty"]
    assert 0 <= uncertainty["coverage"]["50%"] <= uncertainty["coverage"]["90%"] <= 1
    assert uncertainty["total"] > uncertainty["epistemic"]
