"""Whether the tables that the PostgreSQL store keeps beside its items say the same as the items."""

from __future__ import annotations

from typing import Any, Final

from tests.support.state import rows_of

_DISAGREEMENTS: Final = {
    "a pending item is in exactly one of ready, waiting and suspects, and no other item is": """
        SELECT id, status, count(side.seq) FROM items
        LEFT JOIN (SELECT seq FROM ready UNION ALL SELECT seq FROM waiting UNION ALL SELECT seq FROM suspects) AS side USING (seq)
        GROUP BY seq HAVING count(side.seq) <> CASE WHEN status = 'pending' THEN 1 ELSE 0 END""",
    "the items in processing are those in held": """
        SELECT id, status, items.worker_id, held.worker_id FROM items FULL JOIN held USING (seq)
        WHERE (status = 'processing') IS DISTINCT FROM (held.seq IS NOT NULL)
            OR held.seq IS NOT NULL AND items.worker_id IS DISTINCT FROM held.worker_id""",
    "the failed and the cancelled items are those in ended": """
        SELECT id, items.status, ended.status FROM items FULL JOIN ended USING (seq)
        WHERE ended.status IS DISTINCT FROM CASE WHEN items.status IN ('failed', 'cancelled') THEN items.status END""",
    "the tallies are the counts": """
        SELECT batch_id, status, stored, counted FROM
            (SELECT batch_id, status, sum(stored)::int AS stored FROM tallies CROSS JOIN LATERAL (VALUES ('pending', pending),
                ('processing', processing), ('completed', completed), ('failed', failed), ('cancelled', cancelled))
                AS each (status, stored) GROUP BY 1, 2) AS sums
            FULL JOIN (SELECT batch_id, status, count(*)::int AS counted FROM items GROUP BY 1, 2) AS counts USING (batch_id, status)
        WHERE coalesce(stored, 0) <> coalesce(counted, 0)""",
}


def disagreements(db: str) -> dict[str, list[Any]]:
    """Return the statements that do not hold, each with the rows that break it; a store that agrees gives an empty dict."""
    return {statement: rows for statement, query in _DISAGREEMENTS.items() if (rows := rows_of(db, query))}
