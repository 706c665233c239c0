"""Run folders: their records, and how failures leave them."""

import dataclasses
import json

import pytest

from pyro_bnn import CheckpointError
from pyro_bnn.runs.folders import new_folder, write_json
from pyro_bnn.runs.run import (
    claim_folder,
    create_run,
    interruption_note,
    load_data,
    load_settings,
    settings_to_resume,
)
from pyro_bnn.runs.settings import ExecutionConfig, Settings

SETTINGS = Settings("mlp", hold_out=200, seed=3)
EXECUTION = ExecutionConfig(threads=2, snapshots=7)


def test_settings_are_read_as_they_were_written(tmp_path):
    create_run(tmp_path / "run", SETTINGS, EXECUTION)
    assert load_settings(tmp_path / "run") == (SETTINGS, EXECUTION)


def test_settings_that_an_older_release_lacked_have_their_defaults(tmp_path):
    create_run(tmp_path, SETTINGS, EXECUTION)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["place"]["snapshots"], record["settings"]["hold_out"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    settings, execution = load_settings(tmp_path)
    assert (settings.hold_out, execution.snapshots) == (0, 0)


def test_a_run_that_fails_before_its_first_checkpoint_leaves_no_folder(tmp_path):
    with (
        pytest.raises(RuntimeError, match="early"),
        claim_folder(tmp_path / "run", SETTINGS, EXECUTION),
    ):
        raise RuntimeError("early")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_after_its_first_checkpoint_keeps_its_folder(tmp_path):
    def write_checkpoint_and_fail():
        (tmp_path / "run" / "checkpoint").mkdir()
        (tmp_path / "run" / "checkpoint" / "checkpoint.json").write_text("{}")
        raise RuntimeError("late")

    with (
        pytest.raises(RuntimeError, match="late"),
        claim_folder(tmp_path / "run", SETTINGS, EXECUTION),
    ):
        write_checkpoint_and_fail()
    assert load_settings(tmp_path / "run") == (SETTINGS, EXECUTION)


def test_an_existing_empty_folder_is_kept_after_a_failure(tmp_path):
    with pytest.raises(RuntimeError, match="early"), new_folder(tmp_path):
        raise RuntimeError("early")
    assert tmp_path.exists()


def test_only_options_that_the_user_named_change_a_resumed_run(tmp_path):
    create_run(tmp_path, SETTINGS, EXECUTION)
    requested = dataclasses.asdict(Settings("mlp")) | dataclasses.asdict(ExecutionConfig())
    settings, execution = settings_to_resume(tmp_path, requested, {"threads"})
    assert settings == SETTINGS
    assert execution == dataclasses.replace(EXECUTION, threads=None)
    with pytest.raises(CheckpointError, match=r"seed \(3 in the run, 0 now\)"):
        settings_to_resume(tmp_path, requested, {"seed", "threads"})


def test_an_interrupted_run_has_a_note(tmp_path):
    assert interruption_note(tmp_path) == ""
    training = {"interrupted": False, "epochs": 3}
    write_json(tmp_path / "metrics.json", {"training": training})
    assert interruption_note(tmp_path) == ""
    write_json(tmp_path / "metrics.json", {"training": training | {"interrupted": True}})
    assert "interrupted after 3 epochs" in interruption_note(tmp_path)


def test_the_last_training_examples_are_held_out():
    data, (x, y) = load_data(SETTINGS, None)
    whole, _ = load_data(Settings("mlp"), None)
    assert len(data.x_train) == len(whole.x_train) - 200
    assert (x == whole.x_train[-200:]).all()
    assert (y == whole.y_train[-200:]).all()


def test_numbers_that_are_not_finite_become_null_in_json(tmp_path):
    content = {"nan": float("nan"), "nested": [float("inf"), {"a": 1.5}], "text": "inf"}
    write_json(tmp_path / "a.json", content)
    expected = {"nan": None, "nested": [None, {"a": 1.5}], "text": "inf"}
    assert json.loads((tmp_path / "a.json").read_text()) == expected
