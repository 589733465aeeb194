"""What a good engineer writes by hand with sqlite3 instead of using a runner: one table, few indexes, large transactions.

The schema shares nothing with the package: a narrow table with what a job queue needs, a unique key for each batch, and partial
indexes for the items that are ready, held and failed. Items are inserted, claimed and settled 1,000 a transaction with
``executemany``, with the durability of the runner (WAL, ``synchronous=FULL``) and SQLite's own checkpoints. Payloads and results
are JSON by msgspec; a key that is not given is the 16-byte blake2b of the payload. Claims, attempts and a worker's name are
written, but there is no heartbeat, retry, history, count, pause or progress, and no other process can take part.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

__all__ = ["by_hand_seconds"]

CHUNK: Final = 1000
SCHEMA: Final = """
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY, batch INTEGER NOT NULL, key BLOB NOT NULL, status TEXT NOT NULL DEFAULT 'ready',
    attempts INTEGER NOT NULL DEFAULT 0, claim INTEGER NOT NULL DEFAULT 0, worker TEXT, priority INTEGER NOT NULL DEFAULT 0,
    due REAL, created REAL NOT NULL, started REAL, ended REAL, payload BLOB NOT NULL, result BLOB, error TEXT,
    UNIQUE (batch, key)
);
CREATE INDEX ready ON jobs (batch, priority, seq) WHERE status = 'ready';
CREATE INDEX held ON jobs (worker) WHERE status = 'held';
CREATE INDEX failed ON jobs (batch, error) WHERE status = 'failed';
"""
INSERT: Final = "INSERT OR IGNORE INTO jobs (batch, key, created, payload) VALUES (1, ?, ?, ?)"
CLAIM: Final = """
UPDATE jobs SET status = 'held', worker = 'me', attempts = attempts + 1, claim = claim + 1, started = ?
WHERE seq IN (SELECT seq FROM jobs WHERE batch = 1 AND status = 'ready' ORDER BY priority, seq LIMIT ?)
RETURNING seq, claim, payload"""
SETTLE: Final = "UPDATE jobs SET status = 'completed', ended = ?, result = ?, worker = NULL WHERE seq = ? AND claim = ?"


def by_hand_seconds(
    path: Path, items: Iterable[Any], handler: Callable[[Any], Awaitable[Any]], key: Callable[[Any], object] | None, kind: Any
) -> float:
    """Return the seconds of inserting *items*, running *handler* on each and storing each result.

    *key* returns the key of an item; None: the digest of its payload. *kind*: the type as which payloads are decoded.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.executescript(SCHEMA)
    began = time.perf_counter()
    count = _insert(connection, iter(items), key)
    asyncio.run(_work(connection, handler, msgspec.json.Decoder(kind)))
    seconds = time.perf_counter() - began
    (done,) = connection.execute("SELECT count(*) FROM jobs WHERE status = 'completed'").fetchone()
    connection.close()
    assert done == count, (done, count)
    return seconds


def _insert(connection: sqlite3.Connection, items: Iterator[Any], key: Callable[[Any], object] | None) -> int:
    encode = msgspec.json.Encoder().encode
    count = 0
    while chunk := list(islice(items, CHUNK)):
        now = time.time()
        payloads = [encode(item) for item in chunk]
        keys: Sequence[object] = (
            [blake2b(payload, digest_size=16).digest() for payload in payloads] if key is None else [key(item) for item in chunk]
        )
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(INSERT, [(each, now, payload) for each, payload in zip(keys, payloads, strict=True)])
        connection.execute("COMMIT")
        count += len(chunk)
    return count


async def _work(
    connection: sqlite3.Connection, handler: Callable[[Any], Awaitable[Any]], decoder: msgspec.json.Decoder[Any]
) -> None:
    encode = msgspec.json.Encoder().encode
    while True:
        connection.execute("BEGIN IMMEDIATE")
        claimed = connection.execute(CLAIM, (time.time(), CHUNK)).fetchall()
        connection.execute("COMMIT")
        if not claimed:
            return
        settled = [(time.time(), encode(await handler(decoder.decode(payload))), seq, claim) for seq, claim, payload in claimed]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(SETTLE, settled)
        connection.execute("COMMIT")
