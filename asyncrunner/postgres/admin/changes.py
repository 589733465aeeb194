"""Select items for a change, change them, and set a batch's controls, as functions of a connection.

Items are selected without locks, and then changed in small transactions. A change checks the states and the age of the selection
again, so that items that changed meanwhile stay unchanged.
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import TYPE_CHECKING, Final

from asyncrunner.domain.item import TERMINAL, Status
from asyncrunner.postgres import sql
from asyncrunner.postgres.admin.queries import one_moment
from asyncrunner.postgres.reader import is_text
from asyncrunner.store.admin_protocol import UNSET, Change, ItemSet, Selection, Unset
from asyncrunner.store.rules.patterns import like

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection, Record

_STATUSES: Final = {
    Change.RETRY: frozenset({Status.FAILED, Status.CANCELLED}),
    Change.RERUN: TERMINAL | {Status.PROCESSING},
    Change.CANCEL: frozenset({Status.PENDING, Status.PROCESSING}),
    Change.PURGE: TERMINAL,
}
_PREFETCHED: Final = 10_000  # rows of a selection that are received at a time
_WINDOW: Final = 2000  # items that one read of a walk returns


async def select_keys(connection: Connection[Record], batch_id: int, selection: Selection) -> ItemSet:
    """Return the items that have the keys of *selection*, in any state."""
    keys = selection.keys or ()
    rows = await connection.fetch(sql.admin.EXISTING_KEYS, batch_id, [key for key in keys if is_text(key)])
    existing = {key for _, key, _ in rows}
    counts = Counter(status for _, _, status in rows)
    return ItemSet(selection, array("q", (row[0] for row in rows)), counts, [key for key in keys if key not in existing])


async def select_open(connection: Connection[Record], batch_id: int, selection: Selection) -> ItemSet:
    """Return the items in the states of *selection*, which do not include ``completed``, with its error and age."""
    numbers = array("q")
    counts: dict[str, int] = {}
    async with one_moment(connection):
        for status in selection.statuses:
            before = len(numbers)
            rows = connection.cursor(sql.admin.SEQS[status], batch_id, *_criteria(selection), prefetch=_PREFETCHED)
            async for (seq,) in rows:
                numbers.append(seq)
            if len(numbers) > before:
                counts[status.value] = len(numbers) - before
    return ItemSet(selection, numbers, counts)


async def selected_after(
    connection: Connection[Record], batch_id: int, selection: Selection, after: int
) -> Sequence[tuple[int, str]]:
    """Return the ``seq`` and the status of the next selected items, after the ``seq`` *after*."""
    statuses = list(selection.statuses)
    rows = await connection.fetch(sql.admin.NEXT_SELECTED, batch_id, *_criteria(selection), after, statuses, _WINDOW)
    return [(seq, status) for seq, status in rows]


def _criteria(selection: Selection) -> tuple[str | None, str | None, float | None]:
    return None if selection.error is None else like(selection.error), selection.error, selection.before


async def change(connection: Connection[Record], items: ItemSet, kind: Change, now: float) -> int:
    """Change *items* in one transaction, and return how many have changed. *now* is in seconds since the epoch."""
    selected = items.selection
    statuses = [status for status in _STATUSES[kind] if selected.keys is not None or status in selected.statuses]
    seqs = items.numbers.tolist()
    async with connection.transaction():
        match kind:
            case Change.RETRY:
                return changed_rows(await connection.execute(sql.admin.REOPEN, seqs, statuses))
            case Change.RERUN:
                held = changed_rows(await connection.execute(sql.admin.RUN_AGAIN_AFTER_ATTEMPT, seqs, statuses))
                return held + changed_rows(await connection.execute(sql.admin.RUN_AGAIN, seqs, statuses))
            case Change.CANCEL:
                return changed_rows(await connection.execute(sql.admin.CANCEL, seqs, statuses, now))
            case Change.PURGE:
                purged: int = await connection.fetchval(sql.admin.PURGE, seqs, statuses, selected.before)
                return purged


async def set_controls(
    connection: Connection[Record], batch_id: int, paused: bool | None, concurrency: int | Unset | None, now: float
) -> bool:
    """Set the given controls of a batch in one transaction; return whether a control was set."""
    changed = 0
    async with connection.transaction():
        if paused is True:
            changed += changed_rows(await connection.execute(sql.admin.PAUSE, batch_id))
        if paused is False:
            changed += changed_rows(await connection.execute(sql.admin.RESUME, batch_id, now))
        if concurrency is not UNSET:
            changed += changed_rows(await connection.execute(sql.admin.SET_CONCURRENCY, batch_id, concurrency))
    return changed > 0


def changed_rows(status: str) -> int:
    """Return how many rows a statement changed, from the status that the server returned, such as ``UPDATE 3``."""
    return int(status.rpartition(" ")[2])
