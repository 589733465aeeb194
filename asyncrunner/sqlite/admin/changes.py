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
from asyncrunner.sqlite.admin.patterns import like
from asyncrunner.sqlite.purge import purge
from asyncrunner.sqlite.transitions import cancel, known_keys, open_seqs, reopen, run_again
from asyncrunner.store.admin_protocol import UNSET, Change, ItemSet, Selection, Unset
from asyncrunner.text.timestamps import to_text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_STATUSES: Final = {
    Change.RETRY: frozenset({Status.FAILED, Status.CANCELLED}),
    Change.RERUN: TERMINAL | {Status.PROCESSING},
    Change.CANCEL: frozenset({Status.PENDING, Status.PROCESSING}),
    Change.PURGE: TERMINAL,
}

_WINDOW: Final = 2000  # items that one read returns, when finished items are selected by age


def select_keys(connection: sqlite3.Connection, batch_id: int, selection: Selection) -> ItemSet:
    """Return the items that have the keys of *selection*, in any state."""
    keys = selection.keys or ()
    items = known_keys(connection, batch_id, keys)
    existing = {item.id for item in items}
    counts = Counter(item.status.value for item in items)
    return ItemSet(selection, array("q", (item.seq for item in items)), counts, [key for key in keys if key not in existing])


def select_open(connection: sqlite3.Connection, batch_id: int, selection: Selection) -> ItemSet:
    """Return the items in the states of *selection*, which do not include ``completed``.

    With an error, return only the failed items with this error.
    """
    numbers = array("q")
    counts: dict[str, int] = {}
    for status in selection.statuses:
        if selection.error is None:
            seqs = open_seqs(connection, batch_id, status)
        elif status is not Status.FAILED:
            continue
        else:
            values = {"batch_id": batch_id, "pattern": like(selection.error), "exact": selection.error}
            seqs = array("q", (seq for (seq,) in connection.execute(sql.admin.FAILED_SEQS_LIKE, values)))
        numbers.extend(seqs)
        if seqs:
            counts[status.value] = len(seqs)
    return ItemSet(selection, numbers, counts)


def finished_after(
    connection: sqlite3.Connection, batch_id: int, selection: Selection, after: float
) -> Sequence[tuple[int, str]]:
    """Return the ``seq`` and the status of the next finished items, after the ``seq`` *after*, that match *selection*."""
    values = (after, batch_id, _json(selection.statuses), _before(selection), _WINDOW)
    return connection.execute(sql.items.PURGEABLE, values).fetchall()


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
