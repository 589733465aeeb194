"""The SQL of items: insert, reopen, cancel, read, delete."""

from __future__ import annotations

from typing import Final

# --- adding items -----------------------------------------------------------------------------------------------

# Add a chunk, see version_1/adding.sql.
ADD: Final = "SELECT seqs, known FROM add_items($1, $2, $3, $4, $5, $6, $7, $8)"

# The same for few items of batch $1, and notify the workers when the transaction is committed.
ADD_AND_NOTIFY: Final = "SELECT seqs, known FROM add_items($1, $2, $3, $4, $5, $6, $7, $8), pg_notify($9, $10)"

# --- changing items ---------------------------------------------------------------------------------------------

# The seqs of the failed items of a batch.
FAILED_SEQS: Final = "SELECT seq FROM ended WHERE batch_id = $1 AND status = 'failed' ORDER BY seq"

# The seqs of the failed items that have attempts left and no permanent error.
REOPENABLE_SEQS: Final = """
SELECT items.seq FROM ended JOIN items ON items.seq = ended.seq
WHERE ended.batch_id = $1 AND ended.status = 'failed' AND NOT permanent AND attempts < $2 ORDER BY items.seq"""

# Reset to pending the items of a list that are still failed, with attempts left and no permanent error.
REOPEN_FAILED: Final = """
UPDATE items SET status = 'pending', due_at = NULL, worker_id = NULL, completed_at = NULL, put_off_at = NULL
WHERE seq = ANY ($1::bigint[]) AND status = 'failed' AND NOT permanent AND attempts < $2"""

# Reset failed items to pending, with fresh attempts.
REOPEN: Final = """
UPDATE items SET
    status = 'pending', due_at = NULL, worker_id = NULL, completed_at = NULL, attempts = 0, crashes = 0, permanent = false,
    suspect = 0, put_off_at = NULL
WHERE seq = ANY ($1::bigint[]) AND status = 'failed'"""

# Cancel the items of a batch with these keys that have not ended. The new claim number fences off a worker that holds the item.
# An earlier result in pieces keeps its claim.
CANCEL: Final = """
UPDATE items SET
    status = 'cancelled', claim = claim % 9223372036854775807 + 1, worker_id = NULL, due_at = NULL,
    completed_at = to_timestamp($3), rerun_payload = NULL,
    result_claim = CASE WHEN result = '' THEN coalesce(result_claim, claim) END
WHERE batch_id = $1 AND id = ANY ($2::text[]) AND status IN ('pending', 'processing')"""

# --- reading items ----------------------------------------------------------------------------------------------

# Items by key, with each result joined from its pieces; the empty text if pieces are missing.
ITEMS_BY_ID: Final = """
SELECT seq, id, status, attempts, payload,
    CASE WHEN result = '' THEN (
        SELECT CASE WHEN count(*) = max(piece) + 1 THEN string_agg(text, '' ORDER BY piece) ELSE '' END FROM result_pieces
        WHERE result_pieces.seq = items.seq AND result_pieces.claim = coalesce(items.result_claim, items.claim)
    ) ELSE result END,
    error, extract(epoch FROM started_at)::double precision, extract(epoch FROM completed_at)::double precision
FROM items WHERE batch_id = $1 AND id = ANY ($2::text[])"""

# The same by seq.
ITEMS_BY_SEQ: Final = """
SELECT seq, id, status, attempts, payload,
    CASE WHEN result = '' THEN (
        SELECT CASE WHEN count(*) = max(piece) + 1 THEN string_agg(text, '' ORDER BY piece) ELSE '' END FROM result_pieces
        WHERE result_pieces.seq = items.seq AND result_pieces.claim = coalesce(items.result_claim, items.claim)
    ) ELSE result END,
    error, extract(epoch FROM started_at)::double precision, extract(epoch FROM completed_at)::double precision
FROM items WHERE seq = ANY ($2::bigint[]) AND batch_id = $1"""

# The same for a page of items in input order.
ITEM_PAGE: Final = """
SELECT seq, id, status, attempts, payload,
    CASE WHEN result = '' THEN (
        SELECT CASE WHEN count(*) = max(piece) + 1 THEN string_agg(text, '' ORDER BY piece) ELSE '' END FROM result_pieces
        WHERE result_pieces.seq = items.seq AND result_pieces.claim = coalesce(items.result_claim, items.claim)
    ) ELSE result END,
    error, extract(epoch FROM started_at)::double precision, extract(epoch FROM completed_at)::double precision
FROM items WHERE seq > $2 AND batch_id = $1 ORDER BY seq LIMIT $3"""

# The items of a batch that are not completed: the newest seq of the store, and the seqs by state. One statement has one snapshot.
OPEN_ITEMS: Final = """
SELECT (SELECT coalesce(max(seq), 0) FROM items),
    ARRAY(SELECT seq FROM (
        SELECT seq FROM ready WHERE batch_id = $1
        UNION SELECT seq FROM waiting WHERE batch_id = $1
        UNION SELECT seq FROM suspects WHERE batch_id = $1) AS pending ORDER BY seq),
    ARRAY(SELECT seq FROM held WHERE batch_id = $1 ORDER BY seq),
    ARRAY(SELECT seq FROM ended WHERE batch_id = $1 AND status = 'failed' ORDER BY seq),
    ARRAY(SELECT seq FROM ended WHERE batch_id = $1 AND status = 'cancelled' ORDER BY seq)"""

# --- deleting items that ended long ago --------------------------------------------------------------------------

# The last seq of a window of items in input order, the seqs of its completed items that have expired, and the newest seq.
EXPIRED: Final = """
SELECT max(seq),
    array_agg(seq) FILTER (WHERE status = 'completed' AND completed_at < to_timestamp($2) AND batch_id = ANY ($1::bigint[])),
    (SELECT coalesce(max(seq), 0) FROM items)
FROM (SELECT seq, batch_id, status, completed_at FROM items WHERE seq > $3 ORDER BY seq LIMIT $4) AS in_window"""

# Delete those items of a list that are still completed and older than a time, with the records of their failures.
PURGE: Final = """
WITH purged AS (
    DELETE FROM items WHERE seq = ANY ($1::bigint[]) AND status = 'completed' AND completed_at < to_timestamp($2)
    RETURNING batch_id, id),
purged_failures AS (
    DELETE FROM failures USING purged WHERE failures.batch_id = purged.batch_id AND failures.id = purged.id)
SELECT count(*) FROM purged"""
