"""``pyro-bnn evaluate`` of a run."""

import json
import shutil

import pytest
import torch

from tests.cli.commands import assert_refused_at_once, call, results, succeed


def test_evaluate_prints_what_fit_printed_and_writes_nothing(small_run):
    folder, text = small_run
    before = results(folder)
    printed = succeed("evaluate", folder, "--draws", 5).stdout
    assert printed.strip() == text.split("\n\nwritten to")[0].strip()
    assert results(folder) == before


@pytest.mark.parametrize("file", ["run.json", "posterior.json", "posterior-*.safetensors"])
def test_a_damaged_file_is_refused_in_one_line(file, small_run, tmp_path):
    folder = shutil.copytree(small_run[0], tmp_path / "copy")
    path = next(folder.glob(file))
    path.write_bytes(path.read_bytes()[:-20])
    assert_refused_at_once(call("evaluate", folder), path.name)


def test_a_posterior_of_another_program_is_refused(small_run, tmp_path):
    folder = shutil.copytree(small_run[0], tmp_path / "copy")
    record = json.loads((folder / "run.json").read_text())
    record["settings"]["hidden"] = "9"
    (folder / "run.json").write_text(json.dumps(record))
    assert_refused_at_once(call("evaluate", folder), "another model")


def test_a_folder_without_a_run_is_refused():
    assert_refused_at_once(call("evaluate", "nowhere"), "nowhere: holds no run")


def test_letters_are_refused_for_a_network_of_other_inputs(small_run):
    assert_refused_at_once(call("evaluate", small_run[0], "--ood", "notmnist"), "784")


def test_letters_are_compared_with_digits_by_their_uncertainty(small_run, monkeypatch):
    letters = 5 * torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("pyro_bnn.datasets.not_mnist", lambda folder, like: (letters, None))
    text = succeed("evaluate", small_run[0], "--draws", 5, "--ood", "NotMNIST").stdout
    for kind in ("total", "epistemic"):
        line = next(line for line in text.splitlines() if line.startswith(f"{kind} uncertainty"))
        assert "on notMNIST; AUROC " in line
        assert 0 <= float(line.rpartition(" ")[2]) <= 1


def test_data_and_model_are_options_of_files_alone(small_run):
    refused = call("evaluate", small_run[0], "--data", "digits")
    assert_refused_at_once(refused, "are for compressed files")


def test_settings_of_another_release_are_refused(small_run, tmp_path):
    folder = shutil.copytree(small_run[0], tmp_path / "copy")
    record = json.loads((folder / "run.json").read_text())
    record["settings"]["color"] = "blue"
    (folder / "run.json").write_text(json.dumps(record))
    expected = "settings that this release does not have: ['color']"
    assert_refused_at_once(call("evaluate", folder), expected)
