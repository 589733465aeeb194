"""Delete items that ended long ago, a few rows at a time.

The table has no index by completion time: such an index would cost every completion one more page write, only for a
background task. So the retention of completed items scans the items in input order, which is roughly the order of completion.
A step reads a window of items without the write lock. If items in the window have expired, the step deletes them in one short
transaction, which checks their conditions again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from asyncrunner.domain.item import Status
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.queries import BEFORE_EVERY_SEQ
from asyncrunner.store.rules.purge_walk import STEP_ITEMS, Window


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
