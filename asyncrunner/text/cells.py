"""Measure, cut and align text in the cells of a terminal: a wide character, as in Chinese, takes two. No I/O."""

from __future__ import annotations

import unicodedata


def cell_width(text: str) -> int:
    """Return the number of cells that *text* takes: two for a wide character, none for a combining one."""
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def _cells_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def can_draw_blocks(encoding: str | None) -> bool:
    """Return whether a stream with this encoding can print block and line characters."""
    return (encoding or "").lower().startswith("utf")


def fit(line: str, width: int | None) -> str:
    """Cut a longer *line* to *width* cells, of which the last three are dots; a *width* of None cuts nothing."""
    if width is None or cell_width(line) <= width:
        return line
    return _start_of(line, max(0, width - 3)) + "..."


def _start_of(text: str, width: int) -> str:
    used = 0
    for at, character in enumerate(text):
        used += _cells_of(character)
        if used > width:
            return text[:at]
    return text


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Return *text* with spaces up to *width* cells: behind the text, or before it if *right*."""
    spaces = " " * (width - cell_width(text))
    return spaces + text if right else text + spaces


def wrapped(line: str, width: int | None) -> list[str]:
    """Break *line* at spaces into lines of up to *width* cells; later lines are indented by 4 more than the first one.

    A longer word is cut. A *width* of None breaks nothing.
    """
    if width is None or cell_width(line) <= width:
        return [line]
    indent = " " * (len(line) - len(line.lstrip(" ")))
    lines = [indent]
    for word in line.split():
        gap = "" if lines[-1].isspace() or not lines[-1] else " "
        if gap and cell_width(lines[-1]) + 1 + cell_width(word) > width:
            lines.append(f"{indent}    ")
            gap = ""
        lines[-1] += gap + word
    return [fit(each, width) for each in lines]
