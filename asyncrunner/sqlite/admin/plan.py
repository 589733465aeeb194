"""The data for a dry run: it reads the store's file and never writes to it.

The keys of the input are stored in a temporary SQLite database on the disk, which is deleted when it is closed, so that memory
does not grow with the input. The store's file is read for a chunk of keys at a time, never in one long transaction.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from asyncrunner.domain.item import Counts, Status
from asyncrunner.serialization.keys import canonical_json, is_same_json
from asyncrunner.sqlite import queries, sql
from asyncrunner.sqlite.file.errors import translated
from asyncrunner.sqlite.file.opening import connect_reader

if TYPE_CHECKING:
    from asyncrunner.domain.item import NewItem


class Known(NamedTuple):
    """An item of the file with a key of the input. ``is_changed``: the input has another payload for the key."""

    status: Status
    is_permanent: bool
    attempts: int
    is_changed: bool


class MeasuredRate(NamedTuple):
    """Averages of the newest turns: the seconds of an attempt, and the attempts of an item."""

    seconds: float
    attempts: float


class BatchFacts(NamedTuple):
    """A summary of a batch. ``reopenable``: failed items with attempts left and no permanent error; ``pace``: None if unknown."""

    counts: Counts
    reopenable: int
    pace: MeasuredRate | None


class SeenKeys:
    """The keys of the input read so far, each with a digest of its payload, in a temporary database."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._connection.execute(sql.connection.CACHE_32_MB)
        self._connection.execute(sql.connection.NO_JOURNAL)  # the database does not outlive the process
        self._connection.execute(sql.connection.NO_SYNC)
        self._connection.execute(sql.admin.CREATE_SEEN_KEYS)

    def close(self) -> None:
        """Delete the temporary database."""
        self._connection.close()

    def first_ones(self, entries: Sequence[NewItem]) -> tuple[list[NewItem], list[NewItem]]:
        """Record *entries*; return those whose key is new, and those whose key was seen before with another payload."""
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


class StoredBatch:
    """A batch of a file opened for reading only; the file may not have the batch. Raises what ``connect_reader`` raises."""

    def __init__(self, path: Path, name: str) -> None:
        self._location = str(path)
        self._connection = connect_reader(path)
        batches = queries.batches(self._connection, name)
        self._batch_id = batches[0].batch_id if batches else None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def known(self, entries: Sequence[NewItem]) -> dict[str, Known]:
        """Return the items of the file that have a key of *entries*, by key. Raises StoreUnavailable or StoreError."""
        if self._batch_id is None:
            return {}
        payloads = {entry.id: entry.payload for entry in entries}
        with translated(self._location):
            rows = self._connection.execute(sql.admin.KNOWN_ITEMS, (self._batch_id, _json(list(payloads)))).fetchall()
        return {
            key: Known(Status(status), bool(permanent), attempts, not is_same_json(payload, payloads[key]))
            for key, payload, status, permanent, attempts in rows
        }

    def facts(self, max_attempts: int, now: float) -> BatchFacts:
        """Return the batch's current counts, and how many failed items have fewer than *max_attempts* attempts.

        *now* is in seconds since the epoch. Raises StoreUnavailable or StoreError.
        """
        if self._batch_id is None:
            return BatchFacts(Counts(), 0, None)
        with translated(self._location):
            counts = queries.counts(self._connection, self._batch_id, now)
            (reopenable,) = self._connection.execute(sql.admin.REOPENABLE, (self._batch_id, max_attempts)).fetchone()
            turns = queries.recent_turns(self._connection, self._batch_id)
        return BatchFacts(counts, reopenable, _pace(turns))


def _pace(turns: Sequence[queries.TurnRow]) -> MeasuredRate | None:
    seconds = [duration for turn in turns for durations in turn.durations.values() for duration in durations]
    finished = sum(turn.completed + turn.failed for turn in turns)
    if not seconds or not finished:
        return None
    attempts = finished + sum(turn.retried for turn in turns)
    return MeasuredRate(sum(seconds) / len(seconds), attempts / finished)


def _digest(payload: str) -> bytes:
    # Payloads that differ only in the order of fields are the same.
    content = canonical_json(payload) if payload[:1] in "{[" else payload.encode()
    return hashlib.blake2b(content, digest_size=12).digest()


def _json(keys: Sequence[str]) -> str:
    return msgspec.json.encode(keys).decode()
