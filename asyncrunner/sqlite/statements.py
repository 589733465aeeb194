"""The SQL statements of the store, each whole and named.

The statements for pieces are in pieces.py, those for purges in purging.py, those for operators in operating_statements.py.

The partial index ``items_open`` holds every item that is not completed. SQLite uses it only for a query that contains
``status <> 'completed'`` literally, so these queries contain it even where another condition makes it redundant.
"""

from __future__ import annotations

from typing import Final

from asyncrunner.sqlite.blocks import Blocks
from asyncrunner.sqlite.pieces import RESULT

# --- batches ----------------------------------------------------------------------------------------------------

UPSERT_BATCH: Final = """
INSERT INTO batches (name, handler, options, created_at) VALUES (?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET handler = excluded.handler, options = excluded.options, stopped = NULL
RETURNING batch_id"""

BATCH_ID: Final = "SELECT batch_id FROM batches WHERE name = ?"

BATCH_NAMES: Final = "SELECT name FROM batches ORDER BY name"

BATCH_BY_ID: Final = "SELECT name, options FROM batches WHERE batch_id = ?"

ADD_TO_TOTAL: Final = "UPDATE batches SET total = total + ? WHERE batch_id = ?"

CONTROLS: Final = "SELECT paused, stopped, cooldown_until, concurrency, rate_spent FROM batches WHERE batch_id = ?"

STOP: Final = "UPDATE batches SET stopped = ? WHERE batch_id = ? AND stopped IS NULL"

SPEND_RATE: Final = "UPDATE batches SET rate_spent = ? WHERE batch_id = ?"

COOL_DOWN: Final = """
UPDATE batches SET cooldown_until = max(coalesce(cooldown_until, ''), ?) WHERE batch_id = ?"""

# --- adding items -----------------------------------------------------------------------------------------------

INSERT_ITEMS: Final = Blocks(
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

# --- the turn: claim --------------------------------------------------------------------------------------------

# due_at is NULL in every item that may run now, so one range of the index lists these items in claim order.
PROMOTE_DUE: Final = """
UPDATE items SET due_at = NULL WHERE seq IN (
    SELECT seq FROM items
    WHERE batch_id = ? AND status = 'pending' AND status <> 'completed' AND due_at <= ?
    ORDER BY due_at LIMIT ?)"""

# The items to claim, with the values that they have after the claim, as one JSON text: one row per item would take one step
# per item, see blocks.py. The text leaves out suspects; the second column is 1 if there are any.
CLAIMABLE: Final = """
SELECT
    json_group_array(json_array(seq, batch_id, id, payload, claim + 1, min(attempts + 1, ?), crashes, checkpoint))
        FILTER (WHERE suspect = 0),
    coalesce(max(suspect), 0)
FROM (
    SELECT * FROM items
    WHERE batch_id = ? AND status = 'pending' AND status <> 'completed' AND due_at IS NULL
    ORDER BY priority DESC, seq LIMIT ?)"""

# The same, without payloads, for items that do not fit into one text.
CLAIMABLE_SEQS: Final = """
SELECT json_group_array(seq) FILTER (WHERE suspect = 0), coalesce(max(suspect), 0) FROM (
    SELECT seq, suspect FROM items
    WHERE batch_id = ? AND status = 'pending' AND status <> 'completed' AND due_at IS NULL
    ORDER BY priority DESC, seq LIMIT ?)"""

# The first suspect among the next items in claim order. The inner limit bounds the scan when another worker has just claimed
# the only suspect.
CLAIMABLE_SUSPECT: Final = """
SELECT json_array(seq) FROM (
    SELECT seq, suspect FROM items
    WHERE batch_id = ? AND status = 'pending' AND status <> 'completed' AND due_at IS NULL
    ORDER BY priority DESC, seq LIMIT ?)
WHERE suspect = 1 LIMIT 1"""

# min(): an item that an operator set to pending after its last attempt gets one more attempt.
CLAIM: Final = """
UPDATE items SET
    status = 'processing', attempts = min(attempts + 1, ?), claim = claim + 1, worker_id = ?, started_at = ?,
    completed_at = NULL, permanent = 0
WHERE seq IN (SELECT value FROM json_each(?))"""

# The rows are in the order of the list, which is the claim order.
CLAIMED_ROWS: Final = """
SELECT
    items.seq, items.batch_id, items.id, items.payload, items.claim, items.attempts, items.crashes, items.checkpoint
FROM json_each(?) AS claimed CROSS JOIN items ON items.seq = claimed.value ORDER BY claimed.key"""

UNFINISHED: Final = """
SELECT EXISTS (SELECT 1 FROM items WHERE batch_id = ?1 AND status = 'pending' AND status <> 'completed')
    OR EXISTS (SELECT 1 FROM items WHERE batch_id = ?1 AND status = 'processing' AND status <> 'completed')"""

NEXT_DUE: Final = """
SELECT (SELECT due_at FROM items
        WHERE batch_id = ? AND status = 'pending' AND status <> 'completed' AND due_at IS NOT NULL
        ORDER BY due_at LIMIT 1)"""

# --- the turn: settle. The WHERE is the fence: only the holder of the current claim changes a row ----------------
# The first two columns of each row are seq and claim.

SETTLE_COMPLETED: Final = Blocks(
    """
UPDATE items SET status = 'completed', started_at = column3, completed_at = column4, result = column5, error = NULL
FROM (VALUES {rows}) WHERE seq = column1 AND claim = column2 AND status = 'processing'""",
    columns=5,
)

SETTLE_RETRYING: Final = Blocks(
    """
UPDATE items SET
    status = 'pending', worker_id = NULL, started_at = column3, due_at = column4, error = column5,
    crashes = crashes + column6, suspect = column7, attempts = max(attempts - column8, 0)
FROM (VALUES {rows}) WHERE seq = column1 AND claim = column2 AND status = 'processing'""",
    columns=8,
)

SETTLE_FAILED: Final = Blocks(
    """
UPDATE items SET
    status = 'failed', started_at = column3, completed_at = column4, error = column5, permanent = column6,
    crashes = crashes + column7, suspect = column7, fingerprint = column8
FROM (VALUES {rows}) WHERE seq = column1 AND claim = column2 AND status = 'processing'""",
    columns=8,
)

SETTLE_RELEASED: Final = Blocks(
    """
UPDATE items SET status = 'pending', worker_id = NULL, started_at = NULL, attempts = max(attempts - 1, 0)
FROM (VALUES {rows}) WHERE seq = column1 AND claim = column2 AND status = 'processing'""",
    columns=2,
)

SETTLE_CANCELLED: Final = Blocks(
    """
UPDATE items SET status = 'cancelled', started_at = column3, completed_at = column4
FROM (VALUES {rows}) WHERE seq = column1 AND claim = column2 AND status = 'processing'""",
    columns=4,
)

SAVE_CHECKPOINT: Final = Blocks(
    """
UPDATE items SET checkpoint = column3
FROM (VALUES {rows}) WHERE seq = column1 AND claim = column2 AND status = 'processing'""",
    columns=3,
)

INSERT_FAILURES: Final = Blocks(
    """
INSERT INTO failures (batch_id, id, attempt, claim, failed_at, error_type, message, traceback, fingerprint)
SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL""",
    columns=9,
)

NEXT_TURN_NUMBER: Final = "UPDATE batches SET turns = turns + 1 WHERE batch_id = ? RETURNING turns"

RECORD_TURN: Final = """
INSERT OR REPLACE INTO turns (batch_id, ring, number, at, completed, failed, retried, durations)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""

# --- cancelling items, reading items and controls ---------------------------------------------------------------

# The new claim number fences off a worker that holds the item now.
CANCEL: Final = """
UPDATE items SET status = 'cancelled', claim = claim + 1, worker_id = NULL, due_at = NULL, completed_at = ?
WHERE batch_id = ? AND id IN (SELECT value FROM json_each(?)) AND status IN ('pending', 'processing')"""

ITEMS_BY_ID: Final = """
SELECT seq, id, status, attempts, payload, result, error, started_at, completed_at FROM items
WHERE batch_id = ? AND id IN (SELECT value FROM json_each(?))"""

# The controls that operators set for running workers. A deleted batch has no row.
BATCH_CONTROLS: Final = """
SELECT batch_id, paused OR stopped IS NOT NULL, concurrency FROM batches
WHERE batch_id IN (SELECT value FROM json_each(?))"""

# The indexes in a list of [seq, claim number] of the claims that are no longer current, with the item's status now.
REVOKED: Final = """
SELECT held.key, items.status
FROM json_each(?) AS held LEFT JOIN items ON items.seq = json_extract(held.value, '$[0]')
WHERE items.claim IS NOT json_extract(held.value, '$[1]') OR items.status <> 'processing'"""

# --- workers ----------------------------------------------------------------------------------------------------

INSERT_WORKER: Final = """
INSERT INTO workers (worker_id, host, pid, role, batches, started_at, last_heartbeat) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (worker_id) DO UPDATE SET ended_at = NULL, lost = 0"""

BEAT: Final = """
UPDATE workers SET
    last_heartbeat = ?, items_processed = ?, items_failed = ?, loop_blocks = ?, longest_block = ?, slots = ?, slots_in_use = ?,
    ended_at = NULL, lost = 0
WHERE worker_id = ?
RETURNING stop"""

ASK_TO_STOP: Final = """
UPDATE workers SET stop = max(stop, ?) WHERE worker_id IN (SELECT value FROM json_each(?)) AND ended_at IS NULL"""

IS_OUTCAST: Final = "SELECT ended_at IS NOT NULL FROM workers WHERE worker_id = ?"

# Batches whose stored total differs from their number of items; doctor reports them.
RECOUNT: Final = """
SELECT name, total, counted FROM (
    SELECT name, total, (SELECT count(*) FROM items WHERE items.batch_id = batches.batch_id) AS counted
    FROM batches WHERE ?1 IS NULL OR name = ?1)
WHERE total <> counted"""

SET_TOTAL: Final = """
UPDATE batches SET total = (SELECT count(*) FROM items WHERE items.batch_id = batches.batch_id) WHERE name = ?"""

WORKERS_AND_HOLDINGS: Final = """
SELECT worker_id, host, pid,
    (SELECT count(*) FROM batches CROSS JOIN items
        ON items.batch_id = batches.batch_id AND items.status = 'processing' AND items.status <> 'completed'
     WHERE items.worker_id = workers.worker_id)
FROM workers WHERE ended_at IS NULL ORDER BY started_at"""

NEWEST_BEAT: Final = "SELECT max(last_heartbeat) FROM workers"

# The clock was set back. Retries of attempts that failed "in the future" become due earlier by the same time. Due times that
# an operator set, or that come from attempts that failed since, stay.
SET_BACK_RETRIES: Final = """
UPDATE items SET due_at = strftime('%Y-%m-%d %H:%M:%f', due_at, :modifier)
WHERE batch_id IN (SELECT batch_id FROM batches) AND status = 'pending' AND status <> 'completed' AND due_at > :now
    AND EXISTS (SELECT 1 FROM failures
                WHERE failures.batch_id = items.batch_id AND failures.id = items.id AND failed_at > :now)"""

SET_BACK_BATCHES: Final = """
UPDATE batches SET
    cooldown_until = CASE WHEN cooldown_until > :now THEN strftime('%Y-%m-%d %H:%M:%f', cooldown_until, :modifier)
                     ELSE cooldown_until END,
    rate_spent = CASE WHEN rate_spent > :instant THEN rate_spent - :seconds ELSE rate_spent END"""

SET_BACK_WORKERS: Final = """
UPDATE workers SET last_heartbeat = min(last_heartbeat, :now), started_at = min(started_at, :now)"""

END_WORKER: Final = "UPDATE workers SET ended_at = ?, lost = ? WHERE worker_id = ? AND ended_at IS NULL"

# With a pulse, the worker is lost only if that is still its last heartbeat.
LOSE_WORKER: Final = """
UPDATE workers SET ended_at = ?, lost = 1
WHERE worker_id = ? AND ended_at IS NULL AND last_heartbeat = coalesce(?, last_heartbeat)"""

FORGET_OLD_WORKERS: Final = "DELETE FROM workers WHERE ended_at < ?"

PEERS: Final = """
SELECT worker_id, last_heartbeat, host, pid, role, batches FROM workers WHERE ended_at IS NULL AND worker_id <> ?"""

# The columns of a Claim, and started_at. Payload and checkpoint are left out: releasing and recovering do not need them.
HELD_BY: Final = """
SELECT items.seq, items.batch_id, items.id, '', items.claim, items.attempts, items.crashes, NULL, items.started_at
FROM batches CROSS JOIN items
    ON items.batch_id = batches.batch_id AND items.status = 'processing' AND items.status <> 'completed'
WHERE items.worker_id = ?"""

# The number of other workers of the same process that died with this worker: their lifetimes overlap.
BESIDE: Final = """
SELECT count(*) FROM workers AS lost JOIN workers AS other
    ON other.host = lost.host AND other.pid = lost.pid AND other.worker_id <> lost.worker_id
WHERE lost.worker_id = ? AND (other.ended_at IS NULL OR other.lost = 1)
    AND other.started_at <= lost.last_heartbeat AND lost.started_at <= other.last_heartbeat"""

ORPHANS: Final = """
SELECT items.seq, items.batch_id, items.id, '', items.claim, items.attempts, items.crashes, NULL, items.started_at
FROM batches CROSS JOIN items
    ON items.batch_id = batches.batch_id AND items.status = 'processing' AND items.status <> 'completed'
WHERE items.worker_id IS NULL
    OR items.worker_id NOT IN (SELECT worker_id FROM workers WHERE ended_at IS NULL)"""

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

BATCHES: Final = """
SELECT batch_id, name, handler, created_at, paused, cooldown_until, concurrency, stopped FROM batches
WHERE ?1 IS NULL OR name = ?1 ORDER BY batch_id"""

WORKERS: Final = """
SELECT
    worker_id, host, pid, started_at, last_heartbeat, items_processed, items_failed, loop_blocks, longest_block, slots,
    slots_in_use
FROM workers
WHERE ended_at IS NULL ORDER BY started_at"""

RECENT_TURNS: Final = """
SELECT at, completed, failed, retried, durations FROM turns WHERE batch_id = ? ORDER BY number DESC"""

STUCK: Final = """
SELECT id, worker_id, started_at, attempts FROM items
WHERE batch_id = ? AND status = 'processing' AND status <> 'completed' AND started_at < ?
ORDER BY started_at LIMIT ?"""

PROCESSING_STARTS: Final = """
SELECT started_at FROM items
WHERE batch_id = ? AND status = 'processing' AND status <> 'completed' ORDER BY seq DESC LIMIT ?"""
