"""Make the transitions that a caller requests: cancel items, and make finished items pending again.

Engine and operators use the same functions, inside a transaction of the writer's connection.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from asyncrunner.domain.item import TERMINAL, Status
from asyncrunner.sqlite import sql
from asyncrunner.text.timestamps import to_text


class KnownKey(NamedTuple):
    """An item that exists under a requested key."""

    seq: int
    id: str
    status: Status


def cancel(connection: sqlite3.Connection, seqs: Iterable[int], statuses: Collection[Status], now: float) -> int:
    """Cancel those of the items *seqs* that are in one of *statuses*; return how many.

    A worker that holds a cancelled item loses its claim. *now* is in seconds since the epoch.
    """
    row = {"seqs": _json(seqs), "statuses": _json(statuses), "now": to_text(now)}
    return connection.execute(sql.items.CANCEL, row).rowcount


def cancel_keys(connection: sqlite3.Connection, batch_id: int, keys: Sequence[str], now: float) -> int:
    """Cancel the pending and processing items of a batch that have one of *keys*; return how many."""
    seqs = [item.seq for item in known_keys(connection, batch_id, keys)]
    return cancel(connection, seqs, (Status.PENDING, Status.PROCESSING), now)


def reopen(connection: sqlite3.Connection, seqs: Iterable[int], statuses: Collection[Status]) -> int:
    """Make those of the items *seqs* that are in one of *statuses* pending, with fresh attempts; return how many."""
    return connection.execute(sql.items.REOPEN, {"seqs": _json(seqs), "statuses": _json(statuses)}).rowcount


def run_again(connection: sqlite3.Connection, seqs: Iterable[int], statuses: Collection[Status]) -> int:
    """Run those of the items *seqs* again that are in one of *statuses*; return how many.

    Finished items become pending, with fresh attempts and their earlier result. Items that a worker holds run once more after
    their attempt.
    """
    row = {"seqs": _json(seqs), "statuses": _json([status for status in statuses if status in TERMINAL])}
    held = run_again_after_attempt(connection, seqs) if Status.PROCESSING in statuses else 0
    return held + connection.execute(sql.items.RUN_AGAIN, row).rowcount


def run_again_after_attempt(connection: sqlite3.Connection, seqs: Iterable[int]) -> int:
    """Request that those of the items *seqs* that a worker holds run once more after their attempt; return how many."""
    return connection.execute(sql.items.RUN_AGAIN_AFTER_ATTEMPT, (_json(seqs),)).rowcount


def reopenable(connection: sqlite3.Connection, batch_id: int, max_attempts: int | None) -> array[int]:
    """Return the ``seq`` of each item that ``EngineStore.reopen_failed`` makes pending."""
    if max_attempts is None:
        return open_seqs(connection, batch_id, Status.FAILED)
    return array("q", (seq for (seq,) in connection.execute(sql.items.REOPENABLE_SEQS, (batch_id, max_attempts))))


def reopen_failed(connection: sqlite3.Connection, seqs: Iterable[int], max_attempts: int | None) -> int:
    """Make the failed items of *seqs* pending and return their number; see ``EngineStore.reopen_failed``."""
    if max_attempts is None:
        return reopen(connection, seqs, (Status.FAILED,))
    return connection.execute(sql.items.REOPEN_FAILED, (_json(seqs), max_attempts)).rowcount


def give(connection: sqlite3.Connection, seqs: Collection[int], max_attempts: int | None) -> int:
    """Permit this connection to claim the items *seqs*, reopen the failed ones, and return how many; see ``EngineStore.give``."""
    connection.execute(sql.claims.CREATE_GIVEN)
    connection.execute(sql.claims.GIVE, (_json(seqs),))
    return reopen_failed(connection, seqs, max_attempts)


def open_seqs(connection: sqlite3.Connection, batch_id: int, status: Status) -> array[int]:
    """Return the ``seq`` of each item with that status, which is not ``completed``. The array takes 8 bytes per item."""
    return array("q", (seq for (seq,) in connection.execute(sql.items.OPEN_SEQS, (batch_id, status))))


def known_keys(connection: sqlite3.Connection, batch_id: int, keys: Sequence[str]) -> Sequence[KnownKey]:
    """Return the items of a batch that have one of *keys*, in the order of *keys*."""
    rows = connection.execute(sql.items.EXISTING_KEYS, (_json(keys), batch_id))
    return [KnownKey(seq, key, Status(status)) for seq, key, status in rows]


def _json(values: Iterable[object]) -> str:
    return msgspec.json.encode(list(values)).decode()
