"""Many rows with few steps.

Every step of a statement lets go of the interpreter lock and has to get it back; while the loop is busy, that takes a
whole switch interval, 5 ms. ``executemany`` steps once a row: beside a busy loop it was seen to write 150 rows a
second. A block of rows in one statement steps once, so SQLite works while the loop does.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Final

__all__ = ["Blocks", "Row"]

Row = Sequence[object]

_SIZES: Final = (256, 32, 4, 1)  # few, so that each stays prepared; the largest binds at most 2,560 values


class Blocks:
    """A statement with ``{rows}`` where a VALUES list goes; *columns* is the number of values a row binds."""

    def __init__(self, statement: str, columns: int) -> None:
        row = f"({', '.join('?' * columns)})"
        self._statements = {size: statement.replace("{rows}", ", ".join([row] * size)) for size in _SIZES}

    def execute(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> int:
        """Run the statement for all *rows*, in order; returns how many rows of the table it changed."""
        changed = 0
        first = 0
        for size in _SIZES:
            statement = self._statements[size]
            while len(rows) - first >= size:
                values = list(chain.from_iterable(rows[first : first + size]))
                changed += connection.execute(statement, values).rowcount
                first += size
        return changed
