"""Results that are too large for one transaction.

A transaction keeps everybody else from writing until its bytes are on the disk. So such a result comes in pieces, each in a
transaction of its own, before the item is settled, and what others write comes in between. The item's own ``result`` is then the
empty text, which is no JSON. Pieces belong to a claim: those of one that was lost, and those of an item that was deleted or run
again, are nobody's. They are swept, a few a transaction, after whatever makes such pieces, and when a worker joins.
"""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

__all__ = ["CHECKPOINT_BYTES", "IN_PIECES", "RESULT", "STRAY", "Kept", "keep", "kept", "piece_of", "sweep"]

CHECKPOINT_BYTES: Final = 6_000_000
"""While pieces come in, the log is written back that often: at its usual size that alone would hold everybody up."""

IN_PIECES: Final = ""
"""The ``result`` of such an item."""

RESULT: Final = """
    CASE WHEN result = '' THEN (
        SELECT group_concat(text, '') FROM (
            SELECT text FROM result_pieces WHERE result_pieces.seq = items.seq AND result_pieces.claim = items.claim
            ORDER BY piece)
    ) ELSE result END"""
"""An item's result, whole, where a SELECT names it."""

KEPT: Final = """
SELECT claim, (SELECT count(*) FROM result_pieces WHERE result_pieces.seq = items.seq AND result_pieces.claim = items.claim),
    completed_at
FROM items WHERE seq = ? AND result = ''"""

PIECE: Final = "SELECT text FROM result_pieces WHERE seq = ? AND claim = ? AND piece = ?"

KEEP: Final = """
INSERT OR REPLACE INTO result_pieces (seq, claim, piece, text)
SELECT ?1, ?2, ?3, ?4 WHERE EXISTS (SELECT 1 FROM items WHERE seq = ?1 AND claim = ?2 AND status = 'processing')"""

# The look is at the index alone.
STRAY: Final = """
SELECT result_pieces.rowid FROM result_pieces
WHERE NOT EXISTS (
    SELECT 1 FROM items WHERE items.seq = result_pieces.seq AND items.claim = result_pieces.claim
        AND (status = 'processing' OR result = ''))"""

SWEEP: Final = f"DELETE FROM result_pieces WHERE rowid IN ({STRAY} LIMIT ?)"  # noqa: S608 - of our own constants

_MOST_SWEPT: Final = 4  # in a transaction: each is a million characters


class Kept(NamedTuple):
    """Which claim's pieces make an item's result, how many they are, and when the item was completed."""

    claim: int
    pieces: int
    completed_at: str | None


def keep(connection: sqlite3.Connection, seq: int, claim: int, piece: int, text: str) -> bool:
    """Keep one piece of a result, in place of what was there under its number; False if the claim is not current."""
    return connection.execute(KEEP, (seq, claim, piece, text)).rowcount > 0


def kept(connection: sqlite3.Connection, seq: int) -> Kept | None:
    """What there is of the item's result; None if it is not in pieces, or not any more."""
    found = connection.execute(KEPT, (seq,)).fetchone()
    return None if found is None else Kept(*found)


def piece_of(connection: sqlite3.Connection, seq: int, claim: int, piece: int) -> str | None:
    """One of them; None if it is gone."""
    found: tuple[str] | None = connection.execute(PIECE, (seq, claim, piece)).fetchone()
    return None if found is None else found[0]


def sweep(connection: sqlite3.Connection) -> bool:
    """Delete a few pieces that are nobody's; whether there were some."""
    return connection.execute(SWEEP, (_MOST_SWEPT,)).rowcount > 0
