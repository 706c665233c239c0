"""Run the notebooks and store their outputs: ``python notebooks/execute.py [NN ...]``.

Every ``NN_title.py`` is the source of ``NN_title.ipynb``. The pictures in the notebook are those
that its cells drew on the last run, reduced to 128 colors. A picture of more than 100 kB is an
error.
What is written to stderr, such as progress bars, is not stored.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).parent
LARGEST_PICTURE = 100_000  # bytes


def with_fewer_colors(picture: str) -> str:
    """Return a base64 PNG with a palette of 128 colors, which takes a third of the bytes."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    stream = io.BytesIO()
    image.quantize(128).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def execute(source: Path) -> nbformat.NotebookNode:
    """Return the notebook of a source with the outputs of a fresh run."""
    notebook = jupytext.read(source)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03}"  # the same from run to run
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)  # the time of day
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = with_fewer_colors(output.data["image/png"])
    notebook.metadata.pop("language_info", None)
    notebook.metadata.pop("jupytext", None)
    return notebook


def pictures(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the pictures in a notebook, base64."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture is not None:
                found.append(picture)
    return found


def main(numbers: list[str]) -> None:
    """Execute the notebooks with these numbers, or all."""
    os.environ.pop("MPLBACKEND", None)  # pictures go into the notebook
    sources = []
    for source in sorted(HERE.glob("[0-9][0-9]_*.py")):
        if not numbers or source.name[:2] in numbers:
            sources.append(source)
    for source in tqdm(sources, unit="notebook"):
        notebook = execute(source)
        largest = max(map(len, pictures(notebook)), default=0) * 3 // 4
        if largest > LARGEST_PICTURE:
            sys.exit(f"{source.name}: a picture of {largest:,} bytes; lower its dpi or its size")
        nbformat.write(notebook, source.with_suffix(".ipynb"))


if __name__ == "__main__":
    main(sys.argv[1:])
