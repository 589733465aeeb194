"""The SQL of large results, which are stored in pieces. The item's ``result`` is then the empty text."""

from __future__ import annotations

from typing import Final

# Store a piece of a result, or replace the piece with the same number, if the claim is current.
STORE_PIECE: Final = """
INSERT OR REPLACE INTO result_pieces (seq, claim, piece, text)
SELECT ?1, ?2, ?3, ?4 WHERE EXISTS (SELECT 1 FROM items WHERE seq = ?1 AND claim = ?2 AND status = 'processing')"""

# The claim of an item's result, the number of its pieces, and when the item was completed.
PIECES_OF_RESULT: Final = """
SELECT
    coalesce(result_claim, claim),
    (SELECT count(*) FROM result_pieces
     WHERE result_pieces.seq = items.seq AND result_pieces.claim = coalesce(items.result_claim, items.claim)),
    completed_at
FROM items WHERE seq = ? AND result = ''"""

# The text of one piece.
PIECE: Final = "SELECT text FROM result_pieces WHERE seq = ? AND claim = ? AND piece = ?"

# The rowids of the pieces of a result, in order, each with its number. SQLite reads only the index.
ROWIDS_OF_PIECES: Final = "SELECT rowid, piece FROM result_pieces WHERE seq = ? AND claim = ? ORDER BY piece"

# Pieces that no item uses. SQLite reads only the index of result_pieces, not the texts.
ORPHANED_PIECES: Final = """
SELECT result_pieces.rowid FROM result_pieces
WHERE NOT EXISTS (
    SELECT 1 FROM items WHERE items.seq = result_pieces.seq AND (
        (items.claim = result_pieces.claim AND status = 'processing')
        OR (coalesce(items.result_claim, items.claim) = result_pieces.claim AND result = '')))"""

# Delete a few orphaned pieces.
DELETE_ORPHANED_PIECES: Final = """
DELETE FROM result_pieces WHERE rowid IN (
    SELECT result_pieces.rowid FROM result_pieces
    WHERE NOT EXISTS (
        SELECT 1 FROM items WHERE items.seq = result_pieces.seq AND (
            (items.claim = result_pieces.claim AND status = 'processing')
            OR (coalesce(items.result_claim, items.claim) = result_pieces.claim AND result = '')))
    LIMIT ?)"""
