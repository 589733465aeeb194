"""Insert items, as functions of a raw connection.

The connection is the writer's, or a user's connection with an open transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from asyncrunner.errors import StoreError
from asyncrunner.serialization.keys import is_same_json
from asyncrunner.sqlite import sql
from asyncrunner.store.batches import Added
from asyncrunner.store.rules.conflicts import key_conflict, key_exists
from asyncrunner.text.timestamps import to_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncrunner.domain.item import NewItem, OnKnownKey


MAX_SEQ: Final = 2**63 - 1
"""The largest number that SQLite can give to a row."""


def insertion(
    batch_id: int, entries: Sequence[NewItem], on_change: OnKnownKey, now: float
) -> Callable[[sqlite3.Connection], Added]:
    """Return the operation that inserts *entries*, to be called in a transaction; see EngineStore.add.

    The operation raises KeyConflict if a payload has changed and *on_change* is "error", and if a key exists and *on_change*
    is "refuse"; the caller must then roll back.
    The rows are built here, before the operation runs, so that the writer's thread has less to do.
    """
    moment = to_text(now)
    new_rows = [
        (batch_id, key, priority, None if due_at is None else to_text(due_at), moment, payload, 0)
        for key, payload, priority, due_at, _ in entries
    ]

    def operation(connection: sqlite3.Connection) -> Added:
        last: int = connection.execute(sql.items.LAST_SEQ).fetchone()[0]
        stored = _stored_if_all_exist(connection, batch_id, entries)
        new = 0
        if stored is None:
            if last > MAX_SEQ - len(new_rows):
                raise StoreError(
                    f"no seq is left for new items, because a row of items has or had the seq {last}. Give such rows a smaller "
                    "seq, and set the seq of items in the table sqlite_sequence to the largest seq in items"
                )
            new = sql.items.INSERT_ITEMS.execute(connection, new_rows)
            if new:
                connection.execute(sql.batches.ADD_TO_TOTAL, (new, batch_id))
                if entries[0].traceparent is not None:
                    connection.execute(sql.items.SET_TRACEPARENT, (entries[0].traceparent, last))
            if new == len(entries):
                return Added(new, 0, 0, (), range(last + 1, last + 1 + new))
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
        return Added(new, len(entries) - new, len(changed), undone, [seqs[entry.id] for entry in entries], known)

    return operation


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
