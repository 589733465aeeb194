"""The CopySource and CopyTarget protocols, implemented on a schema of a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from asyncrunner.errors import StoreError
from asyncrunner.postgres import sql
from asyncrunner.postgres.admin.inspection import PostgresInspectionStore
from asyncrunner.postgres.admin.store import PostgresAdminStore
from asyncrunner.postgres.connection.schema import SET_PATH, create_or_migrate
from asyncrunner.postgres.connection.session import Session
from asyncrunner.postgres.outcomes import storable
from asyncrunner.postgres.reader import BEFORE_EVERY_SEQ
from asyncrunner.store.copying import rows as copied_rows
from asyncrunner.store.copying.contract import RESTART, CopyState, TakenKey, other_copy
from asyncrunner.store.copying.incomplete import CopyCommand, why_blocked
from asyncrunner.store.copying.rows import (
    PAGE_PIECES,
    CopiedBatch,
    CopiedFailure,
    CopiedItem,
    CopiedPiece,
    CopyPage,
    Totals,
)
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.validation import is_storable

if TYPE_CHECKING:
    from asyncpg import Connection, Record

_ITEM_COLUMNS: Final = ("batch_id", *CopiedItem._fields)
_FAILURE_COLUMNS: Final = ("batch_id", *CopiedFailure._fields)
_PIECE_COLUMNS: Final = ("seq", "claim", "piece", "text")


class PostgresCopySource(PostgresInspectionStore):
    """A schema from which batches are copied."""

    async def copied_batch(self, batch_id: int) -> CopiedBatch | None:
        row = await self._read(lambda connection: connection.fetchrow(sql.copying.BATCH, batch_id))
        return None if row is None else CopiedBatch(*row)

    async def copied_items(self, batch_id: int, after: int | None) -> Sequence[tuple[int, CopiedItem]]:
        rows = await self._page(sql.copying.ITEMS, batch_id, after)
        return [(seq, CopiedItem(*columns).released()) for seq, *columns in rows]

    async def copied_failures(self, batch_id: int, after: int | None) -> Sequence[tuple[int, CopiedFailure]]:
        rows = await self._page(sql.copying.FAILURES, batch_id, after)
        return [(number, CopiedFailure(*columns)) for number, *columns in rows]

    async def _page(self, statement: str, batch_id: int, after: int | None) -> Sequence[Record]:
        position = BEFORE_EVERY_SEQ if after is None else after
        limits = (copied_rows.PAGE_ITEMS, copied_rows.PAGE_CHARACTERS)
        return await self._read(lambda connection: connection.fetch(statement, batch_id, position, *limits))

    async def copied_pieces(self, batch_id: int, after: tuple[int, int] | None) -> Sequence[tuple[int, CopiedPiece]]:
        position = (BEFORE_EVERY_SEQ, -1) if after is None else after
        rows = await self._read(lambda connection: connection.fetch(sql.copying.PIECES, batch_id, *position, PAGE_PIECES))
        return [(seq, CopiedPiece(*columns)) for seq, *columns in rows]

    async def copy_totals(self, batch_id: int) -> Totals:
        return await self._read(lambda connection: _totals(connection, batch_id))


class PostgresCopyTarget(PostgresAdminStore):
    """A schema to which batches are copied; it is created if it does not exist."""

    async def open(self) -> None:
        session = Session(self._address)
        await session.open()
        try:
            await session.call(lambda connection: create_or_migrate(connection, self._address))
        finally:
            await session.close()
        await super().open()

    async def find_copy(self, name: str) -> CopyState | None:
        return await self._read(lambda connection: _state(connection, name))

    async def begin_copy(self, batch: CopiedBatch, command: CopyCommand) -> CopyState:
        created_at = batch.created_at or datetime.fromtimestamp(self._clock.now(), UTC)
        reason = why_blocked(command)

        async def begin(connection: Connection[Record]) -> CopyState:
            async with connection.transaction():
                batch_id = await connection.fetchval(
                    sql.copying.BEGIN_BATCH, batch.name, batch.handler, batch.options, created_at, reason, batch.rate_spent,
                    batch.version, batch.version_number, batch.version_applied,
                )  # fmt: skip
                if batch_id is not None:
                    await connection.execute(sql.copying.BEGIN, batch_id, command.source, batch.identity)
                    await connection.execute(sql.copying.COUNT_PUT_OFFS, batch_id, batch.put_offs)
                state = await _state(connection, batch.name)
                if state is None:
                    raise other_copy(self.location)
                return state

        return await self._write(begin)

    async def store_page(self, batch_id: int, reached: str, page: CopyPage) -> None:
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        items = [self._item_values(batch_id, item, now) for item in page.items]
        failures = [_failure_values(batch_id, failure, now) for failure in page.failures]
        keys = [item.id for item in page.items]

        async def store(connection: Connection[Record]) -> None:
            async with connection.transaction():
                if not await connection.fetchval(sql.copying.MOVE, batch_id, reached, page.reached, len(items)):
                    if await connection.fetchval(sql.copying.REACHED, batch_id) != page.reached:
                        raise other_copy(self.location)
                    return
                await connection.execute(sql.copying.BLOCK, batch_id)
                # The triggers for changes by hand would list each item in a call of its own.
                await connection.execute(SET_PATH.format(self._address.schema))
                if items:
                    taken = await connection.fetchval(sql.copying.TAKEN_KEY, batch_id, keys)
                    if taken is not None:
                        raise TakenKey(taken)
                    await connection.copy_records_to_table("items", records=items, columns=_ITEM_COLUMNS)
                    await connection.execute(sql.copying.LIST_ITEMS, batch_id, keys)
                if failures:
                    await connection.copy_records_to_table("failures", records=failures, columns=_FAILURE_COLUMNS)
                if page.pieces:
                    rows = await connection.fetch(sql.copying.SEQS, batch_id, [piece.id for piece in page.pieces])
                    owners = {key: (seq, claim) for key, seq, claim in rows}
                    pieces = [(*owners[each.id], each.piece, each.text) for each in page.pieces if each.id in owners]
                    await connection.copy_records_to_table("result_pieces", records=pieces, columns=_PIECE_COLUMNS)

        await self._write(store)

    def _item_values(self, batch_id: int, item: CopiedItem, now: datetime) -> Sequence[object]:
        for name in ("id", "payload", "result", "checkpoint", "rerun_payload"):
            text = getattr(item, name)
            if text is not None and not is_storable(text):
                raise StoreError(
                    f"{self.location}: the {name} of item {safe_text(item.id, limit=80)!r} has a character that PostgreSQL "
                    "cannot store, a NUL or a half of a pair; delete the item in the source, or change that text"
                )
        error = None if item.error is None else storable(item.error)
        return (batch_id, *item._replace(claim=max(item.claim, 0), created_at=item.created_at or now, error=error))

    async def copy_totals(self, batch_id: int) -> Totals:
        return await self._read(lambda connection: _totals(connection, batch_id))

    async def finish_copy(self, batch_id: int, batch: CopiedBatch) -> None:
        controls = (batch.paused, batch.cooldown_until, batch.concurrency, batch.stopped)

        async def finish(connection: Connection[Record]) -> None:
            async with connection.transaction():
                is_finished = await connection.fetchval(sql.copying.FINISH, batch_id)
                if is_finished:
                    await connection.execute(sql.copying.FINISH_BATCH, batch_id, *controls)
                elif not await connection.fetchval(sql.copying.IS_FINISHED, batch_id):
                    raise other_copy(self.location)

        await self._write(finish)

    async def begin_restart(self, batch_id: int) -> None:
        async def begin(connection: Connection[Record]) -> None:
            async with connection.transaction():
                if not await connection.fetchval(sql.copying.RESTART, batch_id):
                    raise other_copy(self.location)
                await connection.execute(sql.copying.BLOCK, batch_id)

        await self._write(begin)

    async def discard_items(self, batch_id: int, limit: int) -> int:
        async def discard(connection: Connection[Record]) -> int:
            async with connection.transaction():
                if await connection.fetchval(sql.copying.LOCKED_POSITION, batch_id) != RESTART:
                    raise other_copy(self.location)
                deleted: int = await connection.fetchval(sql.copying.DISCARD_ITEMS, batch_id, limit)
                return deleted

        return await self._write(discard)

    async def discard_batch(self, batch_id: int) -> None:
        async def discard(connection: Connection[Record]) -> None:
            async with connection.transaction():
                reached = await connection.fetchval(sql.copying.LOCKED_POSITION, batch_id)
                if reached is None:  # the answer to this call was lost
                    return
                if reached != RESTART:
                    raise other_copy(self.location)
                for statement in sql.copying.DISCARD_BATCH:
                    await connection.execute(statement, batch_id)

        await self._write(discard)


async def _state(connection: Connection[Record], name: str) -> CopyState | None:
    row = await connection.fetchrow(sql.copying.STATE, name)
    return None if row is None else CopyState(*row)


async def _totals(connection: Connection[Record], batch_id: int) -> Totals:
    async with connection.transaction(readonly=True):
        await connection.execute(sql.doctor.WHOLE_TABLES)
        row = await connection.fetchrow(sql.copying.TOTALS, batch_id)
    assert row is not None
    return Totals(*row)


def _failure_values(batch_id: int, failure: CopiedFailure, now: datetime) -> Sequence[object]:
    stored = failure._replace(
        failed_at=failure.failed_at or now,
        error_type=storable(failure.error_type),
        message=storable(failure.message),
        traceback=storable(failure.traceback),
    )
    return (batch_id, *stored)
