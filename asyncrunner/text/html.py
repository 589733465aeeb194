"""HTML for notebooks. Every text is escaped, because keys, errors and payloads come from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from asyncrunner.text.escaping import safe_text

_MAX_ROWS: Final = 50  # of a list, or of the fields of a dictionary
_MAX_TEXT: Final = 500  # characters
_MAX_DEPTH: Final = 4  # tables in tables


def html_text(value: object, *, limit: int = _MAX_TEXT) -> str:
    """Return *value* as HTML text: control characters escaped as on a terminal, cut in the middle, nothing a tag."""
    from html import escape  # loads a table of 2,000 names

    return escape(safe_text(value, limit=limit))


def html_table(value: object, depth: int = 0) -> str:
    """Return a table of plain JSON types: a row for each field of a dictionary, and for each dictionary of a list.

    Other lists, and tables that are nested more deeply than four levels, are shown as text.
    """
    if depth < _MAX_DEPTH and isinstance(value, dict) and value:
        return _fields(cast("dict[str, Any]", value), depth + 1)
    if depth < _MAX_DEPTH and isinstance(value, list) and value:
        rows = cast("list[Any]", value)  # type: ignore[redundant-cast]
        if all(isinstance(row, dict) for row in rows[:_MAX_ROWS]):
            return _rows(rows, depth + 1)
    return "" if value is None else html_text(cast("object", value))  # type: ignore[redundant-cast]


def _fields(fields: Mapping[str, Any], depth: int) -> str:
    names = list(fields)[:_MAX_ROWS]
    rows = [f"<tr><th>{html_text(name)}</th><td>{html_table(fields[name], depth)}</td></tr>" for name in names]
    return _table(rows, len(fields) - len(names))


def _rows(all_rows: Sequence[Mapping[str, Any]], depth: int) -> str:
    rows = all_rows[:_MAX_ROWS]
    names = list(dict.fromkeys(name for row in rows for name in row))[:_MAX_ROWS]
    lines = ["".join(f"<th>{html_text(name)}</th>" for name in names)]
    lines += ["".join(f"<td>{html_table(row.get(name), depth)}</td>" for name in names) for row in rows]
    return _table([f"<tr>{line}</tr>" for line in lines], len(all_rows) - len(rows))


def _table(rows: Sequence[str], others: int) -> str:
    more = f"<tr><td>and {others:,} more</td></tr>" if others else ""
    return f"<table>{''.join(rows)}{more}</table>"
