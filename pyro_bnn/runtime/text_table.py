"""Tables as text, for ``str(result)`` and for Markdown files.

Every table of the library is rendered here, so that all of them look alike in a terminal, in a
notebook and in a file.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import JustifyMethod

__all__ = ["Cell", "format_markdown_table", "format_table"]

Cell = str | int | float | None

_JUSTIFY: dict[str, JustifyMethod] = {"l": "left", "c": "center", "r": "right"}
_RULERS = {"l": "---", "c": ":---:", "r": "---:"}


def format_table(
    header: Sequence[str], rows: Iterable[Sequence[Cell]], align: str | None = None
) -> str:
    """Return a table as plain text: a line for the header and one line per row.

    Columns are as wide as their widest cell and two spaces apart. Nothing is wrapped, colored or
    adapted to the terminal, so that equal tables give equal text everywhere.

    Args:
        header: the title of each column.
        rows: one cell per column. Strings appear unchanged, integers with thousands separators,
            floats with four significant digits, and ``None`` as ``-``.
        align: a letter per column, ``"l"``, ``"c"`` or ``"r"``. By default the first column is
            aligned left and the others right.

    Raises:
        ValueError: if a row or ``align`` does not have exactly one entry per column, or if
            ``align`` contains another letter.

    Example:
        >>> print(format_table(["layer", "weights"], [["fc1", 235200], ["fc2", 30000]]))
        layer  weights
        fc1    235,200
        fc2     30,000
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    align = _alignment(header, align)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title, letter in zip(header, align, strict=True):
        table.add_column(Text(title), justify=_JUSTIFY[letter], no_wrap=True)
    width = sum(map(len, header))
    for cells in _text_rows(header, rows):
        # Text, not str: rich would read "[...]" in a plain string as markup
        table.add_row(*map(Text, cells))
        width += sum(map(len, cells))
    # Wide enough for any line. All that rich would otherwise read from the environment is given.
    console = Console(
        file=io.StringIO(),
        width=2 * (width + len(header)),
        height=100,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def format_markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[Cell]], align: str | None = None
) -> str:
    r"""Return a table in Markdown; arguments as for :func:`format_table`.

    A ``|`` inside a cell is escaped.

    Raises:
        ValueError: as :func:`format_table`.

    Example:
        >>> print(format_markdown_table(["layer", "weights"], [["fc1", 235200]]))
        | layer | weights |
        |---|---:|
        | fc1 | 235,200 |
    """
    align = _alignment(header, align)
    lines = [_markdown_line(header), f"|{'|'.join(_RULERS[letter] for letter in align)}|"]
    lines.extend(_markdown_line(cells) for cells in _text_rows(header, rows))
    return "\n".join(lines)


def _markdown_line(cells: Iterable[str]) -> str:
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _alignment(header: Sequence[str], align: str | None) -> str:
    """Return one letter per column, or raise ``ValueError``."""
    if align is None:
        return "l" + "r" * (len(header) - 1)
    if len(align) != len(header) or not set(align) <= set(_JUSTIFY):
        raise ValueError(
            f"align: expected {len(header)} letters, one per column, each l, c or r; got {align!r}"
        )
    return align


def _text_rows(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> list[list[str]]:
    """Return the cells as text, or raise ``ValueError`` for a row that is too short or too long."""
    text = []
    for row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"rows: expected {len(header)} cells, one per column ({', '.join(header)}), "
                f"got {len(row)}: {list(row)}"
            )
        text.append([_cell_text(cell) for cell in row])
    return text


def _cell_text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}"
