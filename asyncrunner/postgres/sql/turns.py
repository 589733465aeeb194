"""The SQL of reports that the engine reads: counts, recorded turns, failures by cause."""

from __future__ import annotations

from typing import Final

# The number of items of a batch in each state.
COUNTS: Final = """
SELECT coalesce(sum(pending), 0)::bigint,
    (SELECT count(*) FROM waiting WHERE batch_id = $1 AND due_at > to_timestamp($2))
    + (SELECT count(*) FROM suspects WHERE batch_id = $1 AND due_at > to_timestamp($2)),
    coalesce(sum(processing), 0)::bigint, coalesce(sum(completed), 0)::bigint, coalesce(sum(failed), 0)::bigint,
    coalesce(sum(cancelled), 0)::bigint
FROM tallies WHERE batch_id = $1"""

# The recorded turns of a batch, newest first.
RECENT_TURNS: Final = """
SELECT extract(epoch FROM at)::double precision, completed, failed, retried, durations FROM turns
WHERE batch_id = $1 ORDER BY number DESC LIMIT $2"""

# Failed items by cause, the most frequent causes first; of the items with the given seqs, or of all. Items that an operator set
# to failed have no fingerprint, so these items are grouped by error.
FAILURE_CAUSES: Final = """
SELECT items.error, causes.failed, items.id FROM (
    SELECT count(*) AS failed, min(items.seq) AS first FROM ended JOIN items ON items.seq = ended.seq
    WHERE ended.batch_id = $1 AND ended.status = 'failed' AND ($3::bigint[] IS NULL OR ended.seq = ANY ($3))
    GROUP BY ended.fingerprint, CASE WHEN ended.fingerprint IS NULL THEN error END
    ORDER BY 1 DESC, 2 LIMIT $2) AS causes
JOIN items ON items.seq = causes.first ORDER BY causes.failed DESC, causes.first"""
