"""Write many rows in one step of a statement.

Every step of a statement releases the interpreter lock and must acquire it again. While the event loop is busy, acquiring the
lock takes a whole switch interval, 5 ms. ``executemany`` takes one step per row: it wrote 150 rows per second while the loop
was busy. A statement with a block of rows takes one step, so SQLite works while the loop runs.

Such a step, or a commit, takes milliseconds. The connection predicts its end, so that the event loop releases the lock when the
connection's thread needs it, and seldom earlier: a release costs the loop some hundredths of a millisecond.
"""

from __future__ import annotations

import sqlite3
import time
from bisect import bisect_left
from collections.abc import Sequence
from itertools import chain
from typing import Final

Row = Sequence[object]
Block = tuple[str, Sequence[object]]
"""A statement, and the values of its parameters."""

_BLOCK_SIZES: Final = (1, 4, 16, 64, 128, 256, 384, 512, 768, 1024)
"""Rows per statement. There are few sizes, so that every statement stays prepared, and they are close enough that a block
needs few rows of NULLs. The largest block binds 11,264 values."""

_CERTAIN: Final = 0.8  # the share of a step's usual duration that the step is expected to take at least
_MAX_PREDICTED_SECONDS: Final = 0.1
_SLOWER: Final = 1.2  # by this factor a prediction grows at most, because one slow step says little


class SteppedConnection(sqlite3.Connection):
    """A connection that predicts its long steps. ``busy_until``: the monotonic time before which the step ends hardly ever."""

    busy_until: float = 0.0
    step_seconds: dict[str, float] | None = None  # by statement


def long_step(connection: sqlite3.Connection, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
    """Execute a statement whose step may take milliseconds."""
    if not isinstance(connection, SteppedConnection):
        return connection.execute(statement, values)
    usual = connection.step_seconds = connection.step_seconds or {}
    began = time.monotonic()
    expected = usual.get(statement)
    if expected is not None:
        connection.busy_until = began + min(_CERTAIN * expected, _MAX_PREDICTED_SECONDS)
    cursor = connection.execute(statement, values)
    seconds = time.monotonic() - began
    usual[statement] = seconds if expected is None else min(seconds, _SLOWER * expected)
    return cursor


class BulkStatement:
    """A statement that takes many rows: ``{rows}`` stands for its VALUES list, *columns* is the number of values per row.

    ``?1``, ``?2`` and so on, before the VALUES list, are values that all rows share. Rows of NULLs fill up a block. The
    statement must skip these rows: NULL equals no key, or the WHERE clause excludes NULL.
    """

    def __init__(self, statement: str, columns: int) -> None:
        row = f"({', '.join('?' * columns)})"
        self._statements = {size: statement.replace("{rows}", ", ".join([row] * size)) for size in _BLOCK_SIZES}
        self._null_row = (None,) * columns

    def execute(self, connection: sqlite3.Connection, rows: Sequence[Row], shared: Row = ()) -> int:
        """Run the statement for all *rows*, in order, and return how many rows of the table it changed.

        *shared*: the values that all rows share.
        """
        return execute_blocks(connection, self.blocks(rows, shared))

    def blocks(self, rows: Sequence[Row], shared: Row = ()) -> Sequence[Block]:
        """Return the calls that run the statement for all *rows*, for ``execute_blocks()``.

        The event loop's thread prepares them, because the connection's thread has more to do.
        """
        blocks: list[Block] = []
        for first in range(0, len(rows), _BLOCK_SIZES[-1]):
            block = rows[first : first + _BLOCK_SIZES[-1]]
            size = _BLOCK_SIZES[bisect_left(_BLOCK_SIZES, len(block))]
            values = [*shared, *chain.from_iterable(block)]
            values += self._null_row * (size - len(block))
            blocks.append((self._statements[size], values))
        return blocks


def execute_blocks(connection: sqlite3.Connection, blocks: Sequence[Block]) -> int:
    """Run the calls of ``BulkStatement.blocks()`` and return how many rows of the table they changed."""
    return sum([long_step(connection, statement, values).rowcount for statement, values in blocks])
