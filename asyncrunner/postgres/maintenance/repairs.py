"""Make the repairs of ``doctor --fix``, which cannot lose an item, its state or its result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncrunner.errors import WorkerLost
from asyncrunner.postgres import sql
from asyncrunner.postgres.recovery import delete_orphaned_pieces, recover_items
from asyncrunner.serialization.error_info import describe
from asyncrunner.store.liveness import ORPHANED
from asyncrunner.text.escaping import counted

if TYPE_CHECKING:
    from asyncpg import Connection, Record

    from asyncrunner.postgres.connection.session import Session


async def repair(session: Session, now: float) -> list[str]:
    """Make every safe repair, and return a line for each.

    Makes the side tables and counts agree with items, which stops the workers' transactions for the time of a read of all
    items; recovers orphaned items; deletes orphaned pieces of large results. *now* is in seconds since the epoch.
    """
    fixed = await session.call(_correct)
    recovered = await recover_items(session, None, describe(WorkerLost(ORPHANED)), now)
    if recovered:
        fixed.append(f"recovered {counted(recovered, 'item')} that no known worker held")
    pieces: int = await session.value(sql.doctor.ORPHANED_PIECES)
    if pieces:
        await delete_orphaned_pieces(session)
        fixed.append(f"deleted {counted(pieces, 'orphaned piece')} of large results")
    return fixed


async def _correct(connection: Connection[Record]) -> list[str]:
    fixed: list[str] = []
    async with connection.transaction():
        await connection.execute(sql.doctor.WHOLE_TABLES)
        await connection.execute(sql.doctor.LOCK)
        for table, statement in sql.doctor.DIFFERENCES.items():
            row = await connection.fetchrow(statement)
            assert row is not None
            missing, surplus = row
            if missing or surplus:
                for correction in sql.doctor.CORRECTIONS[table]:
                    await connection.execute(correction)
                fixed.append(f"the table {table} agrees with items again: rows missing: {missing:,}, rows wrong: {surplus:,}")
        for name, *_ in await connection.fetch(sql.doctor.WRONG_COUNTS, None):
            fixed.append(f"counted the items of batch {name!r} again")
        await connection.execute(sql.doctor.CORRECT_COUNTS)
        for name, wrong in await connection.fetch(sql.doctor.WRONG_CAUSES, None):
            fixed.append(f"counted the failed attempts of batch {name!r} again: {counted(wrong, 'cause')} had a wrong number")
        await connection.execute(sql.doctor.CORRECT_CAUSES)
    return fixed
