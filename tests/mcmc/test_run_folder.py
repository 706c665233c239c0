"""Interrupted runs: Ctrl-C, a power cut, and folders of other runs."""

import pytest
import torch

from pyro_bnn import mcmc
from pyro_bnn.mcmc.hamiltonian import HMC
from pyro_bnn.mcmc.loop import Run
from pyro_bnn.runtime.tensor_files import CheckpointError
from tests.mcmc.runs import SAMPLERS, run, same

pytestmark = pytest.mark.filterwarnings("ignore::pyro_bnn.mcmc.ConvergenceWarning")


class PowerCutError(RuntimeError):
    """The power goes."""


def cut_at(monkeypatch, draw, error):
    """Raise after a draw in the middle of a run; a power cut comes just after a save."""
    original = Run.keep_draw

    def keep_draw(self, info):
        original(self, info)
        if self.draws.count == draw:
            if error is PowerCutError:
                self.save()
            raise error

    monkeypatch.setattr(Run, "keep_draw", keep_draw)


SCHEDULES = {
    "sgld": {"step_size": mcmc.cyclical(1e-3, 7, 0.5)},
    "psgld": {"step_size": mcmc.polynomial_decay(1e-2)},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_stopped_by_ctrl_c_continues_bit_for_bit(name, tmp_path, monkeypatch):
    schedule = SCHEDULES.get(name, {})
    whole = run(name, **schedule)
    with monkeypatch.context() as patch:
        cut_at(patch, 3, KeyboardInterrupt)
        message = f"^{name}: stopped by Ctrl-C after 3 draws"
        with pytest.warns(mcmc.ConvergenceWarning, match=message):
            first_part = run(name, folder=tmp_path, **schedule)
    assert first_part.draws["weight"].shape[1] == 3
    assert torch.equal(first_part.draws["weight"], whole.draws["weight"][:, :3])
    assert same(run(name, folder=tmp_path, resume=True, **schedule), whole)
    # and once more, now that it is complete
    assert same(run(name, folder=tmp_path, resume=True, **schedule), whole)


@pytest.mark.parametrize("name", ["hmc", "sgld"])
def test_a_killed_run_continues_from_its_last_save(name, tmp_path, monkeypatch):
    whole = run(name)
    with monkeypatch.context() as patch:
        cut_at(patch, 5, PowerCutError)
        with pytest.raises(PowerCutError, match=r"^$"):
            run(name, folder=tmp_path)
    assert same(run(name, folder=tmp_path, resume=True), whole)


def test_resuming_in_an_empty_folder_starts_a_run(tmp_path):
    assert same(run("sgld", folder=tmp_path / "new", resume=True), run("sgld"))


def test_the_gradients_of_both_parts_are_counted(tmp_path, monkeypatch):
    whole = run("sgld")
    with monkeypatch.context() as patch:
        cut_at(patch, 3, KeyboardInterrupt)
        run("sgld", folder=tmp_path)
    resumed = run("sgld", folder=tmp_path, resume=True)
    assert resumed.facts["gradients"] == whole.facts["gradients"]


def test_stopping_before_the_first_draw_is_an_error(monkeypatch):
    def stop(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(HMC, "step", stop)
    message = "^hmc: stopped after 0 steps, before the first draw"
    with pytest.raises(mcmc.SamplingError, match=message):
        run("hmc")


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    run("sgld", folder=tmp_path)
    message = r"^sgld: the folder .* holds a run; continue it \(resume=True\)"
    with pytest.raises(CheckpointError, match=message):
        run("sgld", folder=tmp_path)


@pytest.mark.parametrize(
    "other", [{"seed": 6}, {"step_size": 2e-3}, {"thin": 2}, {"batch_size": 5}, {"chains": 2}]
)
def test_a_run_with_other_settings_is_not_resumed(other, tmp_path):
    run("sgld", folder=tmp_path)
    (argument,) = other
    names = {"chains": "draws"}
    message = f"^sgld: .* of another run: {names.get(argument, argument)} .*differ"
    with pytest.raises(CheckpointError, match=message):
        run("sgld", folder=tmp_path, resume=True, **other)


def test_a_run_of_another_sampler_is_not_resumed(tmp_path):
    run("sgld", folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"^baoa: .*another run.*sampler"):
        run("baoa", folder=tmp_path, resume=True)


def test_a_folder_that_cannot_be_created_is_an_error_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"^sgld: .*cannot be created"):
        run("sgld", folder=tmp_path / "file")
