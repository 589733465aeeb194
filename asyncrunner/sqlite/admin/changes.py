"""Select items for a change, change them, and set a batch's controls, as functions of a connection.

Items are selected on a reader's connection, without the write lock, and then changed in small transactions. A change checks
the states and the age of the selection again, so that items that changed meanwhile stay unchanged.
"""

from __future__ import annotations

import math
import sqlite3
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from asyncrunner.domain.item import TERMINAL, Status
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.purge import purge
from asyncrunner.sqlite.transitions import cancel, known_keys, open_seqs, reopen, run_again
from asyncrunner.store.admin_protocol import UNSET, Change, ItemSet, Selection, Unset
from asyncrunner.store.rules.patterns import like
from asyncrunner.text.timestamps import to_text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_STATUSES: Final = {
    Change.RETRY: frozenset({Status.FAILED, Status.CANCELLED}),
    Change.RERUN: TERMINAL | {Status.PROCESSING},
    Change.CANCEL: frozenset({Status.PENDING, Status.PROCESSING}),
    Change.PURGE: TERMINAL,
}

WINDOW: Final = 2000
"""The number of items that one read returns or compares, when items are selected by their age."""


def select_keys(connection: sqlite3.Connection, batch_id: int, selection: Selection) -> ItemSet:
    """Return the items that have the keys of *selection*, in any state."""
    keys = selection.keys or ()
    items = known_keys(connection, batch_id, keys)
    existing = {item.id for item in items}
    counts = Counter(item.status.value for item in items)
    return ItemSet(selection, array("q", (item.seq for item in items)), counts, [key for key in keys if key not in existing])


def select_open(connection: sqlite3.Connection, batch_id: int, selection: Selection) -> ItemSet:
    """Return the items in the states of *selection*, which do not include ``completed``, of any age.

    With an error, return only the items with this error.
    """
    numbers = array("q")
    counts: dict[str, int] = {}
    for status in selection.statuses:
        if selection.error is None:
            seqs = open_seqs(connection, batch_id, status)
        else:
            values = {"batch_id": batch_id, "status": status, "pattern": like(selection.error), "exact": selection.error}
            statement = sql.admin.FAILED_SEQS_LIKE if status is Status.FAILED else sql.admin.OPEN_SEQS_LIKE
            seqs = array("q", (seq for (seq,) in connection.execute(statement, values)))
        numbers.extend(seqs)
        if seqs:
            counts[status.value] = len(seqs)
    return ItemSet(selection, numbers, counts)


def pending_before(connection: sqlite3.Connection, items: ItemSet, before: float) -> Sequence[int]:
    """Return the ``seq`` of each pending item of the set that arrived before the instant *before*, in input order."""
    values = (_json(items.numbers), to_text(before))
    return [seq for (seq,) in connection.execute(sql.admin.PENDING_BEFORE, values)]


def selected_after(
    connection: sqlite3.Connection, batch_id: int, selection: Selection, after: float
) -> Sequence[tuple[int, str]]:
    """Return the ``seq`` and the status of the next selected items, after the ``seq`` *after*."""
    values = {
        "after": after,
        "batch_id": batch_id,
        "statuses": _json(selection.statuses),
        "pattern": None if selection.error is None else like(selection.error),
        "exact": selection.error,
        "before": _before(selection),
        "limit": WINDOW,
    }
    return connection.execute(sql.admin.NEXT_SELECTED, values).fetchall()


def change(connection: sqlite3.Connection, items: ItemSet, kind: Change, now: float) -> int:
    """Change *items* in the open transaction, and return how many have changed. *now* is in seconds since the epoch."""
    selected = items.selection
    statuses = [status for status in _STATUSES[kind] if selected.keys is not None or status in selected.statuses]
    match kind:
        case Change.RETRY:
            return reopen(connection, items.numbers, statuses)
        case Change.RERUN:
            return run_again(connection, items.numbers, statuses)
        case Change.CANCEL:
            return cancel(connection, items.numbers, statuses, now)
        case Change.PURGE:
            return purge(connection, _json(items.numbers), statuses, _before(selected))


def set_controls(
    connection: sqlite3.Connection, batch_id: int, paused: bool | None, concurrency: int | Unset | None, now: float
) -> bool:
    """Set the given controls of a batch; return whether a control was set."""
    changed = 0
    if paused is True:
        changed += connection.execute(sql.admin.PAUSE, (batch_id,)).rowcount
    if paused is False:
        changed += connection.execute(sql.admin.RESUME, (batch_id, to_text(now))).rowcount
    if concurrency is not UNSET:
        changed += connection.execute(sql.admin.SET_CONCURRENCY, (concurrency, batch_id)).rowcount
    return changed > 0


def _before(selection: Selection) -> str:
    return to_text(math.inf if selection.before is None else selection.before)


def _json(values: Collection[object] | array[int]) -> str:
    return msgspec.json.encode(list(values)).decode()
