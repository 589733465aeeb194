"""Delete items that were completed long ago, a few rows at a time.

There is no index by completion time: it would cost every completion one more page write, for a background task. So a purge
scans the items in input order, which is roughly the order of completion. A step reads a window of items without any lock.
Only if items in the window have expired, it deletes them in one short transaction, which checks them again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

import msgspec

from asyncrunner.item import Status
from asyncrunner.store import Purged

__all__ = ["find_expired", "purge"]

EXPIRED: Final = """
SELECT max(seq), total(is_due), json_group_array(seq) FILTER (WHERE is_due) FROM (
    SELECT seq, status = 'completed' AND completed_at < :before AND batch_id IN (SELECT value FROM json_each(:batches)) AS is_due
    FROM items WHERE seq > :after ORDER BY seq LIMIT :limit)"""

NEWEST: Final = "SELECT max(seq) FROM items"

PURGE_FAILURES: Final = """
DELETE FROM failures WHERE failure_id IN (
    SELECT failures.failure_id FROM json_each(:found) AS found
    CROSS JOIN items ON items.seq = found.value
    CROSS JOIN failures ON failures.batch_id = items.batch_id AND failures.id = items.id
    WHERE items.status IN (SELECT value FROM json_each(:statuses))
        AND coalesce(items.completed_at, items.created_at) < :before)"""

# The trigger items_deleted keeps the batch's total right.
PURGE_ITEMS: Final = """
DELETE FROM items NOT INDEXED WHERE seq IN (SELECT value FROM json_each(:found))
    AND status IN (SELECT value FROM json_each(:statuses)) AND coalesce(completed_at, created_at) < :before"""


def find_expired(
    connection: sqlite3.Connection, batch_ids: Sequence[int], before: str, after: int, limit: int
) -> tuple[str, Purged]:
    """Return the seqs of the expired items in a window of *limit* items, as a JSON list for ``purge``, and the window's end."""
    row = {"batches": msgspec.json.encode(batch_ids).decode(), "before": before, "after": after, "limit": limit}
    reached, due, found = connection.execute(EXPIRED, row).fetchone()
    newest = connection.execute(NEWEST).fetchone()[0] or 0
    return found, Purged(int(due), 0, newest if reached is None else reached, newest)


def purge(connection: sqlite3.Connection, found: str, statuses: Sequence[Status], before: str) -> int:
    """Delete the items in *found*, a JSON list of seqs, with the records of their failures; return how many items.

    Items that have changed meanwhile stay: an item must still have one of *statuses*, and be older than *before*.
    """
    row = {"found": found, "statuses": msgspec.json.encode(statuses).decode(), "before": before}
    connection.execute(PURGE_FAILURES, row)
    return connection.execute(PURGE_ITEMS, row).rowcount
