"""Many rows with few steps.

Every step of a statement lets go of the interpreter lock and has to get it back; while the loop is busy, that takes a
whole switch interval, 5 ms. ``executemany`` steps once a row: beside a busy loop it was seen to write 150 rows a
second. A block of rows in one statement steps once, so SQLite works while the loop does.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Sequence
from itertools import chain
from typing import Final

__all__ = ["Blocks", "Row"]

Row = Sequence[object]

_SIZES: Final = (1, 4, 16, 64, 128, 256, 384, 512, 768, 1024)
"""Few, so that each stays prepared, and close enough that little is bound for nothing; the largest binds 9,216 values."""


class Blocks:
    """A statement with ``{rows}`` where a VALUES list goes; *columns* is the number of values a row binds.

    A block that is not full ends in rows of NULLs. The statement passes over them: they equal nothing, or it says so.
    """

    def __init__(self, statement: str, columns: int) -> None:
        row = f"({', '.join('?' * columns)})"
        self._statements = {size: statement.replace("{rows}", ", ".join([row] * size)) for size in _SIZES}
        self._nothing = (None,) * columns

    def execute(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> int:
        """Run the statement for all *rows*, in order; returns how many rows of the table it changed."""
        changed = 0
        for first in range(0, len(rows), _SIZES[-1]):
            block = rows[first : first + _SIZES[-1]]
            size = _SIZES[bisect_left(_SIZES, len(block))]
            values = list(chain.from_iterable(block))
            values += self._nothing * (size - len(block))
            changed += connection.execute(self._statements[size], values).rowcount
        return changed
