"""The SQL of claims: claim, settle, checkpoint, fence."""

from __future__ import annotations

from typing import Final

from asyncrunner.sqlite.sql.bulk import BulkStatement

# --- the turn: claim --------------------------------------------------------------------------------------------

# Set due_at to NULL in items whose due time has passed. Then due_at is NULL in the items that may run now, and one range of the
# index has these items in claim order. A turn that claims one item promotes many, so that a priority holds among them. If more
# are due than it promotes, it takes the highest priorities first: it jumps from each priority of the waiting items to the next
# lower one, up to 1,000 times, and reads the due items of each priority in the order of their due times. CROSS JOIN keeps this
# order, so that LIMIT ends the search early; ORDER BY would read all due items.
PROMOTE_DUE: Final = """
UPDATE items SET due_at = NULL WHERE seq IN (
    WITH RECURSIVE levels (level) AS (
        SELECT (SELECT priority FROM items INDEXED BY items_due
            WHERE batch_id = ?1 AND status = 'pending' AND due_at IS NOT NULL ORDER BY priority DESC LIMIT 1)
        WHERE EXISTS (SELECT 1 FROM items
            WHERE batch_id = ?1 AND status = 'pending' AND status <> 'completed' AND due_at <= ?2)
        UNION ALL
        SELECT (SELECT priority FROM items INDEXED BY items_due
            WHERE batch_id = ?1 AND status = 'pending' AND due_at IS NOT NULL AND priority < level ORDER BY priority DESC LIMIT 1)
        FROM levels WHERE level IS NOT NULL
        LIMIT 1000
    )
    SELECT items.seq FROM levels CROSS JOIN items INDEXED BY items_due
    WHERE items.batch_id = ?1 AND items.status = 'pending' AND items.priority = level AND items.due_at <= ?2
    LIMIT ?3)"""

# Do the same for the items that became due first: of more than 1,000 priorities, the highest 1,000 have no due item.
PROMOTE_EARLIEST: Final = """
UPDATE items SET due_at = NULL WHERE seq IN (
    SELECT seq FROM items
    WHERE batch_id = ? AND status = 'pending' AND status <> 'completed' AND due_at <= ?
    ORDER BY due_at LIMIT ?)"""

# The items to claim, with their values after the claim, as one JSON text: one row per item would take one step per item, see
# bulk.py. Suspects are claimed by another statement.
CLAIMABLE: Final = """
SELECT
    json_group_array(json_array(
        seq, batch_id, id, payload, claim % 9223372036854775807 + 1, min(attempts + 1, ?), crashes, checkpoint, put_off_at,
        traceparent))
FROM (
    SELECT * FROM items
    WHERE batch_id = ? AND status = 'pending' AND status <> 'completed' AND due_at IS NULL AND suspect = 0
    ORDER BY priority DESC, seq LIMIT ?)"""

# The seqs of the items to claim, without payloads, if the items do not fit into one text.
CLAIMABLE_SEQS: Final = """
SELECT json_group_array(seq) FROM (
    SELECT seq FROM items
    WHERE batch_id = ? AND status = 'pending' AND status <> 'completed' AND due_at IS NULL AND suspect = 0
    ORDER BY priority DESC, seq LIMIT ?)"""

# The next suspect to claim: the least suspicious one, because only isolated suspects delay other items.
CLAIMABLE_SUSPECT: Final = """
SELECT json_array(seq), suspect FROM items INDEXED BY items_suspect
WHERE batch_id = ? AND suspect > 0 AND status = 'pending' AND (due_at IS NULL OR due_at <= ?)
ORDER BY suspect, priority DESC, seq LIMIT 1"""

# Claim items for a worker. %: after the largest number, which only a person writes, follows 1; claim + 1 would be a REAL, which
# the column cannot store. min(): an item that an operator set to pending after its last attempt gets one more attempt.
# result_claim: the pieces of an earlier large result belong to an earlier claim, until a new result replaces them. due_at is NULL
# in these items; setting it would cost 0.3 us an item, because a trigger reads it.
CLAIM: Final = """
UPDATE items SET
    status = 'processing', attempts = min(attempts + 1, ?), claim = claim % 9223372036854775807 + 1, worker_id = ?,
    started_at = ?, completed_at = NULL, permanent = 0, version = ?,
    result_claim = CASE WHEN result = '' THEN coalesce(result_claim, claim) END
WHERE seq IN (SELECT value FROM json_each(?))"""

# Claim items that may have a due time, which has passed.
CLAIM_DUE: Final = """
UPDATE items SET
    status = 'processing', attempts = min(attempts + 1, ?), claim = claim % 9223372036854775807 + 1, worker_id = ?,
    started_at = ?, completed_at = NULL, permanent = 0, version = ?, due_at = NULL,
    result_claim = CASE WHEN result = '' THEN coalesce(result_claim, claim) END
WHERE seq IN (SELECT value FROM json_each(?))"""

# The claimed items of a list of seqs, in the order of the list, which is the claim order.
CLAIMED_ROWS: Final = """
SELECT
    items.seq, items.batch_id, items.id, items.payload, items.claim, items.attempts, items.crashes, items.checkpoint,
    items.put_off_at, items.traceparent, items.suspect
FROM json_each(?) AS claimed CROSS JOIN items ON items.seq = claimed.value ORDER BY claimed.key"""

# Whether a batch has pending or processing items.
UNFINISHED: Final = """
SELECT EXISTS (SELECT 1 FROM items WHERE batch_id = ?1 AND status = 'pending' AND status <> 'completed')
    OR EXISTS (SELECT 1 FROM items WHERE batch_id = ?1 AND status = 'processing' AND status <> 'completed')"""

# When the next waiting item becomes due.
NEXT_DUE: Final = """
SELECT (SELECT due_at FROM items
        WHERE batch_id = ? AND status = 'pending' AND status <> 'completed' AND due_at IS NOT NULL
        ORDER BY due_at LIMIT 1)"""

# Of a list of batches: whether an item is due, and whether one is unfinished.
OPEN_STATES: Final = """
SELECT value,
    EXISTS (SELECT 1 FROM items WHERE batch_id = value AND status = 'pending' AND status <> 'completed' AND due_at IS NULL)
        OR EXISTS (SELECT 1 FROM items WHERE batch_id = value AND status = 'pending' AND status <> 'completed' AND due_at <= ?2),
    EXISTS (SELECT 1 FROM items WHERE batch_id = value AND status = 'pending' AND status <> 'completed')
        OR EXISTS (SELECT 1 FROM items WHERE batch_id = value AND status = 'processing' AND status <> 'completed')
FROM json_each(?1)"""

# --- the turn: claim only what a run was given -------------------------------------------------------------------
# The table is of one connection. It has the items that the run was given and that have not ended, as far as this connection
# knows: a turn removes the items that it settles, and some that other processes settled.

# Create the table of the given items.
CREATE_GIVEN: Final = "CREATE TEMP TABLE IF NOT EXISTS given (seq INTEGER PRIMARY KEY)"

# Add items to the given items.
GIVE: Final = "INSERT OR IGNORE INTO temp.given SELECT value FROM json_each(?)"

# Remove the items of a list of seqs that have ended or were deleted.
REMOVE_ENDED: Final = """
DELETE FROM temp.given WHERE seq IN (SELECT value FROM json_each(?))
    AND NOT EXISTS (SELECT 1 FROM items WHERE items.seq = given.seq AND status IN ('pending', 'processing'))"""

# Remove those of the first given items that have ended or were deleted.
REMOVE_FIRST_ENDED: Final = """
DELETE FROM temp.given WHERE seq IN (SELECT seq FROM temp.given ORDER BY seq LIMIT ?)
    AND NOT EXISTS (SELECT 1 FROM items WHERE items.seq = given.seq AND status IN ('pending', 'processing'))"""

# The seqs of the given items to claim: the highest priorities of a window, which begins with the items that were added first.
CLAIMABLE_GIVEN: Final = """
SELECT json_group_array(seq) FROM (
    SELECT seq FROM (
        SELECT items.seq, priority FROM temp.given AS given CROSS JOIN items ON items.seq = given.seq
        WHERE batch_id = ? AND status = 'pending' AND (due_at IS NULL OR due_at <= ?) AND suspect = 0
        ORDER BY given.seq LIMIT ?)
    ORDER BY priority DESC, seq LIMIT ?)"""

# The next given suspect to claim, as CLAIMABLE_SUSPECT.
CLAIMABLE_GIVEN_SUSPECT: Final = """
SELECT json_array(seq), suspect FROM items INDEXED BY items_suspect
WHERE batch_id = ? AND suspect > 0 AND status = 'pending' AND (due_at IS NULL OR due_at <= ?)
    AND EXISTS (SELECT 1 FROM temp.given AS given WHERE given.seq = items.seq)
ORDER BY suspect, priority DESC, seq LIMIT 1"""

# Whether a given item is pending or processing, in any worker.
GIVEN_UNFINISHED: Final = """
SELECT EXISTS (
    SELECT 1 FROM temp.given AS given CROSS JOIN items ON items.seq = given.seq
    WHERE batch_id = ? AND status IN ('pending', 'processing'))"""

# When the next waiting given item becomes due.
GIVEN_NEXT_DUE: Final = """
SELECT min(due_at) FROM temp.given AS given CROSS JOIN items ON items.seq = given.seq
WHERE batch_id = ? AND status = 'pending' AND due_at > ?"""

# --- the turn: settle. The WHERE is the fence: only the holder of the current claim changes a row ----------------
# The first two columns of each row are seq and claim. A requested rerun fails the fence too: this check reads a column of the row
# that the statement changes, so an item costs no further lookup. RERUN_REQUESTED finds the few items that fail for that reason.

# Store results, and record the items as completed.
SETTLE_COMPLETED: Final = BulkStatement(
    """
UPDATE items SET
    status = 'completed', started_at = column3, completed_at = column4, result = column5, result_claim = NULL, error = NULL
FROM (VALUES {rows}) WHERE seq = column1 AND claim = column2 AND status = 'processing' AND rerun_payload IS NULL""",
    columns=5,
)

# Return items to pending for another attempt.
SETTLE_RETRYING: Final = BulkStatement(
    """
UPDATE items SET
    status = 'pending', worker_id = NULL, started_at = column3, due_at = column4, error = column5,
    crashes = min(crashes + column6, 9223372036854775807), suspect = column7, attempts = max(attempts - column8, 0),
    put_off_at = CASE WHEN column6 = 0 THEN NULL ELSE put_off_at END
FROM (VALUES {rows}) WHERE seq = column1 AND claim = column2 AND status = 'processing' AND rerun_payload IS NULL""",
    columns=8,
)

# Return items to pending that a service or their handler put off, with the attempt refunded.
SETTLE_PUT_OFF: Final = BulkStatement(
    """
UPDATE items SET
    status = 'pending', worker_id = NULL, started_at = column3, due_at = column4, error = column5,
    put_offs = min(put_offs + 1, 9223372036854775807),
    put_off_at = coalesce(put_off_at, column6), attempts = max(attempts - 1, 0), suspect = 0
FROM (VALUES {rows}) WHERE seq = column1 AND claim = column2 AND status = 'processing' AND rerun_payload IS NULL""",
    columns=6,
)

# Record failures after which an item is not retried.
SETTLE_FAILED: Final = BulkStatement(
    """
UPDATE items SET
    status = 'failed', started_at = column3, completed_at = column4, error = column5, permanent = column6,
    crashes = min(crashes + column7, 9223372036854775807), suspect = 2 * column7, fingerprint = column8, put_off_at = NULL
FROM (VALUES {rows}) WHERE seq = column1 AND claim = column2 AND status = 'processing' AND rerun_payload IS NULL""",
    columns=8,
)

# Release items: return them to pending, with the attempt refunded.
SETTLE_RELEASED: Final = BulkStatement(
    """
UPDATE items SET status = 'pending', worker_id = NULL, started_at = NULL, attempts = max(attempts - 1, 0)
FROM (VALUES {rows}) WHERE seq = column1 AND claim = column2 AND status = 'processing' AND rerun_payload IS NULL""",
    columns=2,
)

# Record cancelled items.
SETTLE_CANCELLED: Final = BulkStatement(
    """
UPDATE items SET status = 'cancelled', started_at = column3, completed_at = column4, rerun_payload = NULL
FROM (VALUES {rows}) WHERE seq = column1 AND claim = column2 AND status = 'processing'""",
    columns=4,
)

# Of a list of [seq, claim number], the index and the seq of each current claim whose item runs once more after its attempt.
RERUN_REQUESTED: Final = """
SELECT held.key, items.seq
FROM json_each(?) AS held CROSS JOIN items ON items.seq = json_extract(held.value, '$[0]')
WHERE items.claim = json_extract(held.value, '$[1]') AND items.status = 'processing' AND items.rerun_payload IS NOT NULL"""

# Run items once more with the payload of the request, in place of the outcome of their attempt. The request has already set
# priority and due_at. An earlier result stays if its payload does.
RERUN: Final = """
UPDATE items SET
    payload = rerun_payload, rerun_payload = NULL, status = 'pending', attempts = 0, crashes = 0, permanent = 0, suspect = 0,
    worker_id = NULL, started_at = NULL, completed_at = NULL, result = CASE WHEN rerun_payload = payload THEN result END,
    error = NULL, checkpoint = NULL, put_off_at = NULL
WHERE seq IN (SELECT value FROM json_each(?))"""

# Store the checkpoints of handlers.
SAVE_CHECKPOINT: Final = BulkStatement(
    """
UPDATE items SET checkpoint = column3
FROM (VALUES {rows}) WHERE seq = column1 AND claim = column2 AND status = 'processing'""",
    columns=3,
)

# Record failed attempts.
INSERT_FAILURES: Final = BulkStatement(
    """
INSERT INTO failures (batch_id, id, attempt, claim, failed_at, error_type, message, traceback, fingerprint, started_at, duration)
SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL""",
    columns=11,
)

# The indexes in a list of [seq, claim number] of the claims that are no longer current, with the item's status now.
LOST_CLAIMS: Final = """
SELECT held.key, items.status
FROM json_each(?) AS held LEFT JOIN items ON items.seq = json_extract(held.value, '$[0]')
WHERE items.claim IS NOT json_extract(held.value, '$[1]') OR items.status <> 'processing'"""
