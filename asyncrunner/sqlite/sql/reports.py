"""The SQL of reports: turns, rates, failures by cause."""

from __future__ import annotations

from typing import Final

NEXT_TURN_NUMBER: Final = "UPDATE batches SET turns = turns + 1 WHERE batch_id = ? RETURNING turns"

RECORD_TURN: Final = """
INSERT OR REPLACE INTO turns (batch_id, ring, number, at, completed, failed, retried, durations)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""

# The index items_failed alone gives the groups. Items that an operator set to failed have no fingerprint; they are grouped by
# error.
FAILURE_GROUPS: Final = """
SELECT cause, failed, id, error FROM (
    SELECT fingerprint AS cause, count(*) AS failed, min(seq) AS first FROM items INDEXED BY items_failed
    WHERE batch_id = ?1 AND status = 'failed' AND fingerprint IS NOT NULL GROUP BY fingerprint
    UNION ALL
    SELECT NULL, count(*), min(seq) FROM items INDEXED BY items_failed
    WHERE batch_id = ?1 AND status = 'failed' AND fingerprint IS NULL GROUP BY error
    ORDER BY 2 DESC, 3 LIMIT ?2) JOIN items ON seq = first
ORDER BY failed DESC, first"""

DATA_VERSION: Final = "PRAGMA data_version"

RECENT_TURNS: Final = """
SELECT at, completed, failed, retried, durations FROM turns WHERE batch_id = ? ORDER BY number DESC"""

STUCK: Final = """
SELECT id, worker_id, started_at, attempts FROM items
WHERE batch_id = ? AND status = 'processing' AND status <> 'completed' AND started_at < ?
ORDER BY started_at LIMIT ?"""

PROCESSING_STARTS: Final = """
SELECT started_at FROM items
WHERE batch_id = ? AND status = 'processing' AND status <> 'completed' ORDER BY seq DESC LIMIT ?"""
