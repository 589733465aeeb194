"""What a run would do, from the file alone and without writing to it.

The keys of the input are kept in a private database of SQLite's own, which lies on the disk and vanishes when it is closed, so
that memory does not grow with the input. The store's file is asked a chunk of keys at a time, never in one long transaction.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from asyncrunner.codec import canonical_json
from asyncrunner.item import Counts, Status
from asyncrunner.sqlite import reading
from asyncrunner.sqlite.connection import translated
from asyncrunner.sqlite.file import connect_reader

if TYPE_CHECKING:
    from asyncrunner.item import Entry

__all__ = ["BatchFacts", "Known", "Pace", "SeenKeys", "StoredBatch"]

CREATE_SEEN: Final = "CREATE TABLE seen (key TEXT PRIMARY KEY, payload BLOB NOT NULL) WITHOUT ROWID"

SEEN: Final = "SELECT key, payload FROM seen WHERE key IN (SELECT value FROM json_each(?))"

REMEMBER: Final = "INSERT INTO seen (key, payload) VALUES (?, ?)"

KNOWN: Final = """
SELECT id, payload, status, permanent, attempts FROM items
WHERE batch_id = ? AND id IN (SELECT value FROM json_each(?))"""

REOPENABLE: Final = """
SELECT count(*) FROM items
WHERE batch_id = ? AND status = 'failed' AND status <> 'completed' AND permanent = 0 AND attempts < ?"""

_CACHE_KIB: Final = 32_000


class Known(NamedTuple):
    """What the file says of a key."""

    status: Status
    is_permanent: bool
    attempts: int
    is_changed: bool


class Pace(NamedTuple):
    """Of the newest turns: the seconds of an attempt on average, and the attempts that an item took."""

    seconds: float
    attempts: float


class BatchFacts(NamedTuple):
    """A batch as a whole. ``reopenable``: failed items with attempts left and no permanent error."""

    counts: Counts
    reopenable: int
    pace: Pace | None


class SeenKeys:
    """The keys of an input, each with a digest of its payload."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._connection.execute("PRAGMA journal_mode = OFF")  # nothing of it outlives the process
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(CREATE_SEEN)

    def close(self) -> None:
        """Let go of the disk space."""
        self._connection.close()

    def first_ones(self, entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
        """Those of *entries* whose key comes for the first time, and those that came before with another payload."""
        keys = _json([entry.id for entry in entries])
        seen: dict[str, bytes] = dict(self._connection.execute(SEEN, (keys,)))
        first: list[Entry] = []
        changed: list[Entry] = []
        fresh: list[tuple[str, bytes]] = []
        for entry in entries:
            digest = _digest(entry.payload)
            before = seen.setdefault(entry.id, digest)
            if before is digest:
                first.append(entry)
                fresh.append((entry.id, digest))
            elif before != digest:
                changed.append(entry)
        self._connection.execute("BEGIN")
        self._connection.executemany(REMEMBER, fresh)
        self._connection.execute("COMMIT")
        return first, changed


class StoredBatch:
    """A batch in a file that is only read. Raises what ``connect_reader`` raises."""

    def __init__(self, path: Path, name: str) -> None:
        self._location = str(path)
        self._connection = connect_reader(path)
        found = reading.batches(self._connection, name)
        self._batch_id = found[0].batch_id if found else None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def known(self, entries: Sequence[Entry]) -> dict[str, Known]:
        """Those of the entries that are in the file, by key."""
        if self._batch_id is None:
            return {}
        given = {entry.id: entry.payload for entry in entries}
        with translated(self._location):
            rows = self._connection.execute(KNOWN, (self._batch_id, _json(list(given)))).fetchall()
        return {
            key: Known(Status(status), bool(permanent), attempts, not _is_same(payload, given[key]))
            for key, payload, status, permanent, attempts in rows
        }

    def facts(self, max_attempts: int, now: float) -> BatchFacts:
        """The batch as it stands now."""
        if self._batch_id is None:
            return BatchFacts(Counts(), 0, None)
        with translated(self._location):
            counts = reading.counts(self._connection, self._batch_id, now)
            (reopenable,) = self._connection.execute(REOPENABLE, (self._batch_id, max_attempts)).fetchone()
            turns = reading.recent_turns(self._connection, self._batch_id)
        return BatchFacts(counts, reopenable, _pace(turns))


def _pace(turns: Sequence[reading.TurnRow]) -> Pace | None:
    seconds = [each for turn in turns for values in turn.durations.values() for each in values]
    done = sum(turn.completed + turn.failed for turn in turns)
    if not seconds or not done:
        return None
    attempts = done + sum(turn.retried for turn in turns)
    return Pace(sum(seconds) / len(seconds), attempts / done)


def _is_same(stored: str, given: str) -> bool:
    return stored == given or canonical_json(stored) == canonical_json(given)


def _digest(payload: str) -> bytes:
    # The order of fields makes no other payload.
    said = canonical_json(payload) if payload[:1] in "{[" else payload.encode()
    return hashlib.blake2b(said, digest_size=12).digest()


def _json(keys: Sequence[str]) -> str:
    return msgspec.json.encode(keys).decode()
