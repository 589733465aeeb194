"""Whether the tables that the PostgreSQL store keeps beside its items say the same as the items."""

from __future__ import annotations

from typing import Any, Final

from tests.support.state import changing

_DISAGREEMENTS: Final = {
    "each item is in the table of its state, with its values, and no other row is there": """
        WITH expected (place, batch_id, seq, rank, suspect, due_at, detail) AS (
            SELECT 'ready', batch_id, seq, ~priority, 0, NULL::timestamptz, NULL::text FROM items
            WHERE status = 'pending' AND suspect <= 0 AND due_at IS NULL
            UNION ALL SELECT 'waiting', batch_id, seq, ~priority, 0, due_at, NULL FROM items
            WHERE status = 'pending' AND suspect <= 0 AND due_at IS NOT NULL
            UNION ALL SELECT 'suspects', batch_id, seq, ~priority, suspect, due_at, NULL FROM items
            WHERE status = 'pending' AND suspect > 0
            UNION ALL SELECT 'held', batch_id, seq, 0, 0, NULL, coalesce(worker_id, '') FROM items WHERE status = 'processing'
            UNION ALL SELECT status, batch_id, seq, 0, 0, NULL, CASE status WHEN 'failed' THEN fingerprint END FROM items
            WHERE status IN ('failed', 'cancelled')),
        stored (place, batch_id, seq, rank, suspect, due_at, detail) AS (
            SELECT 'ready', batch_id, seq, rank, 0, NULL::timestamptz, NULL::text FROM ready
            UNION ALL SELECT 'waiting', batch_id, seq, rank, 0, due_at, NULL FROM waiting
            UNION ALL SELECT 'suspects', batch_id, seq, rank, suspect, due_at, NULL FROM suspects
            UNION ALL SELECT 'held', batch_id, seq, 0, 0, NULL, worker_id FROM held
            UNION ALL SELECT status, batch_id, seq, 0, 0, NULL, fingerprint FROM ended)
        SELECT 'missing', * FROM (TABLE expected EXCEPT ALL TABLE stored) AS missing
        UNION ALL SELECT 'extra', * FROM (TABLE stored EXCEPT ALL TABLE expected) AS extra""",
    "the tallies are the counts": """
        SELECT batch_id, status, stored, counted FROM
            (SELECT batch_id, status, sum(stored)::int AS stored FROM tallies CROSS JOIN LATERAL (VALUES ('pending', pending),
                ('processing', processing), ('completed', completed), ('failed', failed), ('cancelled', cancelled))
                AS each (status, stored) GROUP BY 1, 2) AS sums
            FULL JOIN (SELECT batch_id, status, count(*)::int AS counted FROM items GROUP BY 1, 2) AS counts USING (batch_id, status)
        WHERE coalesce(stored, 0) <> coalesce(counted, 0)""",
    "the causes are the recorded failures": """
        SELECT batch_id, fingerprint, stored, counted FROM
            (SELECT batch_id, fingerprint, sum(attempts) AS stored FROM causes GROUP BY 1, 2) AS sums
            FULL JOIN (SELECT batch_id, fingerprint, count(*) AS counted FROM failures GROUP BY 1, 2) AS counts
                USING (batch_id, fingerprint)
        WHERE coalesce(stored, 0) <> coalesce(counted, 0)""",
}


def disagreements(db: str) -> dict[str, list[Any]]:
    """Return the statements that do not hold, each with the rows that break it; a store that agrees gives an empty dict."""
    with changing(db, read_only=True) as connection:
        found = {statement: connection.execute(query).fetchall() for statement, query in _DISAGREEMENTS.items()}
    return {statement: rows for statement, rows in found.items() if rows}
