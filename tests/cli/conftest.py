"""Runs that the tests of the command line share."""

from contextlib import contextmanager

import pytest

from pyro_bnn.runs import run as run_module
from tests.cli.commands import SPARSE, fit_small, succeed


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    """Run each test in an empty folder and without a default folder of data."""
    monkeypatch.delenv("PYRO_BNN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """Return the folder of a small run of three epochs, and what ``pyro-bnn fit`` printed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = fit_small(folder, epochs=3)
    assert result.exit_code == 0, result.output
    return folder, result.stdout


@pytest.fixture(scope="session")
def sparse_run(tmp_path_factory):
    """Return the folder of a sparse run with held-out examples and snapshots."""
    folder = tmp_path_factory.mktemp("sparse") / "run"
    succeed("fit", *SPARSE, "--out", folder)
    return folder


@pytest.fixture
def training_stops(monkeypatch):
    """Return a context in which training raises an exception after an epoch."""
    train = run_module.train

    @contextmanager
    def stop(after, exception):
        def raise_after(progress):
            if progress.epoch == after:
                raise exception

        def interrupted(folder, program, data, settings, execution, callbacks, progress):
            callbacks = [*callbacks, raise_after]
            return train(folder, program, data, settings, execution, callbacks, progress=False)

        with monkeypatch.context() as patch:
            patch.setattr(run_module, "train", interrupted)
            yield

    return stop
