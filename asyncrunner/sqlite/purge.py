"""Delete items that were completed long ago, a few rows at a time.

There is no index by completion time: it would cost every completion one more page write, for a background task. So a purge
scans the items in input order, which is roughly the order of completion. A step reads a window of items without any lock.
Only if items in the window have expired, it deletes them in one short transaction, which checks them again.

A walk begins with the oldest items, where most due items are. Once a window has none, the walk continues at a random place
and goes round the file, so that even short walks of short runs reach every item in time.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from asyncrunner.domain.item import Status
from asyncrunner.sqlite import sql
from asyncrunner.store.items import Cursor

STEP_ITEMS: Final = 1000
"""Items that one step examines: 1.3 ms to examine, 15 ms to delete."""


class Walk(NamedTuple):
    """A position in a walk: the next window begins after the number *after*.

    ``end``: the number where this part of the walk ends; None while it is with the oldest items. ``rest``: the part after that.
    """

    after: int = 0
    end: int | None = None
    rest: tuple[int, int] | None = None

    @classmethod
    def at(cls, cursor: Cursor | None) -> Walk:
        return cls() if cursor is None else msgspec.json.decode(cursor, type=cls)

    def next(self, window: Window) -> Cursor | None:
        """Return the cursor of the next step after *window*, or None at the end of the walk."""
        end, rest = self.end, self.rest
        newest = max(window.newest, self.after)
        after = max(newest, end or 0) if window.reached is None else window.reached
        if end is None and (after >= newest or not window.due):
            start = random.randint(min(after, newest), newest)  # noqa: S311 - it only spreads the walks over the file
            (after, end), rest = (start, newest), (after, start)
        if end is not None and after >= end and rest is not None:
            (after, end), rest = rest, None
        if end is not None and after >= end:
            return None
        return Cursor(msgspec.json.encode(Walk(after, end, rest)).decode())


class Window(NamedTuple):
    """Examined items. ``due``: how many have expired, and ``expired``: their numbers, as a JSON list for ``purge``.

    ``reached``: the last number that was examined, None if the file ends before; ``newest``: the newest number in the file.
    """

    due: int
    expired: str
    reached: int | None
    newest: int


def find_expired(connection: sqlite3.Connection, batch_ids: Sequence[int], before: str, after: int) -> Window:
    """Find the expired items in the window of ``STEP_ITEMS`` items after the number *after*."""
    row = {"batches": msgspec.json.encode(batch_ids).decode(), "before": before, "after": after, "limit": STEP_ITEMS}
    reached, due, expired = connection.execute(sql.purge.EXPIRED, row).fetchone()
    newest = connection.execute(sql.items.NEWEST_SEQ).fetchone()[0]
    return Window(int(due), expired, reached, newest)


def purge(connection: sqlite3.Connection, found: str, statuses: Sequence[Status], before: str) -> int:
    """Delete the items in *found*, a JSON list of seqs, with the records of their failures; return how many items.

    Items that have changed meanwhile stay: an item must still have one of *statuses*, and be older than *before*.
    """
    row = {"found": found, "statuses": msgspec.json.encode(statuses).decode(), "before": before}
    connection.execute(sql.purge.PURGE_FAILURES, row)
    return connection.execute(sql.purge.PURGE_ITEMS, row).rowcount
