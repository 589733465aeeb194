"""Give a batch another version of its handler: the items that another version completed run again.

``batches.version`` has the newest version and ``version_number`` counts the changes. A claim writes that number into the item,
so a completed item whose number differs was completed by another version. The items become pending a step at a time;
``version_applied`` records the end of these steps. After a crash midway, the next start with the same version does the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asyncrunner.postgres import sql
from asyncrunner.postgres.reader import BEFORE_EVERY_SEQ
from asyncrunner.store.batches import BatchVersion, LargeChange, Rival

if TYPE_CHECKING:
    from asyncpg import Connection, Record

    from asyncrunner.postgres.connection.session import Session

_WINDOW: Final = 2000  # items that one read examines
_FIRST_STEP: Final = 64  # items that the first transaction changes


async def adopt(session: Session, worker_id: str, batch_id: int, version: str) -> BatchVersion:
    """Make *version* the batch's version for a worker; see ``EngineStore.adopt_version``."""

    async def operation(connection: Connection[Record]) -> BatchVersion:
        async with connection.transaction():
            row = await connection.fetchrow(sql.batches.VERSION, batch_id)
            assert row is not None
            name, current, number, applied = row
            rivals = [
                Rival(*columns)
                for *columns, is_locked in await connection.fetch(sql.workers.RIVALS, worker_id, name, version)
                if is_locked
            ]
            if rivals:
                return BatchVersion(number, applied == number, rivals)
            await connection.execute(sql.workers.RECORD_VERSION, worker_id, name, version)
            if current != version:
                number += 1
                await connection.execute(sql.batches.SET_VERSION, version, batch_id)
                await connection.execute(sql.batches.RUN_HELD_AGAIN, batch_id)
            return BatchVersion(number, applied == number)

    return await session.call(operation)


async def apply(session: Session, batch_id: int, number: int) -> int:
    """Make the items that another version completed pending, in short transactions; see ``EngineStore.apply_version``."""
    reopened = 0
    change = LargeChange(_FIRST_STEP)
    after = BEFORE_EVERY_SEQ
    while True:
        row = await session.row(sql.batches.COMPLETED_BY_OTHER_VERSION, batch_id, number, after, _WINDOW)
        if row is None or row[0] is None:
            break
        after = row[0]
        seqs: list[int] = row[1] or []
        while seqs:
            step, seqs = seqs[: change.step], seqs[change.step :]
            with change.measured():
                reopened += await session.change(sql.batches.RUN_AGAIN_OTHER_VERSION, step, number)
    await session.change(sql.batches.VERSION_APPLIED, number, batch_id)
    return reopened
