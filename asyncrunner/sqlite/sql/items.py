"""The SQL of items: insert, reopen, cancel, read, delete."""

from __future__ import annotations

from typing import Final

from asyncrunner.sqlite.sql.bulk import BulkStatement

# --- inserting items --------------------------------------------------------------------------------------------

# Insert the items whose key is new.
INSERT_ITEMS: Final = BulkStatement(
    """
INSERT INTO items (batch_id, id, payload, priority, due_at, created_at, claim)
SELECT ?1, column1, column2, column3, column4, ?2, 0 FROM (VALUES {rows}) WHERE column1 IS NOT NULL
ON CONFLICT (batch_id, id) DO NOTHING""",
    columns=4,
)

# Insert the items whose key is new, claimed by a worker: the row is what INSERT_ITEMS and CLAIM would make of it.
INSERT_CLAIMED: Final = BulkStatement(
    """
INSERT INTO items (batch_id, id, payload, priority, created_at, claim, status, attempts, worker_id, started_at, version)
SELECT ?1, column1, column2, ?2, ?3, 1, 'processing', 1, ?4, ?3, (SELECT version_number FROM batches WHERE batch_id = ?1)
FROM (VALUES {rows}) WHERE column1 IS NOT NULL
ON CONFLICT (batch_id, id) DO NOTHING""",
    columns=2,
)

# Store the trace context of the submit with the items that the transaction has inserted. It is not a column of the insert,
# because the other submits would pay for it.
SET_TRACEPARENT: Final = "UPDATE items SET traceparent = ? WHERE seq > ?"

# The last seq that SQLite gave to an item, or a larger one that a person gave with an UPDATE, which sqlite_sequence does not
# record.
LAST_SEQ: Final = """
SELECT max(
    coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = 'items'), 0), coalesce((SELECT max(seq) FROM items), 0))"""

# Before an insert: LAST_SEQ; whether the first key exists; and the number of the version of the batch, if a worker may claim
# new items of the batch with the add: the worker was not declared lost, the batch is not paused, stopped or resting, and no
# other item of it is due.
BEFORE_INSERT: Final = """
SELECT
    max(coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = 'items'), 0), coalesce((SELECT max(seq) FROM items), 0)),
    EXISTS (SELECT 1 FROM items WHERE batch_id = ?1 AND id = ?2),
    (SELECT version_number FROM batches
     WHERE batch_id = ?1 AND paused = 0 AND stopped IS NULL AND (cooldown_until IS NULL OR cooldown_until <= ?3)
        AND EXISTS (SELECT 1 FROM workers WHERE worker_id = ?4 AND ended_at IS NULL)
        AND NOT EXISTS (SELECT 1 FROM items
            WHERE batch_id = ?1 AND status = 'pending' AND status <> 'completed' AND due_at IS NULL)
        AND NOT EXISTS (SELECT 1 FROM items
            WHERE batch_id = ?1 AND status = 'pending' AND status <> 'completed' AND due_at <= ?3))"""

# Free the seqs that no row ever had. An insert consumes a seq even if its key exists, so adding the same items again would
# consume one seq per item.
FREE_UNUSED_SEQS: Final = """
UPDATE sqlite_sequence SET seq = max(?, (SELECT coalesce(max(seq), 0) FROM items)) WHERE name = 'items'"""

# Of keys and payloads: the seq of the item that has both, as a JSON array with null where there is none. A requested rerun has
# the newest payload. One row for each block: one row for each item would take one step for each, see bulk.py.
SAME_ITEMS: Final = BulkStatement(
    """
SELECT ?1, json_group_array(CASE WHEN coalesce(rerun_payload, payload) = column2 THEN seq END)
FROM (VALUES {rows}) LEFT JOIN items ON items.batch_id = ?1 AND items.id = column1""",
    columns=2,
)

# The payloads of a list of keys, whether each item is completed, and the seqs. A requested rerun has the newest payload.
PAYLOADS_OF_KEYS: Final = """
SELECT id, coalesce(rerun_payload, payload), status = 'completed', seq FROM items
WHERE batch_id = ? AND id IN (SELECT value FROM json_each(?))"""

# Replace the payload of an item that no worker holds, and run the item again.
REPLACE_PAYLOAD: Final = """
UPDATE items SET
    payload = ?, priority = ?, due_at = ?, status = 'pending', attempts = 0, crashes = 0, claim = claim % 9223372036854775807 + 1,
    permanent = 0, suspect = 0, worker_id = NULL, started_at = NULL, completed_at = NULL, result = NULL, error = NULL,
    checkpoint = NULL, put_off_at = NULL, rerun_payload = NULL, traceparent = ?
WHERE batch_id = ? AND id = ? AND status <> 'processing'"""

# Request that an item runs once more after its current attempt. A newer request replaces an older one.
REQUEST_RERUN: Final = """
UPDATE items SET rerun_payload = ?, priority = ?, due_at = ?, traceparent = ?
WHERE batch_id = ? AND id = ? AND status = 'processing'"""

# --- changing items ---------------------------------------------------------------------------------------------

# The seqs of the failed items that have attempts left and no permanent error.
REOPENABLE_SEQS: Final = """
SELECT seq FROM items WHERE batch_id = ? AND status = 'failed' AND status <> 'completed' AND permanent = 0 AND attempts < ?"""

# Reset to pending the items of a list that are still failed, with attempts left and no permanent error.
REOPEN_FAILED: Final = """
UPDATE items SET status = 'pending', due_at = NULL, worker_id = NULL, completed_at = NULL, put_off_at = NULL
WHERE seq IN (SELECT value FROM json_each(?)) AND status = 'failed' AND permanent = 0 AND attempts < ?"""

# Reset items to pending, with fresh attempts, if they still have one of the statuses.
REOPEN: Final = """
UPDATE items SET
    status = 'pending', due_at = NULL, worker_id = NULL, completed_at = NULL, attempts = 0, crashes = 0, permanent = 0,
    suspect = 0, put_off_at = NULL
WHERE seq IN (SELECT value FROM json_each(:seqs)) AND status IN (SELECT value FROM json_each(:statuses))"""

# Make finished items pending, with fresh attempts and without a checkpoint, if they still have one of the statuses. The earlier
# result stays until a new one replaces it.
RUN_AGAIN: Final = """
UPDATE items SET
    status = 'pending', due_at = NULL, worker_id = NULL, started_at = NULL, completed_at = NULL, attempts = 0, crashes = 0,
    permanent = 0, suspect = 0, error = NULL, checkpoint = NULL, put_off_at = NULL
WHERE seq IN (SELECT value FROM json_each(:seqs)) AND status IN (SELECT value FROM json_each(:statuses))"""

# Request that items run once more, with the same payload, after their current attempt. An earlier request stays.
RUN_AGAIN_AFTER_ATTEMPT: Final = """
UPDATE items SET rerun_payload = payload
WHERE seq IN (SELECT value FROM json_each(?)) AND status = 'processing' AND rerun_payload IS NULL"""

# Make pending the items of a list that another version completed, as RUN_AGAIN does, unless the version has changed since.
RUN_AGAIN_OTHER_VERSION: Final = """
UPDATE items SET
    status = 'pending', due_at = NULL, worker_id = NULL, started_at = NULL, completed_at = NULL, attempts = 0, crashes = 0,
    permanent = 0, suspect = 0, error = NULL, checkpoint = NULL, put_off_at = NULL
WHERE seq IN (SELECT value FROM json_each(?1)) AND status = 'completed' AND version <> ?2
    AND (SELECT version_number FROM batches WHERE batches.batch_id = items.batch_id) = ?2"""

# The last seq of a window of items in input order, and the seqs of the items in it that another version of the batch completed.
COMPLETED_BY_OTHER_VERSION: Final = """
SELECT max(seq), json_group_array(seq) FILTER (WHERE batch_id = :batch_id AND status = 'completed' AND version <> :version)
FROM (SELECT seq, batch_id, status, version FROM items WHERE seq > :after ORDER BY seq LIMIT :limit)"""

# Cancel items that still have one of the statuses. The new claim number fences off a worker that holds the item now. A requested
# rerun is cancelled too. An earlier result in pieces keeps its claim.
CANCEL: Final = """
UPDATE items SET
    status = 'cancelled', claim = claim % 9223372036854775807 + 1, worker_id = NULL, due_at = NULL,
    completed_at = :now, rerun_payload = NULL,
    result_claim = CASE WHEN result = '' THEN coalesce(result_claim, claim) END
WHERE seq IN (SELECT value FROM json_each(:seqs)) AND status IN (SELECT value FROM json_each(:statuses))"""

# The seqs of a batch's items with a given status, which is not completed.
OPEN_SEQS: Final = """
SELECT seq FROM items INDEXED BY items_open WHERE batch_id = ? AND status = ? AND status <> 'completed'"""

# The items of a list of keys that exist, in the order of the list.
EXISTING_KEYS: Final = """
SELECT items.seq, items.id, items.status FROM json_each(?) AS requested
JOIN items ON items.batch_id = ? AND items.id = requested.value ORDER BY requested.key"""

# --- reading items ----------------------------------------------------------------------------------------------

# Items by key. In place of a result stored in pieces, the row has the empty text.
ITEMS_BY_ID: Final = """
SELECT seq, id, status, attempts, payload, result, error, started_at, completed_at FROM items
WHERE batch_id = ? AND id IN (SELECT value FROM json_each(?))"""

# Items by seq. In place of a result stored in pieces, the row has the empty text.
ITEMS_BY_SEQ: Final = """
SELECT items.seq, items.id, status, attempts, payload, result, error, started_at, completed_at
FROM json_each(?) AS requested CROSS JOIN items ON items.seq = requested.value WHERE batch_id = ?"""

# Items by seq, with each result joined from its pieces; the empty text if pieces are missing.
WHOLE_ITEMS_BY_SEQ: Final = """
SELECT items.seq, items.id, status, attempts, payload,
    CASE WHEN result = '' THEN (
        SELECT CASE WHEN count(*) = max(piece) + 1 THEN group_concat(text, '') ELSE '' END FROM (
            SELECT piece, text FROM result_pieces
            WHERE result_pieces.seq = items.seq AND result_pieces.claim = coalesce(items.result_claim, items.claim)
            ORDER BY piece)
    ) ELSE result END,
    error, started_at, completed_at
FROM json_each(?) AS requested CROSS JOIN items ON items.seq = requested.value WHERE batch_id = ?"""

# A page of items in input order. In place of a result stored in pieces, the row has the empty text.
ROWS: Final = """
SELECT seq, id, status, attempts, payload, result, error, started_at, completed_at FROM items
WHERE seq > ? AND batch_id = ? ORDER BY seq LIMIT ?"""

# A page of items in input order, with each result joined from its pieces; the empty text if pieces are missing.
WHOLE_ROWS: Final = """
SELECT seq, id, status, attempts, payload,
    CASE WHEN result = '' THEN (
        SELECT CASE WHEN count(*) = max(piece) + 1 THEN group_concat(text, '') ELSE '' END FROM (
            SELECT piece, text FROM result_pieces
            WHERE result_pieces.seq = items.seq AND result_pieces.claim = coalesce(items.result_claim, items.claim)
            ORDER BY piece)
    ) ELSE result END,
    error, started_at, completed_at
FROM items
WHERE seq > ? AND batch_id = ? ORDER BY seq LIMIT ?"""

# The items with the given keys, with each result joined from its pieces; the empty text if pieces are missing.
WHOLE_ITEMS_BY_ID: Final = """
SELECT seq, id, status, attempts, payload,
    CASE WHEN result = '' THEN (
        SELECT CASE WHEN count(*) = max(piece) + 1 THEN group_concat(text, '') ELSE '' END FROM (
            SELECT piece, text FROM result_pieces
            WHERE result_pieces.seq = items.seq AND result_pieces.claim = coalesce(items.result_claim, items.claim)
            ORDER BY piece)
    ) ELSE result END,
    error, started_at, completed_at
FROM items
WHERE batch_id = ? AND id IN (SELECT value FROM json_each(?))"""

# The seq of the oldest item, or 0.
OLDEST_SEQ: Final = "SELECT coalesce(min(seq), 0) FROM items"

# The seq of the newest item, or 0.
NEWEST_SEQ: Final = "SELECT coalesce(max(seq), 0) FROM items"

# --- deleting items that ended long ago --------------------------------------------------------------------------

# The last seq of a window of items in input order, and the number and the seqs of its completed items that have expired.
EXPIRED: Final = """
SELECT max(seq), total(is_due), json_group_array(seq) FILTER (WHERE is_due) FROM (
    SELECT seq, status = 'completed' AND completed_at < :before AND batch_id IN (SELECT value FROM json_each(:batches)) AS is_due
    FROM items WHERE seq > :after ORDER BY seq LIMIT :limit)"""

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
