"""Data directories of the tests."""

import pytest


@pytest.fixture(autouse=True)
def no_data_directory(monkeypatch, tmp_path):
    """No test reads a data directory that it does not name."""
    monkeypatch.delenv("PYRO_BNN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
