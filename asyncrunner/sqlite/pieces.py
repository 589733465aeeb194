"""Results that are too large for one transaction.

A transaction keeps everybody else from writing until its bytes are on the disk: 50 MB took 0.67 s. So such a result comes in
pieces, each in a transaction of its own, before the item is settled, and what others write comes in between. The item's own
``result`` is NULL then. Pieces belong to a claim: those of one that was lost are nobody's, and are swept when a worker joins.
"""

from __future__ import annotations

import sqlite3
from typing import Final

__all__ = ["CHECKPOINT_BYTES", "RESULT", "keep", "kept", "piece_of", "sweep"]

CHECKPOINT_BYTES: Final = 6_000_000
"""While pieces come in, the log is written back that often: at its usual size that alone would hold everybody up."""

RESULT: Final = """
    CASE WHEN result IS NULL AND status = 'completed' THEN (
        SELECT group_concat(text, '') FROM (
            SELECT text FROM result_pieces WHERE result_pieces.seq = items.seq AND result_pieces.claim = items.claim
            ORDER BY piece)
    ) ELSE result END"""
"""An item's result, whole, where a SELECT names it."""

KEPT: Final = """
SELECT claim, count(*) FROM items JOIN result_pieces USING (seq, claim)
WHERE seq = ? AND status = 'completed' AND result IS NULL GROUP BY claim"""

PIECE: Final = "SELECT text FROM result_pieces WHERE seq = ? AND claim = ? AND piece = ?"

KEEP: Final = """
INSERT OR REPLACE INTO result_pieces (seq, claim, piece, text)
SELECT ?1, ?2, ?3, ?4 WHERE EXISTS (SELECT 1 FROM items WHERE seq = ?1 AND claim = ?2 AND status = 'processing')"""

# A few at a time: each is a million characters. The look is at the index alone.
SWEEP: Final = """
DELETE FROM result_pieces WHERE rowid IN (
    SELECT result_pieces.rowid FROM result_pieces
    WHERE NOT EXISTS (
        SELECT 1 FROM items WHERE items.seq = result_pieces.seq AND items.claim = result_pieces.claim
            AND (status = 'processing' OR (status = 'completed' AND result IS NULL)))
    LIMIT 64)"""


def keep(connection: sqlite3.Connection, seq: int, claim: int, piece: int, text: str) -> bool:
    """Keep one piece of a result, in place of what was there under its number; False if the claim is not current."""
    return connection.execute(KEEP, (seq, claim, piece, text)).rowcount > 0


def kept(connection: sqlite3.Connection, seq: int) -> tuple[int, int]:
    """The claim that completed the item, and in how many pieces its result is; (0, 0) if it has none."""
    found: tuple[int, int] | None = connection.execute(KEPT, (seq,)).fetchone()
    return (0, 0) if found is None else found


def piece_of(connection: sqlite3.Connection, seq: int, claim: int, piece: int) -> str | None:
    """One of them; None if it is gone: the item was deleted, or has been run again."""
    found: tuple[str] | None = connection.execute(PIECE, (seq, claim, piece)).fetchone()
    return None if found is None else found[0]


def sweep(connection: sqlite3.Connection) -> None:
    """Delete pieces of claims that were lost, or of items that were run again since."""
    connection.execute(SWEEP)
