"""The SQL of the rows of a batch that is copied to or from another store."""

from __future__ import annotations

from typing import Final

# --- the source ---------------------------------------------------------------------------------------------------

# A batch with its options, version and controls.
BATCH: Final = """
SELECT batch_id, name, handler, options, created_at, paused, cooldown_until, concurrency, stopped, rate_spent,
    coalesce((SELECT sum(put_offs) FROM tallies WHERE tallies.batch_id = batches.batch_id), 0)::bigint, version, version_number,
    version_applied
FROM batches WHERE batch_id = $1"""

# A page of items in input order, after a seq: it ends with the row that makes its texts too long. "+ 0": no plan sorts all items.
ITEMS: Final = """
SELECT seq, id, status, attempts, crashes, claim, worker_id, priority, permanent, suspect, due_at, created_at, started_at,
    completed_at, payload, result, error, checkpoint, fingerprint, put_offs, put_off_at, rerun_payload, version, result_claim,
    traceparent
FROM (
    SELECT *, sum(octet_length(payload) + coalesce(octet_length(result), 0) + coalesce(octet_length(checkpoint), 0))
        OVER (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS size_before
    FROM (SELECT * FROM items WHERE seq > $2 AND batch_id + 0 = $1 ORDER BY seq LIMIT $3) AS in_window) AS measured
WHERE coalesce(size_before, 0) < $4 ORDER BY seq"""

# The same for records of failures, after a number.
FAILURES: Final = """
SELECT failure_id, id, attempt, claim, failed_at, error_type, message, traceback, fingerprint, started_at, duration
FROM (
    SELECT *, sum(octet_length(message) + octet_length(traceback))
        OVER (ORDER BY failure_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS size_before
    FROM (SELECT * FROM failures WHERE failure_id > $2 AND batch_id + 0 = $1 ORDER BY failure_id LIMIT $3) AS in_window
) AS measured
WHERE coalesce(size_before, 0) < $4 ORDER BY failure_id"""

# Pieces of large results, after a piece. The result of an item that runs once more with another payload is not copied.
PIECES: Final = """
SELECT result_pieces.seq, items.id, piece, text FROM result_pieces JOIN items ON items.seq = result_pieces.seq
WHERE (result_pieces.seq, piece) > ($2, $3) AND result_pieces.seq >= $2
    AND batch_id = $1 AND result = '' AND result_pieces.claim = coalesce(result_claim, items.claim)
    AND NOT (status = 'processing' AND rerun_payload IS NOT NULL AND rerun_payload <> payload)
ORDER BY result_pieces.seq, result_pieces.claim, piece LIMIT $4"""

# How many rows a batch has: items by state, attempts, failures, pieces. Items in processing count as pending.
TOTALS: Final = """
SELECT count(*) FILTER (WHERE status IN ('pending', 'processing')), count(*) FILTER (WHERE status = 'completed'),
    count(*) FILTER (WHERE status = 'failed'), count(*) FILTER (WHERE status = 'cancelled'),
    coalesce(sum(CASE WHEN status <> 'processing' THEN attempts WHEN rerun_payload IS NULL THEN greatest(attempts - 1, 0) ELSE 0
        END), 0)::double precision,
    (SELECT count(*) FROM failures WHERE batch_id = $1),
    (SELECT count(*) FROM result_pieces JOIN items ON items.seq = result_pieces.seq
     WHERE batch_id = $1 AND result = '' AND result_pieces.claim = coalesce(result_claim, items.claim)
        AND NOT (status = 'processing' AND rerun_payload IS NOT NULL AND rerun_payload <> payload))
FROM items WHERE batch_id = $1"""

# --- the target ---------------------------------------------------------------------------------------------------

# The state of a copy, by the name of the batch; without a source if no copy began the batch.
STATE: Final = """
SELECT batches.batch_id, source, identity, coalesce(reached, ''), utc_text(finished_at),
    coalesce((SELECT sum(pending + processing + completed + failed + cancelled) FROM tallies
              WHERE tallies.batch_id = batches.batch_id), 0)::bigint, coalesce(copied, 0)
FROM batches LEFT JOIN copies USING (batch_id) WHERE name = $1"""

# Create a batch that no worker serves before its copy is complete, unless it exists.
BEGIN_BATCH: Final = """
INSERT INTO batches (name, handler, options, created_at, paused, stopped, rate_spent, version, version_number, version_applied)
VALUES ($1, $2, $3, $4, true, $5, $6, $7, $8, $9) ON CONFLICT (name) DO NOTHING RETURNING batch_id"""

# Record the beginning of a copy.
BEGIN: Final = "INSERT INTO copies (batch_id, source, identity, reached) VALUES ($1, $2, $3, '')"

# Count the put-offs of a copied batch.
COUNT_PUT_OFFS: Final = "INSERT INTO tallies (batch_id, put_offs) SELECT $1, $2 WHERE $2::bigint > 0"

# Move the position of a copy, if it is the expected one, and count the items that are stored.
MOVE: Final = """
UPDATE copies SET reached = $3, copied = copied + $4 WHERE batch_id = $1 AND reached = $2 AND finished_at IS NULL
RETURNING true"""

# The position of a copy.
REACHED: Final = "SELECT reached FROM copies WHERE batch_id = $1"

# Pause a batch again, if an operator has resumed it before its copy is complete.
BLOCK: Final = "UPDATE batches SET paused = true WHERE batch_id = $1 AND NOT paused"

# A key of a list that a batch has.
TAKEN_KEY: Final = "SELECT id FROM items WHERE batch_id = $1 AND id = ANY ($2::text[]) LIMIT 1"

# The seq and the claim of the results of items.
SEQS: Final = "SELECT id, seq, coalesce(result_claim, claim) FROM items WHERE batch_id = $1 AND id = ANY ($2::text[])"

# List and count copied items as the functions for workers do, see changes_by_hand.sql.
LIST_ITEMS: Final = """
WITH copied AS MATERIALIZED (
    SELECT seq, batch_id, status, priority, suspect, due_at, fingerprint FROM items
    WHERE batch_id = $1 AND id = ANY ($2::text[]) ORDER BY seq),
listed_ready AS (
    INSERT INTO ready (batch_id, rank, seq)
    SELECT batch_id, ~priority, seq FROM copied WHERE status = 'pending' AND suspect <= 0 AND due_at IS NULL),
listed_waiting AS (
    INSERT INTO waiting (batch_id, rank, due_at, seq)
    SELECT batch_id, ~priority, due_at, seq FROM copied WHERE status = 'pending' AND suspect <= 0 AND due_at IS NOT NULL),
listed_suspects AS (
    INSERT INTO suspects (batch_id, suspect, rank, seq, due_at)
    SELECT batch_id, suspect, ~priority, seq, due_at FROM copied WHERE status = 'pending' AND suspect > 0),
listed_ended AS (
    INSERT INTO ended (batch_id, status, seq, fingerprint)
    SELECT batch_id, status, seq, CASE status WHEN 'failed' THEN fingerprint END FROM copied
    WHERE status IN ('failed', 'cancelled'))
INSERT INTO tallies (batch_id, pending, completed, failed, cancelled)
SELECT batch_id, count(*) FILTER (WHERE status = 'pending'), count(*) FILTER (WHERE status = 'completed'),
    count(*) FILTER (WHERE status = 'failed'), count(*) FILTER (WHERE status = 'cancelled')
FROM copied GROUP BY batch_id"""

# Record that a copy is complete.
FINISH: Final = """
UPDATE copies SET finished_at = clock_timestamp() WHERE batch_id = $1 AND reached = 'end' AND finished_at IS NULL
RETURNING true"""

# Whether a copy is complete; no row if its batch was deleted.
IS_FINISHED: Final = "SELECT finished_at IS NOT NULL FROM copies WHERE batch_id = $1"

# Begin to delete a copy that is not complete.
RESTART: Final = "UPDATE copies SET reached = 'restart' WHERE batch_id = $1 AND finished_at IS NULL RETURNING true"

# The position of a copy that is not complete, which no other transaction changes before this one ends.
LOCKED_POSITION: Final = "SELECT reached FROM copies WHERE batch_id = $1 AND finished_at IS NULL FOR UPDATE"

# Delete the next items of a batch, with the records of their failures and the pieces of their results, by hand.
DISCARD_ITEMS: Final = """
WITH discarded AS (
    DELETE FROM items WHERE seq = ANY (ARRAY(SELECT seq FROM items WHERE batch_id = $1 ORDER BY id LIMIT $2))
    RETURNING seq, batch_id, id),
discarded_failures AS (
    DELETE FROM failures USING discarded WHERE failures.batch_id = discarded.batch_id AND failures.id = discarded.id),
discarded_pieces AS (DELETE FROM result_pieces USING discarded WHERE result_pieces.seq = discarded.seq)
SELECT count(*) FROM discarded"""

# Delete a batch without items; triggers delete its counts, its minutes and the row of its copy.
DISCARD_BATCH: Final = (
    "DELETE FROM failures WHERE batch_id = $1",
    "DELETE FROM turns WHERE batch_id = $1",
    "DELETE FROM batches WHERE batch_id = $1",
)

# Give a copied batch its controls.
FINISH_BATCH: Final = "UPDATE batches SET paused = $2, cooldown_until = $3, concurrency = $4, stopped = $5 WHERE batch_id = $1"
