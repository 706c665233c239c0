"""Checkpoints: when they are written, and which ones are refused."""

import re

import pytest
import torch

from pyro_bnn.guides import FactorizedGaussian
from pyro_bnn.runtime import tensor_files
from pyro_bnn.runtime.tensor_files import CheckpointError, load_tensors
from pyro_bnn.training.checkpoint import Checkpoint
from tests.training.programs import classifier_pair, digest, linear_pair, quick_fit, toy_data


def test_a_checkpoint_is_written_every_given_number_of_epochs_and_at_the_end(tmp_path, monkeypatch):
    steps = []
    save = Checkpoint.save

    def spy(self, run):
        steps.append(run.state.step)
        save(self, run)

    monkeypatch.setattr(Checkpoint, "save", spy)
    quick_fit(
        *linear_pair(), toy_data(), epochs=5, batch_size=10, checkpoint=tmp_path, checkpoint_every=2
    )
    assert steps == [6, 12, 15]


def test_a_folder_with_a_checkpoint_is_not_overwritten(tmp_path):
    quick_fit(*linear_pair(), toy_data(), checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="resume=True"):
        quick_fit(*linear_pair(), toy_data(), checkpoint=tmp_path)


def test_the_checkpoint_of_another_run_is_an_error_that_names_the_difference(tmp_path):
    x, y = toy_data()
    model, guide = linear_pair()
    quick_fit(model, guide, (x, y), checkpoint=tmp_path)
    cases = {
        "seed": {"seed": 1},
        "batch_size": {"batch_size": 10},
        "num_particles": {"num_particles": 2},
        "reparameterize": {"reparameterize": False},
        "learning_rate": {"learning_rate": 0.02},
        "kl_weight": {"kl_weight": 0.5},
        "optimizer": {"optimizer": torch.optim.AdamW},
    }
    for name, options in cases.items():
        with pytest.raises(CheckpointError, match=rf"another run: {name} \(saved"):
            quick_fit(model, guide, (x, y), checkpoint=tmp_path, resume=True, **options)
    changed = y.clone()
    changed[0] += 1
    with pytest.raises(CheckpointError, match=r"another run: data \(saved"):
        quick_fit(model, guide, (x, changed), checkpoint=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"tensor guide.* differ"):
        quick_fit(model, FactorizedGaussian(model), (x, y), checkpoint=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"data \(saved.*tensor"):
        quick_fit(*classifier_pair(), (x, torch.arange(30) % 3), checkpoint=tmp_path, resume=True)


def test_a_full_disk_is_an_error_and_the_previous_checkpoint_remains(tmp_path, monkeypatch):
    quick_fit(*linear_pair(), toy_data(), epochs=2, checkpoint=tmp_path)
    before, facts = load_tensors(tmp_path / "checkpoint")

    def full(*args):
        raise OSError(28, "No space left on device")

    calls = [(tensor_files.os, "fsync"), (tensor_files.os, "replace"), (tensor_files, "open")]
    for owner, name in calls:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full, raising=False)
            with pytest.raises(CheckpointError, match="No space left on device"):
                quick_fit(*linear_pair(), toy_data(), epochs=5, checkpoint=tmp_path, resume=True)
        after, again = load_tensors(tmp_path / "checkpoint")
        assert facts == again
        assert all(torch.equal(before[name], after[name]) for name in before)
    resumed = quick_fit(*linear_pair(), toy_data(), epochs=5, checkpoint=tmp_path, resume=True)
    assert digest(resumed) == digest(quick_fit(*linear_pair(), toy_data(), epochs=5))


def test_a_folder_that_cannot_be_created_is_an_error_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("x")
    steps = []
    with pytest.raises(CheckpointError, match="cannot be created"):
        quick_fit(
            *linear_pair(), toy_data(), checkpoint=tmp_path / "file", callbacks=[steps.append]
        )
    assert not steps


def test_a_damaged_checkpoint_is_an_error(tmp_path):
    quick_fit(*linear_pair(), toy_data(), checkpoint=tmp_path)
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        for damaged in (content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1]), b""):
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
                quick_fit(*linear_pair(), toy_data(), epochs=5, checkpoint=tmp_path, resume=True)
        file.write_bytes(content)
