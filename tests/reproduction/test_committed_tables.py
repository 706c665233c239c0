"""The tables of the documentation are those that the committed rows make."""

import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def command():
    return runpy.run_path(str(BENCHMARKS / "compression_tables.py"))


def test_the_committed_page_is_the_one_that_the_rows_make(command):
    assert command["TARGET"].read_text() == command["page"]()


def test_every_folder_of_rows_has_its_table(command):
    listed = {(recipe, network) for recipe, network, _ in command["TABLES"]}
    folders = (BENCHMARKS / "results" / "compression").glob("*/*")
    assert {(folder.parent.name, folder.name) for folder in folders} == listed
