"""The SQL that finds and deletes items that ended long ago."""

from __future__ import annotations

from typing import Final

# The last seq of a window of items in input order, and the number and the seqs of its completed items that have expired.
EXPIRED: Final = """
SELECT max(seq), total(is_due), json_group_array(seq) FILTER (WHERE is_due) FROM (
    SELECT seq, status = 'completed' AND completed_at < :before AND batch_id IN (SELECT value FROM json_each(:batches)) AS is_due
    FROM items WHERE seq > :after ORDER BY seq LIMIT :limit)"""

# The next items in input order that have one of the statuses and ended, or arrived, before a time.
PURGEABLE: Final = """
SELECT seq, status FROM items NOT INDEXED
WHERE seq > ? AND batch_id = ? AND status IN (SELECT value FROM json_each(?))
    AND coalesce(completed_at, created_at) < ? ORDER BY seq LIMIT ?"""

# Delete the records of the failures of the items that PURGE_ITEMS is about to delete.
PURGE_FAILURES: Final = """
DELETE FROM failures WHERE failure_id IN (
    SELECT failures.failure_id FROM json_each(:found) AS found
    CROSS JOIN items ON items.seq = found.value
    CROSS JOIN failures ON failures.batch_id = items.batch_id AND failures.id = items.id
    WHERE items.status IN (SELECT value FROM json_each(:statuses))
        AND coalesce(items.completed_at, items.created_at) < :before)"""

# Delete items that still have one of the statuses and are older than a time. The trigger items_deleted corrects the total.
PURGE_ITEMS: Final = """
DELETE FROM items NOT INDEXED WHERE seq IN (SELECT value FROM json_each(:found))
    AND status IN (SELECT value FROM json_each(:statuses)) AND coalesce(completed_at, created_at) < :before"""
