"""The SQL of ``asyncrunner doctor``: find problems of a file, and correct totals."""

from __future__ import annotations

from typing import Final

# Tables, indexes and triggers with the text that created them.
SCHEMA_OBJECTS: Final = "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"

# Indexes and triggers with the text that creates them again.
INDEXES_AND_TRIGGERS: Final = """
SELECT type, name, sql FROM sqlite_schema WHERE type IN ('index', 'trigger') AND sql IS NOT NULL"""

# Check the pages of the file. Return at most 10 messages, because a damaged file has thousands.
QUICK_CHECK: Final = "PRAGMA quick_check(10)"

# Check the pages, and each index against its table, which takes minutes for a large file. Return at most 10 messages.
INTEGRITY_CHECK: Final = "PRAGMA integrity_check(10)"

# Rows that refer to a missing row.
FOREIGN_KEY_CHECK: Final = "PRAGMA foreign_key_check"

# Batches whose stored total differs from their number of items.
WRONG_TOTALS: Final = """
SELECT name, total, counted FROM (
    SELECT name, total, (SELECT count(*) FROM items WHERE items.batch_id = batches.batch_id) AS counted
    FROM batches WHERE ?1 IS NULL OR name = ?1)
WHERE total <> counted"""

# Correct the stored total of a batch.
CORRECT_TOTAL: Final = """
UPDATE batches SET total = (SELECT count(*) FROM items WHERE items.batch_id = batches.batch_id) WHERE name = ?"""

# Workers that have not left, with the number of items that each holds.
WORKERS_AND_HOLDINGS: Final = """
SELECT worker_id, host, pid,
    (SELECT count(*) FROM batches CROSS JOIN items
        ON items.batch_id = batches.batch_id AND items.status = 'processing' AND items.status <> 'completed'
     WHERE items.worker_id = workers.worker_id)
FROM workers WHERE ended_at IS NULL ORDER BY started_at"""

# Batches that start no items, because an operator paused them or a guardrail stopped them.
PAUSED_OR_STOPPED: Final = """
SELECT name, paused, stopped FROM batches WHERE (paused OR stopped IS NOT NULL) AND (?1 IS NULL OR name = ?1)"""
