"""The real data files, for tests that run where they are available."""

import os
from pathlib import Path

import pytest

# resolved when it is imported, before any test changes the variable
REAL = Path(os.environ.get("PYRO_BNN_DATA") or "data").resolve()


def needs_folder(folder):
    """Skip a test where a folder of real files is missing."""
    return pytest.mark.skipif(
        not (REAL / folder).is_dir(), reason=f"no {folder} in PYRO_BNN_DATA or ./data"
    )
