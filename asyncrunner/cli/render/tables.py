"""Format rows as aligned columns that fit a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from asyncrunner.text.cells import cell_width, fit, padded
from asyncrunner.text.escaping import safe_text

_GAP: Final = "  "
_MIN_LAST_WIDTH: Final = 32  # characters that the last column needs before optional columns are shown


class Column(NamedTuple):
    """A column: ``right`` aligns numbers, ``limit`` is the maximum of characters in a cell (500 in the last column).

    When the lines are too wide, the column with the highest ``spare`` is omitted first; a column with 0 is never
    omitted.
    """

    name: str
    right: bool = False
    spare: int = 0
    limit: int = 60


def terminal_width() -> int | None:
    """Return the number of characters in a line of stdout, or None if stdout is not a terminal.

    COLUMNS cuts no line of a pipe: readline exports it to the programs that an interactive Python starts.
    """
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(columns: Sequence[Column], rows: Sequence[Sequence[object]], width: int | None) -> list[str]:
    """Return a heading and one escaped line per row; the last column takes the remaining width and is cut."""
    if not rows:
        return []
    last = len(columns) - 1
    texts = [
        [
            safe_text("" if value is None else value, limit=500 if at == last else columns[at].limit)
            for at, value in enumerate(row)
        ]
        for row in rows
    ]
    widths = [max(len(column.name), *(cell_width(row[at]) for row in texts)) for at, column in enumerate(columns)]
    shown = list(range(len(columns)))
    while width is not None and _needed(widths, shown) > width and any(columns[at].spare for at in shown):
        shown.remove(max(shown, key=lambda at: columns[at].spare))
    names = [column.name.upper() for column in columns]
    return [fit(_line(row, columns, widths, shown), width) for row in (names, *texts)]


def _needed(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[at] + len(_GAP) for at in shown[:-1]) + min(widths[shown[-1]], _MIN_LAST_WIDTH)


def _line(row: Sequence[str], columns: Sequence[Column], widths: Sequence[int], shown: Sequence[int]) -> str:
    cells = [padded(row[at], widths[at], right=columns[at].right) for at in shown]
    return _GAP.join(cells).rstrip()
