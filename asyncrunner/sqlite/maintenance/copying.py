"""The CopySource and CopyTarget protocols, implemented on one SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path

import msgspec

from asyncrunner.sqlite import sql
from asyncrunner.sqlite.admin.inspection import SQLiteInspectionStore
from asyncrunner.sqlite.admin.store import SQLiteAdminStore
from asyncrunner.sqlite.file.connection import Connection
from asyncrunner.sqlite.file.creation import check_place, create_if_missing
from asyncrunner.sqlite.file.opening import connect_writer
from asyncrunner.sqlite.large_results import delete_orphaned_pieces
from asyncrunner.sqlite.queries import BEFORE_EVERY_SEQ
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
from asyncrunner.store.copying.walk import page_of
from asyncrunner.text.timestamps import datetime_of, to_text


class SQLiteCopySource(SQLiteInspectionStore):
    """A file from which batches are copied."""

    async def copied_batch(self, batch_id: int) -> CopiedBatch | None:
        row = await self._read(lambda reader: reader.execute(sql.batches.COPIED_BATCH, (batch_id,)).fetchone())
        if row is None:
            return None
        batch = CopiedBatch(*row)
        return batch._replace(created_at=datetime_of(row[4]), paused=bool(batch.paused), cooldown_until=datetime_of(row[6]))

    async def copied_items(self, batch_id: int, after: int | None) -> Sequence[tuple[int, CopiedItem]]:
        def read(reader: sqlite3.Connection) -> Sequence[tuple[int, CopiedItem]]:
            with closing(reader.execute(sql.batches.COPIED_ITEMS, (_position(after), batch_id))) as rows:
                return page_of((seq, _item(columns).released()) for seq, *columns in rows)

        return await self._read(read)

    async def copied_failures(self, batch_id: int, after: int | None) -> Sequence[tuple[int, CopiedFailure]]:
        def read(reader: sqlite3.Connection) -> Sequence[tuple[int, CopiedFailure]]:
            with closing(reader.execute(sql.batches.COPIED_FAILURES, (_position(after), batch_id))) as rows:
                return page_of((number, _failure(columns)) for number, *columns in rows)

        return await self._read(read)

    async def copied_pieces(self, batch_id: int, after: tuple[int, int] | None) -> Sequence[tuple[int, CopiedPiece]]:
        position = (_position(None), -1) if after is None else after
        rows = await self._read(
            lambda reader: reader.execute(sql.batches.COPIED_PIECES, (*position, batch_id, PAGE_PIECES)).fetchall()
        )
        return [(seq, CopiedPiece(*columns)) for seq, *columns in rows]

    async def copy_totals(self, batch_id: int) -> Totals:
        return Totals(*await self._read(lambda reader: reader.execute(sql.batches.COPY_TOTALS, (batch_id,)).fetchone()))


class SQLiteCopyTarget(SQLiteAdminStore):
    """A file to which batches are copied; it is created if it does not exist."""

    async def open(self) -> None:
        check_place(Path(self._location))
        create_if_missing(self._database)
        writer = Connection(self._location, lambda: connect_writer(self._database, "full"), self._database)
        await self._retry(writer.open)  # upgrades an older schema
        await writer.close()
        await super().open()

    async def find_copy(self, name: str) -> CopyState | None:
        return await self._read(lambda reader: _state(reader, name))

    async def begin_copy(self, batch: CopiedBatch, command: CopyCommand) -> CopyState:
        created_at = to_text(self._clock.now()) if batch.created_at is None else _text(batch.created_at)
        reason = why_blocked(command)

        def begin(writer: sqlite3.Connection) -> CopyState:
            state = _state(writer, batch.name)
            if state is not None:
                return state
            row = (
                batch.name, batch.handler, batch.options, created_at, reason, batch.rate_spent, batch.put_offs, batch.version,
                batch.version_number, batch.version_applied,
            )  # fmt: skip
            (batch_id,) = writer.execute(sql.batches.BEGIN_BATCH, row).fetchone()
            writer.execute(sql.batches.BEGIN_COPY, (batch_id, command.source, batch.identity))
            return CopyState(batch_id, command.source, batch.identity, "", None, 0, 0)

        return await self._write(begin)

    async def store_page(self, batch_id: int, reached: str, page: CopyPage) -> None:
        now = to_text(self._clock.now())
        items = [(batch_id, *_item_values(item, now)) for item in page.items]
        failures = [(batch_id, *_failure_values(failure, now)) for failure in page.failures]
        pieces = [(piece.piece, piece.text, batch_id, piece.id) for piece in page.pieces]
        keys = msgspec.json.encode([item.id for item in page.items]).decode() if items else "[]"

        def store(writer: sqlite3.Connection) -> None:
            if not writer.execute(sql.batches.MOVE_COPY, (page.reached, len(items), batch_id, reached)).rowcount:
                if writer.execute(sql.batches.REACHED, (batch_id,)).fetchone() != (page.reached,):
                    raise other_copy(self.location)
                return
            writer.execute(sql.batches.BLOCK_COPY, (batch_id,))
            taken = writer.execute(sql.batches.COPIED_KEYS, (batch_id, keys)).fetchone()
            if taken is not None:
                raise TakenKey(taken[0])
            if items:
                last: int = writer.execute(sql.items.LAST_SEQ).fetchone()[0]
                writer.executemany(sql.batches.INSERT_COPIED_ITEM, [(last + n, *row) for n, row in enumerate(items, 1)])
                writer.execute(sql.batches.ADD_TO_TOTAL, (len(items), batch_id))
            writer.executemany(sql.batches.INSERT_COPIED_FAILURE, failures)
            writer.executemany(sql.batches.INSERT_COPIED_PIECE, pieces)

        await self._write(store)

    async def copy_totals(self, batch_id: int) -> Totals:
        return Totals(*await self._read(lambda reader: reader.execute(sql.batches.COPY_TOTALS, (batch_id,)).fetchone()))

    async def finish_copy(self, batch_id: int, batch: CopiedBatch) -> None:
        now = to_text(self._clock.now())
        controls = (batch.paused, _text(batch.cooldown_until), batch.concurrency, batch.stopped, batch_id)

        def finish(writer: sqlite3.Connection) -> None:
            if not writer.execute(sql.batches.FINISH_COPY, (now, batch_id)).rowcount:
                raise other_copy(self.location)
            writer.execute(sql.batches.FINISH_BATCH, controls)

        await self._write(finish)

    async def begin_restart(self, batch_id: int) -> None:
        def begin(writer: sqlite3.Connection) -> None:
            if not writer.execute(sql.batches.RESTART_COPY, (batch_id,)).rowcount:
                raise other_copy(self.location)
            writer.execute(sql.batches.BLOCK_COPY, (batch_id,))

        await self._write(begin)

    async def discard_items(self, batch_id: int, limit: int) -> int:
        def discard(writer: sqlite3.Connection) -> int:
            self._check_restarted(writer, batch_id)
            writer.execute(sql.batches.DISCARD_FAILURES, (batch_id, limit))
            return writer.execute(sql.batches.DISCARD_ITEMS, (batch_id, limit)).rowcount

        return await self._write(discard)

    async def discard_batch(self, batch_id: int) -> None:
        def discard(writer: sqlite3.Connection) -> None:
            self._check_restarted(writer, batch_id)
            for statement in sql.batches.DISCARD_BATCH:
                writer.execute(statement, (batch_id,))

        await self._write(discard)
        await delete_orphaned_pieces(await self._open_writer())

    def _check_restarted(self, writer: sqlite3.Connection, batch_id: int) -> None:
        if writer.execute(sql.batches.REACHED, (batch_id,)).fetchone() != (RESTART,):
            raise other_copy(self.location)


def _state(connection: sqlite3.Connection, name: str) -> CopyState | None:
    row = connection.execute(sql.batches.COPY_STATE, (name,)).fetchone()
    return None if row is None else CopyState(*row)


def _position(after: int | None) -> float:
    return BEFORE_EVERY_SEQ if after is None else after


def _item(columns: Sequence[object]) -> CopiedItem:
    values = list(columns)
    values[7] = bool(values[7])
    for index in (9, 10, 11, 12):
        values[index] = datetime_of(values[index])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return CopiedItem(*values)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def _item_values(item: CopiedItem, now: str) -> Sequence[object]:
    values: list[object] = list(item)
    values[4] = max(item.claim, 0)  # a negative claim is an insert by hand
    values[9:13] = (_text(item.due_at), _text(item.created_at) or now, _text(item.started_at), _text(item.completed_at))
    return values


def _failure(columns: Sequence[object]) -> CopiedFailure:
    values = list(columns)
    for index in (3, 8):
        values[index] = datetime_of(values[index])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return CopiedFailure(*values)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def _failure_values(failure: CopiedFailure, now: str) -> Sequence[object]:
    values: list[object] = list(failure)
    values[3], values[8] = _text(failure.failed_at) or now, _text(failure.started_at)
    return values


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else to_text(moment.timestamp())
