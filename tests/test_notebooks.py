"""Every notebook runs, is made from its source, and shows the pictures of its last run."""

import os
import runpy
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.py"))
COMMAND = runpy.run_path(str(NOTEBOOKS / "execute.py"))
EACH = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def test_there_are_notebooks():
    assert SOURCES


def committed(source):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


@EACH
def test_the_cells_are_those_of_the_source(source):
    made = jupytext.read(source)
    expected = [(cell.cell_type, cell.source) for cell in made.cells]
    stored = [(cell.cell_type, cell.source) for cell in committed(source).cells]
    assert stored == expected, f"run python notebooks/execute.py {source.name[:2]}"


@EACH
def test_the_outputs_are_stored_without_errors_and_large_pictures(source):
    notebook = committed(source)
    pictures = COMMAND["pictures"](notebook)
    assert pictures
    assert max(map(len, pictures)) * 3 // 4 <= COMMAND["LARGEST_PICTURE"]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count
            assert all(output.output_type != "error" for output in cell.outputs)


def marked(source):
    """Return a source as a parameter; those that run for more than a minute are slow."""
    slow = source.name.startswith("02")
    return pytest.param(source, id=source.stem, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.filterwarnings("ignore")  # of the notebook machinery, not of the notebook
@pytest.mark.parametrize("source", [marked(source) for source in SOURCES])
def test_the_notebook_runs(source, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests run beside it
    python_path = os.pathsep.join([str(NOTEBOOKS.parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", python_path)
    notebook = committed(source)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert COMMAND["pictures"](notebook)
