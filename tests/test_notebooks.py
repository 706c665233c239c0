"""Every notebook runs, and is the one its source makes."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("*.py"))


def test_there_are_notebooks():
    assert SOURCES


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_notebook_is_made_from_its_source(source):
    made = jupytext.read(source)
    committed = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert [(cell.cell_type, cell.source) for cell in committed.cells] == [
        (c.cell_type, c.source) for c in made.cells
    ], f"{source.name} was changed: jupytext --to ipynb notebooks/{source.name}"
    assert not any(cell.get("outputs") for cell in committed.cells), (
        "commit notebooks without outputs"
    )


@pytest.mark.filterwarnings(
    "ignore"
)  # of the notebook machinery; the notebook's own warnings are in its own process
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_notebook_runs(source, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # pictures go into the notebook
    monkeypatch.setenv(
        "OMP_NUM_THREADS", "1"
    )  # other tests run beside it: threads would wait for each other
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    assert any(
        output.output_type == "display_data"
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
