"""The library keeps to the limits on dense code; ``tests/style/counts.py`` defines the counts."""

import pytest

from tests.style.counts import COLUMNS, LIBRARY, count_files, count_source, python_files

FILES = python_files([*LIBRARY, "tests", "benchmarks", "docs"])
NESTED = "table = [[cell for cell in row] for row in rows]"
UNPACKED = "low, high = (float(end) for end in ends)"
CONDITIONALS = "size = 1 if small else 2 if large else 3"
LAMBDA = "squares = map(lambda value: value**2, values)"
UNTYPED = "def f(x: dict[str, Any]) -> None: ..."


@pytest.fixture(scope="module")
def library():
    return count_files(python_files(LIBRARY))


def test_the_counts_see_each_kind_of_dense_line():
    assert count_source(NESTED).nested_comprehensions == 1
    assert count_source(UNPACKED).unpacked_generators == 1
    assert count_source(CONDITIONALS).nested_conditionals == 1
    assert count_source(LAMBDA).comprehensions == 1
    assert count_source(UNTYPED).signatures_with_any == 1
    assert count_source("x" * (COLUMNS + 1)).long_lines == 1


def test_docstrings_are_no_statements():
    assert count_source('"""Title."""\nx = 1').statements == 1


def test_there_are_at_most_3_comprehensions_per_100_statements(library):
    assert library.per_hundred("comprehensions") <= 3


def test_there_are_at_most_2_conditional_expressions_per_100_statements(library):
    assert library.per_hundred("conditional_expressions") <= 2


def test_at_most_8_percent_of_the_signatures_mention_any(library):
    assert library.share_with_any <= 0.08


def test_no_expression_of_the_library_is_dense(library):
    assert library.nested_comprehensions == 0
    assert library.nested_conditionals == 0
    assert library.unpacked_generators == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-3:]))
def test_no_line_is_longer_than_100_characters(path):
    assert count_source(path.read_text()).long_lines == 0


TESTS = python_files(["tests"])


@pytest.mark.parametrize("path", TESTS, ids=lambda path: "/".join(path.parts[-3:]))
def test_no_test_file_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400
