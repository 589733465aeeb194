"""Rows as aligned columns that fit a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from asyncrunner.text import safe_text

__all__ = ["Column", "fit", "table", "terminal_width"]

_GAP: Final = "  "
_LAST: Final = 32  # characters that the last column gets before others are left out


class Column(NamedTuple):
    """A heading. ``right``: numbers. ``spare``: the higher it is, the earlier it is left out where there is no room; 0: never."""

    name: str
    right: bool = False
    spare: int = 0
    limit: int = 60


def terminal_width() -> int | None:
    """How many characters a line of stdout has; None where that does not matter, as in a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(columns: Sequence[Column], rows: Sequence[Sequence[object]], width: int | None) -> list[str]:
    """The lines, escaped, with a heading; the last column takes the room that is left, and is cut."""
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
    widths = [max(len(column.name), *(len(row[at]) for row in texts)) for at, column in enumerate(columns)]
    shown = list(range(len(columns)))
    while width is not None and _needed(widths, shown) > width and any(columns[at].spare for at in shown):
        shown.remove(max(shown, key=lambda at: columns[at].spare))
    names = [column.name.upper() for column in columns]
    return [fit(_line(row, columns, widths, shown), width) for row in (names, *texts)]


def _needed(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[at] + len(_GAP) for at in shown[:-1]) + min(widths[shown[-1]], _LAST)


def _line(row: Sequence[str], columns: Sequence[Column], widths: Sequence[int], shown: Sequence[int]) -> str:
    cells = [row[at].rjust(widths[at]) if columns[at].right else row[at].ljust(widths[at]) for at in shown]
    return _GAP.join(cells).rstrip()


def fit(line: str, width: int | None) -> str:
    """*line*, cut to the width, with dots where something is missing."""
    if width is None or len(line) <= width:
        return line
    return line[: max(0, width - 3)] + "..."
