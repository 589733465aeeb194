"""The SQL of claims: the turn, lost answers, claims that are no longer current, given items."""

from __future__ import annotations

from typing import Final

# One turn of a worker, see version_1/claiming.sql.
TURN: Final = "SELECT * FROM turn($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"

# The number of the newest turn of a worker that was committed, and the claims whose outcomes it dropped.
NEWEST_TURN: Final = "SELECT turn, dropped FROM turn_marks WHERE worker_id = $1"

# The claims of one turn of a worker that are still current, with the columns of a Claim.
CLAIMS_OF_TURN: Final = """
SELECT items.seq, items.batch_id, items.id, items.payload, items.claim, items.attempts, items.crashes, items.checkpoint,
    items.put_off_at, items.traceparent, items.suspect
FROM held JOIN items ON items.seq = held.seq
WHERE held.worker_id = $1 AND held.turn = $2 AND items.status = 'processing'
ORDER BY items.priority DESC, items.seq"""

# The claims of two lists that are no longer current, as positions from 1, with the item's status now.
LOST_CLAIMS: Final = """
SELECT claimed.position, items.status
FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS claimed (seq, claim, position)
LEFT JOIN items ON items.seq = claimed.seq
WHERE items.claim IS DISTINCT FROM claimed.claim OR items.status <> 'processing'"""

# Create the session's table of the items that a run was given.
CREATE_GIVEN: Final = "CREATE TEMP TABLE IF NOT EXISTS given (seq bigint PRIMARY KEY)"

# Add items to the given items.
GIVE: Final = "INSERT INTO pg_temp.given SELECT unnest($1::bigint[]) ON CONFLICT DO NOTHING"

# Store one piece of a large result, if its claim is current.
STORE_PIECE: Final = """
INSERT INTO result_pieces (seq, claim, piece, text)
SELECT $1, $2, $3, $4 WHERE EXISTS (SELECT FROM items WHERE seq = $1 AND claim = $2 AND status = 'processing')
ON CONFLICT (seq, claim, piece) DO UPDATE SET text = excluded.text RETURNING true"""

# Delete a few pieces that no item uses.
DELETE_ORPHANED_PIECES: Final = """
WITH orphaned AS (
    DELETE FROM result_pieces WHERE ctid = ANY (ARRAY(
        SELECT pieces.ctid FROM result_pieces AS pieces
        WHERE NOT EXISTS (
            SELECT FROM items WHERE items.seq = pieces.seq AND (
                (items.claim = pieces.claim AND status = 'processing')
                OR (coalesce(items.result_claim, items.claim) = pieces.claim AND result = '')))
        LIMIT 100))
    RETURNING 1)
SELECT count(*) FROM orphaned"""
