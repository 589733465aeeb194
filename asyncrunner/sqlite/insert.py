"""Insert items, as functions of a raw connection.

The connection is the writer's, or a user's connection with an open transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from asyncrunner.domain.item import Claim
from asyncrunner.errors import StoreError
from asyncrunner.serialization.keys import is_same_json
from asyncrunner.sqlite import sql
from asyncrunner.store.batches import Added
from asyncrunner.store.rules.conflicts import key_conflict, key_exists
from asyncrunner.text.timestamps import to_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncrunner.domain.item import NewItem, OnKnownKey
    from asyncrunner.store.turn import ClaimRequest


MAX_SEQ: Final = 2**63 - 1
"""The largest number that SQLite can give to a row."""


def insertion(
    batch_id: int, entries: Sequence[NewItem], on_change: OnKnownKey, now: float, request: ClaimRequest | None = None
) -> Callable[[sqlite3.Connection], Added]:
    """Return the operation that inserts *entries*, to be called in a transaction; see EngineStore.add.

    The operation raises KeyConflict if a payload has changed and *on_change* is "error", and if a key exists and *on_change*
    is "refuse"; the caller must then roll back.
    The rows are built here, before the operation runs, so that the writer's thread has less to do.
    """
    moment = to_text(now)
    new_rows = [
        (entry.id, entry.payload, entry.priority, None if entry.due_at is None else to_text(entry.due_at)) for entry in entries
    ]
    claimable = 0 if request is None else _claimable(entries, on_change, request.want.limit)
    claimed_rows = [row[:2] for row in new_rows[:claimable]]

    def operation(connection: sqlite3.Connection) -> Added:
        last: int = connection.execute(sql.items.LAST_SEQ).fetchone()[0]
        stored = _stored_if_all_exist(connection, batch_id, entries)
        new = 0
        claimed: Sequence[NewItem] = ()
        if stored is None:
            if last > MAX_SEQ - len(new_rows):
                raise StoreError(
                    f"no seq is left for new items, because a row of items has or had the seq {last}. Give such rows a smaller "
                    "seq, and set the seq of items in the table sqlite_sequence to the largest seq in items"
                )
            version = None if not claimed_rows or request is None else _may_claim(connection, batch_id, moment, request)
            rows = new_rows
            new = 0
            if version is not None and request is not None:
                shared = (batch_id, entries[0].priority, moment, request.worker_id, version)
                new = sql.items.INSERT_CLAIMED.execute(connection, claimed_rows, shared)
                rows = new_rows[claimable:]
                claimed = entries[:claimable]
            new += sql.items.INSERT_ITEMS.execute(connection, rows, (batch_id, moment))
            if new:
                connection.execute(sql.batches.ADD_TO_TOTAL, (new, batch_id))
                if entries[0].traceparent is not None:
                    connection.execute(sql.items.SET_TRACEPARENT, (entries[0].traceparent, last))
            if new == len(entries):
                given = range(last + 1, last + 1 + new)
                return Added(new, 0, 0, (), given, claims=_claims(batch_id, zip(given, claimed, strict=False)))
            connection.execute(sql.items.FREE_UNUSED_SEQS, (last,))
            stored = _stored(connection, batch_id, entries)
        payloads = {key: payload for key, payload, _, _ in stored}
        seqs = {key: seq for key, _, _, seq in stored}
        known = frozenset(key for key, _, _, seq in stored if seq <= last) if new else frozenset(payloads)
        if on_change == "refuse":
            raise key_exists(entries, known)
        runs_again = known if on_change == "run again" else frozenset[str]()
        changed = [entry for entry in entries if entry.id in runs_again or not is_same_json(payloads[entry.id], entry.payload)]
        if changed and on_change == "error":
            raise key_conflict(changed[0])
        undone: Sequence[int] = ()
        if changed and on_change in ("rerun", "run again"):
            _run_again(connection, batch_id, changed)
            keys = {entry.id for entry in changed}
            undone = [seq for key, _, completed, seq in stored if completed and key in keys]
        held: dict[str, NewItem] = {}
        for entry in claimed:
            if seqs[entry.id] > last:
                held.setdefault(entry.id, entry)  # of several entries with one key, the first is stored
        claims = _claims(batch_id, [(seqs[key], entry) for key, entry in held.items()])
        return Added(new, len(entries) - new, len(changed), undone, [seqs[entry.id] for entry in entries], known, claims)

    return operation


def _claimable(entries: Sequence[NewItem], on_change: OnKnownKey, limit: int) -> int:
    """Return how many of the first *entries* a worker may claim at once: all up to *limit*, or none.

    A turn would claim other items first if priorities differ. With a rerun, a later entry of the chunk may replace the payload
    of an earlier one.
    """
    if on_change in ("rerun", "run again") or limit <= 0 or not entries:
        return 0
    are_alike = {(entry.priority, entry.due_at) for entry in entries} == {(entries[0].priority, None)}
    return limit if are_alike else 0


def _may_claim(connection: sqlite3.Connection, batch_id: int, moment: str, request: ClaimRequest) -> int | None:
    """Return the number of the batch's version if new items may be claimed at once, otherwise None."""
    row = connection.execute(sql.items.MAY_CLAIM_NEW, (batch_id, moment, request.worker_id)).fetchone()
    return None if row is None or request.want.version not in (None, row[0]) else row[0]


def _claims(batch_id: int, items: Iterable[tuple[int, NewItem]]) -> Sequence[Claim]:
    """Return the first claims of new items, given as seq and entry."""
    return [Claim(seq, batch_id, entry.id, entry.payload, 1, 1, 0, None, None, entry.traceparent) for seq, entry in items]


_Stored: TypeAlias = "tuple[str, str, int, int]"
"""An item's key, payload, whether it is completed, and seq. A resumed batch builds one for each item, so it is a plain tuple."""


def _stored_if_all_exist(connection: sqlite3.Connection, batch_id: int, entries: Sequence[NewItem]) -> Sequence[_Stored] | None:
    """Return the stored items if all *entries* exist, as in a resumed batch; None if an entry must be inserted.

    The first entry decides whether to look for the others. A lookup costs half as much as an insert that finds the key.
    """
    if not entries or connection.execute(sql.items.KEY_EXISTS, (batch_id, entries[0].id)).fetchone() is None:
        return None
    stored = _stored(connection, batch_id, entries)
    keys = {key for key, _, _, _ in stored}
    return stored if all(entry.id in keys for entry in entries) else None


def _stored(connection: sqlite3.Connection, batch_id: int, entries: Sequence[NewItem]) -> Sequence[_Stored]:
    keys = msgspec.json.encode([entry.id for entry in entries]).decode()
    return connection.execute(sql.items.PAYLOADS_OF_KEYS, (batch_id, keys)).fetchall()


def _run_again(connection: sqlite3.Connection, batch_id: int, changed: Sequence[NewItem]) -> None:
    """Run the items again with their new payloads; those that a worker holds run once more after their current attempt."""
    rows = [
        (
            entry.payload,
            entry.priority,
            None if entry.due_at is None else to_text(entry.due_at),
            entry.traceparent,
            batch_id,
            entry.id,
        )
        for entry in changed
    ]
    connection.executemany(sql.items.REPLACE_PAYLOAD, rows)
    connection.executemany(sql.items.REQUEST_RERUN, rows)
