"""The SQL of items: insert, cancel, reopen, read, large results, purge."""

from __future__ import annotations

from typing import Final

from asyncrunner.sqlite.sql.bulk import BulkStatement

CHECKPOINT_BYTES: Final = 6_000_000
"""WAL size that triggers a WAL checkpoint while pieces are stored; a checkpoint at the usual size would block all writers."""

IN_PIECES: Final = ""
"""The ``result`` of an item whose result is stored in pieces."""

RESULT: Final = """
    CASE WHEN result = '' THEN (
        SELECT group_concat(text, '') FROM (
            SELECT text FROM result_pieces WHERE result_pieces.seq = items.seq AND result_pieces.claim = items.claim
            ORDER BY piece)
    ) ELSE result END"""
"""The SQL expression for an item's whole result, joined from its pieces where necessary."""

KEPT: Final = """
SELECT claim, (SELECT count(*) FROM result_pieces WHERE result_pieces.seq = items.seq AND result_pieces.claim = items.claim),
    completed_at
FROM items WHERE seq = ? AND result = ''"""

PIECE: Final = "SELECT text FROM result_pieces WHERE seq = ? AND claim = ? AND piece = ?"

KEEP: Final = """
INSERT OR REPLACE INTO result_pieces (seq, claim, piece, text)
SELECT ?1, ?2, ?3, ?4 WHERE EXISTS (SELECT 1 FROM items WHERE seq = ?1 AND claim = ?2 AND status = 'processing')"""

# Pieces without an item that uses them. SQLite reads only the index of result_pieces, not the texts.
STRAY: Final = """
SELECT result_pieces.rowid FROM result_pieces
WHERE NOT EXISTS (
    SELECT 1 FROM items WHERE items.seq = result_pieces.seq AND items.claim = result_pieces.claim
        AND (status = 'processing' OR result = ''))"""

SWEEP: Final = f"DELETE FROM result_pieces WHERE rowid IN ({STRAY} LIMIT ?)"  # noqa: S608 - made of constants only

# --- adding items -----------------------------------------------------------------------------------------------

INSERT_ITEMS: Final = BulkStatement(
    """
INSERT INTO items (batch_id, id, priority, due_at, created_at, payload, claim)
SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL
ON CONFLICT (batch_id, id) DO NOTHING""",
    columns=7,
)

LAST_NUMBER: Final = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'items'"

# An insert uses up a seq even if its key exists, so adding a batch again would use up one seq per item. This frees the
# seqs that no row ever had.
FREE_NUMBERS: Final = """
UPDATE sqlite_sequence SET seq = max(?, (SELECT coalesce(max(seq), 0) FROM items)) WHERE name = 'items'"""

PAYLOADS_OF_KEYS: Final = """
SELECT id, payload, status = 'completed' FROM items WHERE batch_id = ? AND id IN (SELECT value FROM json_each(?))"""

# The new claim number fences off a worker that holds the item now.
REPLACE_PAYLOAD: Final = """
UPDATE items SET
    payload = ?, priority = ?, due_at = ?, status = 'pending', attempts = 0, crashes = 0, claim = claim + 1,
    permanent = 0, suspect = 0, worker_id = NULL, started_at = NULL, completed_at = NULL, result = NULL, error = NULL,
    checkpoint = NULL
WHERE batch_id = ? AND id = ?"""

REOPEN_FAILED: Final = """
UPDATE items SET status = 'pending', due_at = NULL, worker_id = NULL, completed_at = NULL
WHERE batch_id = ? AND status = 'failed' AND status <> 'completed' AND permanent = 0 AND attempts < ?"""

REOPEN_ALL_FAILED: Final = """
UPDATE items SET
    status = 'pending', due_at = NULL, worker_id = NULL, completed_at = NULL, attempts = 0, crashes = 0, permanent = 0,
    suspect = 0
WHERE batch_id = ? AND status = 'failed' AND status <> 'completed'"""

# --- cancelling items, reading items and controls ---------------------------------------------------------------

# The new claim number fences off a worker that holds the item now.
CANCEL: Final = """
UPDATE items SET status = 'cancelled', claim = claim + 1, worker_id = NULL, due_at = NULL, completed_at = ?
WHERE batch_id = ? AND id IN (SELECT value FROM json_each(?)) AND status IN ('pending', 'processing')"""

ITEMS_BY_ID: Final = """
SELECT seq, id, status, attempts, payload, result, error, started_at, completed_at FROM items
WHERE batch_id = ? AND id IN (SELECT value FROM json_each(?))"""

# --- reports ----------------------------------------------------------------------------------------------------

# One statement, so that all counts come from one snapshot.
COUNTS: Final = """
SELECT
    (SELECT total FROM batches WHERE batch_id = :batch_id),
    (SELECT count(*) FROM items WHERE batch_id = :batch_id AND status = 'pending' AND status <> 'completed'),
    (SELECT count(*) FROM items
     WHERE batch_id = :batch_id AND status = 'pending' AND status <> 'completed' AND due_at > :now),
    (SELECT count(*) FROM items WHERE batch_id = :batch_id AND status = 'processing' AND status <> 'completed'),
    (SELECT count(*) FROM items WHERE batch_id = :batch_id AND status = 'failed' AND status <> 'completed'),
    (SELECT count(*) FROM items WHERE batch_id = :batch_id AND status = 'cancelled' AND status <> 'completed')"""

ROWS: Final = """
SELECT seq, id, status, attempts, payload, result, error, started_at, completed_at FROM items
WHERE seq > ? AND batch_id = ? ORDER BY seq LIMIT ?"""

# The same, with results joined from their pieces.
WHOLE_ROWS: Final = ROWS.replace("result", RESULT, 1)

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
