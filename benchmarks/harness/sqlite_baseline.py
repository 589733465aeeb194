"""Plain sqlite3: the cost of the runner's writes without a runner.

Inserts, claims and settles the same rows in the same tables with the same indexes, 1,000 rows per transaction
(``synchronous=FULL``), without a runner, coroutines or JSON encoding.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from asyncrunner.sqlite.file.creation import create_if_missing
from asyncrunner.sqlite.file.opening import connect_writer
from asyncrunner.sqlite.file.wal import CHECKPOINT_BYTES, wal_of

__all__ = ["fill", "plain_seconds"]

CHUNK: Final = 1000
NOW: Final = "2026-11-23 12:14:15.123"


def plain_seconds(folder: Path, rows: Iterable[tuple[str, str]], *, write_back: bool = False) -> float:
    """Return the seconds of inserting, claiming and settling *rows* of key and payload.

    With *write_back*, WAL checkpoints run as often as in the runner; otherwise the WAL only grows.
    """
    path = folder / "plain.db"
    connection = _new(path, "bench")
    began = time.perf_counter()
    inserted = _insert_all(connection, rows, path if write_back else None)
    while claimed := _claim(connection):
        _finish(connection, claimed)
        if write_back:
            _checkpoint_if_large(connection, path)
    seconds = time.perf_counter() - began
    done = connection.execute("SELECT count(*) FROM items WHERE status = 'completed'").fetchone()[0]
    assert done == inserted, done
    connection.close()
    return seconds


def fill(path: Path, batch: str, rows: Iterable[tuple[str, str]]) -> None:
    """Create a file with the batch *batch* and *rows* of key and payload as pending items."""
    connection = _new(path, batch)
    _insert_all(connection, rows, path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _new(path: Path, batch: str) -> sqlite3.Connection:
    create_if_missing(path)
    connection = connect_writer(path, "full")
    connection.execute("INSERT INTO batches (name, handler, options, created_at) VALUES (?, '', '{}', ?)", (batch, NOW))
    return connection


def _insert_all(connection: sqlite3.Connection, rows: Iterable[tuple[str, str]], checkpointed: Path | None) -> int:
    source = iter(rows)
    inserted = 0
    while chunk := list(islice(source, CHUNK)):
        _insert(connection, chunk)
        inserted += len(chunk)
        if checkpointed is not None:
            _checkpoint_if_large(connection, checkpointed)
    return inserted


def _insert(connection: sqlite3.Connection, chunk: Sequence[tuple[str, str]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        "INSERT INTO items (batch_id, id, priority, due_at, created_at, payload, claim) VALUES (1, ?, 0, NULL, ?, ?, 0)",
        [(key, NOW, payload) for key, payload in chunk],
    )
    connection.execute("UPDATE batches SET total = total + ? WHERE batch_id = 1", (len(chunk),))
    connection.execute("COMMIT")


def _claim(connection: sqlite3.Connection) -> list[tuple[int, int]]:
    connection.execute("BEGIN IMMEDIATE")
    claimed = connection.execute(
        """UPDATE items SET status = 'processing', attempts = attempts + 1, claim = claim + 1, worker_id = 'plain',
               started_at = ?
           WHERE seq IN (SELECT seq FROM items
                         WHERE batch_id = 1 AND status = 'pending' AND status <> 'completed' AND due_at IS NULL
                         ORDER BY priority DESC, seq LIMIT ?)
           RETURNING seq, claim, id, payload""",
        (NOW, CHUNK),
    ).fetchall()
    connection.execute("COMMIT")
    return [(row[0], row[1]) for row in claimed]


def _finish(connection: sqlite3.Connection, claimed: list[tuple[int, int]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        """UPDATE items SET status = 'completed', started_at = ?, completed_at = ?, result = 'null', error = NULL
           WHERE seq = ? AND claim = ? AND status = 'processing'""",
        [(NOW, NOW, seq, claim) for seq, claim in claimed],
    )
    connection.execute("COMMIT")


def _checkpoint_if_large(connection: sqlite3.Connection, path: Path) -> None:
    if wal_of(path).stat().st_size >= CHECKPOINT_BYTES:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
