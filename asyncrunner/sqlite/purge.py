"""Delete items that ended long ago, a few rows at a time.

The table has no index by completion time: such an index would cost every completion one more page write, only for a
background task. So the retention of completed items scans the items in input order, which is roughly the order of completion.
A step reads a window of items without the write lock. If items in the window have expired, the step deletes them in one short
transaction, which checks their conditions again.

A walk begins with the oldest items, where most due items are. After a window without due items, the walk continues at a
random item up to the newest, and then reads the items that it skipped. So even the short walks of short runs reach every item
sooner or later.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from asyncrunner.domain.item import Status
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.queries import BEFORE_EVERY_SEQ
from asyncrunner.store.items import Cursor

STEP_ITEMS: Final = 1000
"""The number of items that one step examines, which takes 1.3 ms; deleting as many takes 15 ms."""


class Walk(NamedTuple):
    """A position in a walk: the next window begins after the ``seq`` *after*; None: at the first item.

    ``end``: the ``seq`` at which this part of the walk ends; None while the walk is at the oldest items. ``rest``: where the
    next part begins and ends.
    """

    after: int | None = None
    end: int | None = None
    rest: tuple[int, int] | None = None

    @classmethod
    def at(cls, cursor: Cursor | None) -> Walk:
        return cls() if cursor is None else msgspec.json.decode(cursor, type=cls)

    def next(self, window: Window) -> Cursor | None:
        """Return the cursor of the next step after *window*, or None at the end of the walk."""
        end, rest = self.end, self.rest
        newest = window.newest if self.after is None else max(window.newest, self.after)
        after = max(newest, end or 0) if window.reached is None else window.reached
        if end is None and (after >= newest or not window.due):
            start = _random_seq(min(after, newest), newest)
            (after, end), rest = (start, newest), (after, start)
        if end is not None and after >= end and rest is not None:
            (after, end), rest = rest, None
        if end is not None and after >= end:
            return None
        return Cursor(msgspec.json.encode(Walk(after, end, rest)).decode())


def _random_seq(first: int, last: int) -> int:
    """Return a random seq from *first* to *last*. Half of the results are near *first*, as a single row may have a huge seq."""
    span = last - first
    if span and random.random() < 0.5:  # noqa: S311 - it only spreads the walks over the file
        span = int(span ** random.random())  # noqa: S311
    return first + random.randint(0, span)  # noqa: S311


class Window(NamedTuple):
    """Examined items. ``due``: how many have expired. ``expired``: the ``seq`` of each of these, as a JSON list for ``purge``.

    ``reached``: the ``seq`` of the last examined item, None if the window is empty. ``newest``: the newest ``seq`` in the file.
    """

    due: int
    expired: str
    reached: int | None
    newest: int


def find_expired(connection: sqlite3.Connection, batch_ids: Sequence[int], before: str, after: int | None) -> Window:
    """Find the expired items in the window of ``STEP_ITEMS`` items after the ``seq`` *after*; None: the first window."""
    start = BEFORE_EVERY_SEQ if after is None else after
    row = {"batches": msgspec.json.encode(batch_ids).decode(), "before": before, "after": start, "limit": STEP_ITEMS}
    reached, due, expired = connection.execute(sql.items.EXPIRED, row).fetchone()
    newest = connection.execute(sql.items.NEWEST_SEQ).fetchone()[0]
    return Window(int(due), expired, reached, newest)


def purge(connection: sqlite3.Connection, seqs: str, statuses: Sequence[Status], before: str) -> int:
    """Delete the items of *seqs*, a JSON list, with the records of their failures; return how many items were deleted.

    Items that have changed meanwhile stay: an item must still have one of *statuses*, and be older than *before*.
    """
    row = {"found": seqs, "statuses": msgspec.json.encode(statuses).decode(), "before": before}
    connection.execute(sql.items.PURGE_FAILURES, row)
    return connection.execute(sql.items.PURGE_ITEMS, row).rowcount
