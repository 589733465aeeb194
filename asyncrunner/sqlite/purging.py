"""Forgetting what was completed long ago, a few rows at a time.

There is no index by the time of completion: it would cost every completion a page of its own, for the sake of a walk that nobody
waits for. So a purge walks the items in the order they came in, which is roughly that of their completion. A step reads a
window without any lock, and only if it finds something takes one short transaction for it, which asks again.
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
    """The items of a window that are due, as a JSON list for ``purge``, and how far the window reached."""
    row = {"batches": msgspec.json.encode(batch_ids).decode(), "before": before, "after": after, "limit": limit}
    reached, due, found = connection.execute(EXPIRED, row).fetchone()
    newest = connection.execute(NEWEST).fetchone()[0] or 0
    return found, Purged(int(due), 0, newest if reached is None else reached, newest)


def purge(connection: sqlite3.Connection, found: str, statuses: Sequence[Status], before: str) -> int:
    """Delete items, a JSON list of their numbers, and the records of their failures, unless they have changed meanwhile.

    Returns how many items.
    """
    row = {"found": found, "statuses": msgspec.json.encode(statuses).decode(), "before": before}
    connection.execute(PURGE_FAILURES, row)
    return connection.execute(PURGE_ITEMS, row).rowcount
