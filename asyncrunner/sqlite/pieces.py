"""Results that are too large for one transaction.

A transaction keeps everybody else from writing until its bytes are on the disk: 50 MB took 0.67 s. So such a result comes in
pieces, each in a transaction of its own, before the item is settled, and what others write comes in between. The item's own
``result`` is then the empty text, which is no JSON. Pieces belong to a claim: those of one that was lost are nobody's. They are
deleted when the item is recovered, given back or run again, and else when the next worker joins.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

__all__ = ["CHECKPOINT_BYTES", "IN_PIECES", "RESULT", "Kept", "forget", "keep", "kept", "piece_of", "sweep"]

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

FORGET: Final = "DELETE FROM result_pieces WHERE seq IN (SELECT value FROM json_each(?))"

# The look is at the index alone.
SWEEP: Final = """
DELETE FROM result_pieces WHERE rowid IN (
    SELECT result_pieces.rowid FROM result_pieces
    WHERE NOT EXISTS (
        SELECT 1 FROM items WHERE items.seq = result_pieces.seq AND items.claim = result_pieces.claim
            AND (status = 'processing' OR result = ''))
    LIMIT ?)"""

_MOST_SWEPT: Final = 16  # in a transaction: each is a million characters


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


def forget(connection: sqlite3.Connection, seqs: Sequence[int]) -> None:
    """Delete all pieces of items whose results, if they had any, are gone."""
    if seqs:
        connection.execute(FORGET, (msgspec.json.encode(seqs).decode(),))


def sweep(connection: sqlite3.Connection) -> bool:
    """Delete a few pieces of claims that were lost; whether there were some."""
    return connection.execute(SWEEP, (_MOST_SWEPT,)).rowcount > 0
