"""Store results that are too large for one transaction.

A transaction blocks every other writer until its bytes are on the disk. So a large result is stored in pieces, each in a
separate transaction, before the item is settled; other writes run between them. The item's ``result`` is then the empty
text, which is not JSON. A piece belongs to a claim. The piece is orphaned when the claim is lost, or the item is deleted or
rerun.
Orphaned pieces are deleted, a few per transaction, after a rerun, a recovery and a purge, and when a worker joins or leaves.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncrunner.errors import StoreUnavailable
from asyncrunner.sqlite import sql
from asyncrunner.text.timestamps import from_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncrunner.sqlite.file.connection import Connection
    from asyncrunner.store.items import ItemRow

IN_PIECES: Final = ""
"""The ``result`` of an item whose result is stored in pieces."""

PIECES_CHECKPOINT_BYTES: Final = 6_000_000
"""WAL size that triggers a WAL checkpoint while pieces are stored. A WAL checkpoint at the usual size would block all writers
for too long."""

_MAX_DELETED_PIECES: Final = 4  # per transaction; a piece has up to a million characters


class ResultPieces(NamedTuple):
    """The claim whose pieces make up an item's result, the number of these pieces, and when the item was completed."""

    claim: int
    pieces: int
    completed_at: str | None


def store_piece(connection: sqlite3.Connection, seq: int, claim: int, piece: int, text: str) -> bool:
    """Store one piece of a result, replacing a piece with the same number; return False if the claim is not current."""
    return connection.execute(sql.large_results.STORE_PIECE, (seq, claim, piece, text)).rowcount > 0


def pieces_of(connection: sqlite3.Connection, seq: int) -> ResultPieces | None:
    """Return the pieces of the item's result, without their texts; None if the result is not stored in pieces."""
    row = connection.execute(sql.large_results.PIECES_OF_RESULT, (seq,)).fetchone()
    return None if row is None else ResultPieces(*row)


def read_piece(connection: sqlite3.Connection, seq: int, claim: int, piece: int) -> str | None:
    """Return the text of one piece; None if the piece does not exist."""
    row: tuple[str] | None = connection.execute(sql.large_results.PIECE, (seq, claim, piece)).fetchone()
    return None if row is None else row[0]


def delete_some_pieces(connection: sqlite3.Connection) -> bool:
    """Delete a few orphaned pieces; return False if there are none."""
    return connection.execute(sql.large_results.DELETE_ORPHANED_PIECES, (_MAX_DELETED_PIECES,)).rowcount > 0


async def delete_orphaned_pieces(connection: Connection) -> None:
    """Delete all orphaned pieces, a few per transaction. If the file is unavailable, a later call deletes the rest."""
    with suppress(
        StoreUnavailable
    ):  # the change that orphaned the pieces is already committed, so the caller must not repeat that change
        while await connection.write(delete_some_pieces):
            pass


async def with_results(connection: Connection, rows: Sequence[ItemRow]) -> Sequence[ItemRow]:
    """Return the rows with whole results; a result whose pieces were deleted stays the empty text.

    Each piece is a separate read, so that other operations run between the reads. Raises StoreUnavailable if an item is
    deleted or run again meanwhile.
    """
    return [await _join_pieces(connection, row) if row.result == IN_PIECES else row for row in rows]


async def _join_pieces(connection: Connection, row: ItemRow) -> ItemRow:
    parts = await connection.read(partial(pieces_of, seq=row.seq))
    if parts is None or from_text(parts.completed_at) != row.completed_at:
        raise _changed_meanwhile(connection.location, row)
    texts: list[str] = []
    for piece in range(parts.pieces):
        text = await connection.read(partial(read_piece, seq=row.seq, claim=parts.claim, piece=piece))
        if text is None:
            break
        texts.append(text)
    if not texts or len(texts) < parts.pieces:
        if parts != await connection.read(partial(pieces_of, seq=row.seq)):
            raise _changed_meanwhile(connection.location, row)
        return row
    return row._replace(result="".join(texts))


def _changed_meanwhile(location: str, row: ItemRow) -> StoreUnavailable:
    return StoreUnavailable(
        f"{location}: item {row.id!r} was deleted or run again while its result was read; the read is retried"
    )
