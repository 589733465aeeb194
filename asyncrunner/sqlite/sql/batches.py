"""The SQL of batches: options, totals, live controls, and the rows of a batch that is copied to another store."""

from __future__ import annotations

from typing import Final

# Create a batch, or update its handler and options and end its stop; return its id. No row: its copy is not complete.
UPSERT_BATCH: Final = """
INSERT INTO batches (name, handler, options, created_at) VALUES (?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET handler = excluded.handler, options = excluded.options, stopped = NULL
WHERE NOT EXISTS (SELECT 1 FROM copies WHERE copies.batch_id = batches.batch_id AND finished_at IS NULL)
RETURNING batch_id"""

# The id of a batch by its name.
BATCH_ID: Final = "SELECT batch_id FROM batches WHERE name = ?"

# The names of all batches.
BATCH_NAMES: Final = "SELECT name FROM batches ORDER BY name"

# The name and the options of a batch by its id.
BATCH_BY_ID: Final = "SELECT name, options FROM batches WHERE batch_id = ?"

# All batches, or one by its name, with their live controls, and the source of a copy that is not complete.
BATCHES: Final = """
SELECT batch_id, name, handler, created_at, paused, cooldown_until, concurrency, stopped, put_offs, version,
    (SELECT source FROM copies WHERE copies.batch_id = batches.batch_id AND finished_at IS NULL)
FROM batches WHERE ?1 IS NULL OR name = ?1 ORDER BY batch_id"""

# The names and the sources of those batches of a list whose copy is not complete.
INCOMPLETE_COPIES: Final = """
SELECT name, source FROM copies JOIN batches USING (batch_id)
WHERE finished_at IS NULL AND name IN (SELECT value FROM json_each(?))"""

# Add new items to the stored total of a batch.
ADD_TO_TOTAL: Final = "UPDATE batches SET total = total + ? WHERE batch_id = ?"

# The controls that a turn must obey, and the number of the batch's version.
CONTROLS: Final = """
SELECT paused, stopped, cooldown_until, concurrency, rate_spent, version_number FROM batches WHERE batch_id = ?"""

# The controls that running workers obey: whether to start no items, and the concurrency. A deleted batch has no row.
LIVE_CONTROLS: Final = """
SELECT batch_id, paused OR stopped IS NOT NULL, concurrency FROM batches
WHERE batch_id IN (SELECT value FROM json_each(?))"""

# The name of a batch, its version and the numbers of that version.
VERSION: Final = "SELECT name, version, version_number, version_applied FROM batches WHERE batch_id = ?"

# Give a batch another version.
SET_VERSION: Final = "UPDATE batches SET version = ?, version_number = version_number + 1 WHERE batch_id = ?"

# Record that the items which another version completed are pending, unless the version has changed again.
VERSION_APPLIED: Final = "UPDATE batches SET version_applied = ?1 WHERE batch_id = ?2 AND version_number = ?1"

# Stop a batch. A batch that is already stopped keeps its reason.
STOP: Final = "UPDATE batches SET stopped = ? WHERE batch_id = ? AND stopped IS NULL"

# Record the time up to which the starts of the rate limit are used.
SPEND_RATE: Final = "UPDATE batches SET rate_spent = ? WHERE batch_id = ?"

# Count put-offs of a batch's items.
COUNT_PUT_OFFS: Final = "UPDATE batches SET put_offs = put_offs + ? WHERE batch_id = ?"

# Start no items until a time, or until the stored time if that is later.
COOL_DOWN: Final = """
UPDATE batches SET cooldown_until = max(coalesce(cooldown_until, ''), ?) WHERE batch_id = ?"""

# --- copying a batch to or from another store ---------------------------------------------------------------------

# A batch with its options, version and controls.
COPIED_BATCH: Final = """
SELECT batch_id, name, handler, options, created_at, paused, cooldown_until, concurrency, stopped, rate_spent, put_offs, version,
    version_number, version_applied
FROM batches WHERE batch_id = ?"""

# Items in input order, after a seq.
COPIED_ITEMS: Final = """
SELECT seq, id, status, attempts, crashes, claim, worker_id, priority, permanent, suspect, due_at, created_at, started_at,
    completed_at, payload, result, error, checkpoint, fingerprint, put_offs, put_off_at, rerun_payload, version, result_claim,
    traceparent
FROM items NOT INDEXED WHERE seq > ? AND batch_id = ? ORDER BY seq"""

# Records of failures in the order of their numbers, after a number.
COPIED_FAILURES: Final = """
SELECT failure_id, id, attempt, claim, failed_at, error_type, message, traceback, fingerprint, started_at, duration
FROM failures NOT INDEXED WHERE failure_id > ? AND batch_id = ? ORDER BY failure_id"""

# Pieces of large results, after a piece. The result of an item that runs once more with another payload is not copied.
COPIED_PIECES: Final = """
SELECT result_pieces.seq, items.id, piece, text FROM result_pieces CROSS JOIN items ON items.seq = result_pieces.seq
WHERE (result_pieces.seq, piece) > (?1, ?2) AND result_pieces.seq >= ?1
    AND batch_id = ?3 AND result = '' AND result_pieces.claim = coalesce(result_claim, items.claim)
    AND NOT (status = 'processing' AND rerun_payload IS NOT NULL AND rerun_payload <> payload)
ORDER BY result_pieces.seq, result_pieces.claim, piece LIMIT ?4"""

# How many rows a batch has: items by state, attempts, failures, pieces. Items in processing count as pending.
COPY_TOTALS: Final = """
SELECT count(CASE WHEN status IN ('pending', 'processing') THEN 1 END), count(CASE WHEN status = 'completed' THEN 1 END),
    count(CASE WHEN status = 'failed' THEN 1 END), count(CASE WHEN status = 'cancelled' THEN 1 END),
    total(CASE WHEN status <> 'processing' THEN attempts WHEN rerun_payload IS NULL THEN max(attempts - 1, 0) ELSE 0 END),
    (SELECT count(*) FROM failures WHERE batch_id = ?1),
    (SELECT count(*) FROM result_pieces CROSS JOIN items ON items.seq = result_pieces.seq
     WHERE batch_id = ?1 AND result = '' AND result_pieces.claim = coalesce(result_claim, items.claim)
        AND NOT (status = 'processing' AND rerun_payload IS NOT NULL AND rerun_payload <> payload))
FROM items NOT INDEXED WHERE batch_id = ?1"""

# The state of a copy, by the name of the batch; without a source if no copy began the batch.
COPY_STATE: Final = """
SELECT batches.batch_id, source, identity, coalesce(reached, ''), finished_at, total, coalesce(copied, 0)
FROM batches LEFT JOIN copies USING (batch_id) WHERE name = ?"""

# Create a batch that no worker serves before its copy is complete.
BEGIN_BATCH: Final = """
INSERT INTO batches (name, handler, options, created_at, paused, stopped, rate_spent, put_offs, version, version_number,
    version_applied)
VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?) RETURNING batch_id"""

# Record the beginning of a copy.
BEGIN_COPY: Final = "INSERT INTO copies (batch_id, source, identity, reached) VALUES (?, ?, ?, '')"

# Move the position of a copy, if it is the expected one, and count the items that are stored.
MOVE_COPY: Final = """
UPDATE copies SET reached = ?, copied = copied + ? WHERE batch_id = ? AND reached = ? AND finished_at IS NULL"""

# The position of a copy.
REACHED: Final = "SELECT reached FROM copies WHERE batch_id = ?"

# Pause a batch again, if an operator has resumed it before its copy is complete.
BLOCK_COPY: Final = "UPDATE batches SET paused = 1 WHERE batch_id = ? AND paused = 0"

# The keys of a list that a batch has.
COPIED_KEYS: Final = "SELECT id FROM items WHERE batch_id = ? AND id IN (SELECT value FROM json_each(?)) LIMIT 1"

# Insert a copied item.
INSERT_COPIED_ITEM: Final = """
INSERT INTO items (seq, batch_id, id, status, attempts, crashes, claim, worker_id, priority, permanent, suspect, due_at,
    created_at, started_at, completed_at, payload, result, error, checkpoint, fingerprint, put_offs, put_off_at, rerun_payload,
    version, result_claim, traceparent)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""

# Insert the record of a copied failure.
INSERT_COPIED_FAILURE: Final = """
INSERT INTO failures (batch_id, id, attempt, claim, failed_at, error_type, message, traceback, fingerprint, started_at, duration)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""

# Insert a piece of the large result of a copied item.
INSERT_COPIED_PIECE: Final = """
INSERT INTO result_pieces (seq, claim, piece, text)
SELECT seq, coalesce(result_claim, claim), ?, ? FROM items WHERE batch_id = ? AND id = ?"""

# Record that a copy is complete.
FINISH_COPY: Final = """
UPDATE copies SET finished_at = ? WHERE batch_id = ? AND reached = 'end' AND finished_at IS NULL"""

# Give a copied batch its controls.
FINISH_BATCH: Final = """
UPDATE batches SET paused = ?, cooldown_until = ?, concurrency = ?, stopped = ? WHERE batch_id = ?"""

# Begin to delete a copy that is not complete.
RESTART_COPY: Final = "UPDATE copies SET reached = 'restart' WHERE batch_id = ? AND finished_at IS NULL"

# Delete the records of failures of the next items of a batch.
DISCARD_FAILURES: Final = """
DELETE FROM failures WHERE failure_id IN (
    SELECT failure_id FROM items CROSS JOIN failures ON failures.batch_id = items.batch_id AND failures.id = items.id
    WHERE items.seq IN (SELECT seq FROM items WHERE batch_id = ? ORDER BY id LIMIT ?))"""

# Delete the next items of a batch.
DISCARD_ITEMS: Final = """
DELETE FROM items WHERE seq IN (SELECT seq FROM items WHERE batch_id = ? ORDER BY id LIMIT ?)"""

# Delete a batch without items; triggers delete its minutes and the row of its copy.
DISCARD_BATCH: Final = (
    "DELETE FROM failures WHERE batch_id = ?",
    "DELETE FROM turns WHERE batch_id = ?",
    "DELETE FROM batches WHERE batch_id = ?",
)
