"""Tables as plain text and as Markdown."""

import pytest

from pyro_bnn.runtime.text_table import format_markdown_table, format_table

HEADER = ("layer", "weights", "alpha")
ROWS = [("fc1", 235_200, 0.123456), ("output", 1000, None)]


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_align_right():
    expected = "layer   weights   alpha\nfc1     235,200  0.1235\noutput    1,000       -"
    assert format_table(HEADER, ROWS) == expected


def test_each_column_can_be_aligned_left_right_or_centered():
    rows = [("a", "b", "c")]
    assert (
        format_table(("one", "three", "five!"), rows, "rlc") == "one  three  five!\n  a  b        c"
    )


def test_lines_have_no_trailing_spaces():
    text = format_table(("name", "note"), [("a", "a long note"), ("b", "")], "ll")
    assert text.splitlines() == ["name  note", "a     a long note", "b"]


def test_cells_that_look_like_markup_and_long_cells_appear_unchanged():
    cell = "[bold]x[/bold] :smile: \\[y] " + "z" * 500
    assert format_table(("cell", "n"), [(cell, 1)]).splitlines()[1] == f"{cell}  1"


def test_the_text_does_not_depend_on_the_terminal(monkeypatch):
    expected = format_table(HEADER, ROWS)
    for name, value in {"COLUMNS": "10", "LINES": "2", "FORCE_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    assert format_table(HEADER, ROWS) == expected


def test_a_table_without_rows_is_its_header():
    assert format_table(HEADER, []) == "layer  weights  alpha"


def test_markdown_marks_the_alignment_and_escapes_bars():
    lines = format_markdown_table(("q(z|x)", "a", "b"), [("p|q", 1.5, 2)], "lrc").splitlines()
    assert lines == [r"| q(z\|x) | a | b |", "|---|---:|:---:|", r"| p\|q | 1.5 | 2 |"]


@pytest.mark.parametrize("render", [format_table, format_markdown_table])
def test_a_wrong_number_of_cells_or_letters_is_an_error(render):
    with pytest.raises(ValueError, match=r"rows: expected 3 cells.*layer, weights, alpha.*got 2"):
        render(HEADER, [("fc1", 1)])
    for align in ("lr", "lrx"):
        with pytest.raises(ValueError, match=f"align: expected 3 letters.*got '{align}'"):
            render(HEADER, ROWS, align)
