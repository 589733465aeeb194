"""Read the data for a dry run: the stored items that the input names, and the keys of the input that were read before.

The keys of the input are in a temporary SQLite database on the disk, so that memory does not grow with the input; SQLite
deletes this database when it is closed. The store is read for a chunk of keys at a time, never in one long transaction.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from asyncrunner.domain.item import Status
from asyncrunner.serialization.keys import canonical_json, is_same_json
from asyncrunner.sqlite import queries, sql
from asyncrunner.store.admin_protocol import InputKeys
from asyncrunner.store.snapshot import KnownItem

if TYPE_CHECKING:
    from asyncrunner.domain.item import NewItem


class SeenKeys(InputKeys):
    """The keys of the input that were read so far, each with a digest of its payload, in a temporary database."""

    def __init__(self) -> None:
        self._in_use = threading.Lock()
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._connection.execute(sql.connection.CACHE_32_MB)
        self._connection.execute(sql.connection.NO_JOURNAL)  # the database does not outlive the process
        self._connection.execute(sql.connection.NO_SYNC)
        self._connection.execute(sql.admin.CREATE_SEEN_KEYS)

    def close(self) -> None:
        """Delete the temporary database, after the end of a call that still runs in another thread."""
        with self._in_use:
            self._connection.close()

    def first_ones(self, entries: Sequence[NewItem]) -> tuple[list[NewItem], list[NewItem]]:
        """Record *entries*; return those whose key is new, and those whose key was recorded with another payload."""
        with self._in_use:
            return self._first_ones(entries)

    def _first_ones(self, entries: Sequence[NewItem]) -> tuple[list[NewItem], list[NewItem]]:
        keys = _json([entry.id for entry in entries])
        seen: dict[str, bytes] = dict(self._connection.execute(sql.admin.SEEN_KEYS, (keys,)))
        first: list[NewItem] = []
        changed: list[NewItem] = []
        new_rows: list[tuple[str, bytes]] = []
        for entry in entries:
            digest = _digest(entry.payload)
            before = seen.setdefault(entry.id, digest)
            if before is digest:
                first.append(entry)
                new_rows.append((entry.id, digest))
            elif before != digest:
                changed.append(entry)
        self._connection.execute(sql.connection.BEGIN)
        self._connection.executemany(sql.admin.INSERT_SEEN_KEY, new_rows)
        self._connection.execute(sql.connection.COMMIT)
        return first, changed


def match_input(
    connection: sqlite3.Connection, batch_id: int, entries: Sequence[NewItem], version: str | None
) -> dict[str, KnownItem]:
    """Return the items of a batch that have a key of *entries*, by key, as a run with *version* would find them."""
    payloads = {entry.id: entry.payload for entry in entries}
    rows = connection.execute(sql.admin.KNOWN_ITEMS, (batch_id, _json(list(payloads)), version)).fetchall()
    return {
        key: KnownItem(Status(status), bool(permanent), attempts, not is_same_json(payload, payloads[key]), bool(is_other))
        for key, payload, status, permanent, attempts, is_other in rows
    }


def count_reopenable(connection: sqlite3.Connection, batch_id: int, max_attempts: int) -> int:
    """Return how many failed items have fewer than *max_attempts* attempts and no permanent error."""
    count: int = connection.execute(sql.admin.REOPENABLE, (batch_id, max_attempts)).fetchone()[0]
    return count


def count_other_version(connection: sqlite3.Connection, batch_id: int, version: str, now: float) -> int:
    """Return how many items a run with *version* would run again, because another version completed them."""
    row = connection.execute(sql.batches.VERSION, (batch_id,)).fetchone()
    if row is None:  # deleted meanwhile
        return 0
    _, current, number, applied = row
    if current != version:
        return queries.counts(connection, batch_id, now).completed
    if applied == number:
        return 0
    count: int = connection.execute(sql.admin.OF_OTHER_VERSION, (batch_id, number)).fetchone()[0]
    return count


def _digest(payload: str) -> bytes:
    # Payloads that differ only in the order of fields have the same digest.
    content = canonical_json(payload) if payload[:1] in "{[" else payload.encode()
    return hashlib.blake2b(content, digest_size=12).digest()


def _json(keys: Sequence[str]) -> str:
    return msgspec.json.encode(keys).decode()
