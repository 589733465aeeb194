"""Delete items that were completed long ago, a few rows at a time.

There is no index by completion time: it would cost every completion one more page write, for a background task. So a purge
scans the items in input order, which is roughly the order of completion. A step reads a window of items without any lock.
Only if items in the window have expired, it deletes them in one short transaction, which checks them again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from asyncrunner.domain.item import Status
from asyncrunner.sqlite import sql
from asyncrunner.store.items import Purged


def find_expired(
    connection: sqlite3.Connection, batch_ids: Sequence[int], before: str, after: int, limit: int
) -> tuple[str, Purged]:
    """Return the seqs of the expired items in a window of *limit* items, as a JSON list for ``purge``, and the window's end."""
    row = {"batches": msgspec.json.encode(batch_ids).decode(), "before": before, "after": after, "limit": limit}
    reached, due, found = connection.execute(sql.purge.EXPIRED, row).fetchone()
    newest = connection.execute(sql.items.NEWEST_SEQ).fetchone()[0]
    return found, Purged(int(due), 0, newest if reached is None else reached, newest)


def purge(connection: sqlite3.Connection, found: str, statuses: Sequence[Status], before: str) -> int:
    """Delete the items in *found*, a JSON list of seqs, with the records of their failures; return how many items.

    Items that have changed meanwhile stay: an item must still have one of *statuses*, and be older than *before*.
    """
    row = {"found": found, "statuses": msgspec.json.encode(statuses).decode(), "before": before}
    connection.execute(sql.purge.PURGE_FAILURES, row)
    return connection.execute(sql.purge.PURGE_ITEMS, row).rowcount
