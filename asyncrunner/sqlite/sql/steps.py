"""Predict when a step of SQLite ends, so that the event loop knows when the connection's thread needs the interpreter.

A step of a large statement, or a commit, runs for milliseconds without the interpreter. After the step the thread waits until the
event loop releases the interpreter. A release costs the loop some hundredths of a millisecond, so it should not happen earlier.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from typing import Final

_CERTAIN: Final = 0.8  # the share of a step's usual duration that the step is expected to take at least
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
        connection.busy_until = began + _CERTAIN * expected
    cursor = connection.execute(statement, values)
    seconds = time.monotonic() - began
    usual[statement] = seconds if expected is None else min(seconds, _SLOWER * expected)
    return cursor
