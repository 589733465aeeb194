"""Give a batch another version of its handler: the items that another version completed run again.

``batches.version`` has the newest version and ``version_number`` counts the changes. A claim writes that number into the item,
so a completed item whose number differs was completed by another version. The number costs a claim nothing that can be
measured, because the claim rewrites the row anyway.

The transaction that changes the version requests a rerun of the items that a worker holds, since an earlier version runs them.
Every later claim has the new number. Then the completed items with another number become pending, a step at a time, while
workers commit in between. ``version_applied`` records the end of these steps. After a crash midway, the next start with the
same version does the rest: an item that is pending or has the new number is never changed again.
"""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from asyncrunner.domain.item import Status
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.locks import liveness_lock
from asyncrunner.sqlite.queries import BEFORE_EVERY_SEQ
from asyncrunner.sqlite.transitions import open_seqs, run_again_after_attempt
from asyncrunner.store.batches import BatchVersion, LargeChange, Rival

if TYPE_CHECKING:
    from asyncrunner.sqlite.file.connection import Connection

_WINDOW: Final = 2000  # items that one read examines
_FIRST_STEP: Final = 64  # items that the first transaction changes


def adopt(connection: sqlite3.Connection, database: Path | None, worker_id: str, batch_id: int, version: str) -> BatchVersion:
    """Make *version* the batch's version for a worker; see ``EngineStore.adopt_version``. *database*: None in memory."""
    name, current, number, applied = connection.execute(sql.batches.VERSION, (batch_id,)).fetchone()
    rivals = [
        Rival(*row)
        for row in connection.execute(sql.workers.RIVALS, (worker_id, name, version))
        if database is None or liveness_lock.is_held(database, row[0]) is not False
    ]
    if rivals:
        return BatchVersion(number, applied == number, rivals)
    connection.execute(sql.workers.RECORD_VERSION, (worker_id, name, version))
    if current != version:
        number += 1
        connection.execute(sql.batches.SET_VERSION, (version, batch_id))
        run_again_after_attempt(connection, open_seqs(connection, batch_id, Status.PROCESSING))
    return BatchVersion(number, applied == number)


class _Window(NamedTuple):
    reached: int | None  # the seq of the last item; None: there are no more items
    seqs: list[int]  # the items in it that another version completed


async def apply(connection: Connection, batch_id: int, number: int) -> int:
    """Make the items that another version completed pending, in short transactions; see ``EngineStore.apply_version``."""
    reopened = 0
    change = LargeChange(_FIRST_STEP)
    after: float = BEFORE_EVERY_SEQ
    while True:
        window = await connection.read(partial(_find, batch_id=batch_id, number=number, after=after))
        if window.reached is None:
            break
        seqs = window.seqs
        while seqs:
            step, seqs = seqs[: change.step], seqs[change.step :]
            with change.measured():
                reopened += await connection.write(partial(_reopen, seqs=step, number=number))
        after = window.reached
    await connection.write(lambda raw: raw.execute(sql.batches.VERSION_APPLIED, (number, batch_id)).rowcount)
    return reopened


def _find(connection: sqlite3.Connection, *, batch_id: int, number: int, after: float) -> _Window:
    row = {"batch_id": batch_id, "version": number, "after": after, "limit": _WINDOW}
    reached, seqs = connection.execute(sql.items.COMPLETED_BY_OTHER_VERSION, row).fetchone()
    return _Window(reached, msgspec.json.decode(seqs))


def _reopen(connection: sqlite3.Connection, *, seqs: list[int], number: int) -> int:
    return connection.execute(sql.items.RUN_AGAIN_OTHER_VERSION, (msgspec.json.encode(seqs).decode(), number)).rowcount
