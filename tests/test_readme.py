"""What the README shows is what there is."""

import re
from pathlib import Path

import pytest

from pyro_bnn.reproduction import tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "epochs=150" in example
    exec(
        compile(example.replace("epochs=150", "epochs=2, progress=False"), "README.md", "exec"), {}
    )
    assert "times fewer weights" in capsys.readouterr().out


def test_the_test_command_is_the_one_that_is_checked():
    assert "pytest -n 2" in README
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("pytest -n 2")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "benchmarks/results/compression").glob("*/*")), ids=lambda f: f.name
)
def test_tables_of_smaller_networks_are_made_of_the_rows_that_are_kept(folder):
    made = tables.table(folder.parent.name, folder.name, ROOT / "benchmarks/results/compression")
    assert made in README
