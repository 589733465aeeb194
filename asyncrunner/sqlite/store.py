"""The Store verbs on one SQLite file."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from asyncrunner.clock import from_text, to_text
from asyncrunner.errors import StoreError, StoreReplaced, StoreUnavailable
from asyncrunner.item import Claim, Released, Settled, Status
from asyncrunner.sqlite import locks, pieces, reading
from asyncrunner.sqlite import statements as sql
from asyncrunner.sqlite.adding import adding
from asyncrunner.sqlite.connection import Connection, translated
from asyncrunner.sqlite.file import (
    Durability,
    check_place,
    connect_memory,
    connect_watcher,
    connect_writer,
    create_if_missing,
    located,
)
from asyncrunner.sqlite.operating import lose_worker
from asyncrunner.sqlite.purging import find_expired, purge
from asyncrunner.sqlite.reading import counts, failure_groups, items_by_id, rows
from asyncrunner.sqlite.turn import recover, settle, turn
from asyncrunner.store import (
    Added,
    Batch,
    BatchOptions,
    Beat,
    Controls,
    FailureGroup,
    ItemRow,
    Peer,
    Purged,
    Revoked,
    Saved,
    Stop,
    Turn,
    Vitals,
    Want,
    WorkerInfo,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from asyncrunner.item import Counts, Entry, ErrorInfo, OnChange

__all__ = ["SQLiteStore"]

log = logging.getLogger("asyncrunner")

_POLL_SECONDS: Final = 0.05  # between two looks at PRAGMA data_version, only while there is nothing to do: 0.6 % of a core
_KEEP_WORKERS_SECONDS: Final = 7 * 86400.0


class _Identity(NamedTuple):
    """Device and inode of the files that were opened; None for one that is not there."""

    database: tuple[int, int] | None
    wal: tuple[int, int] | None
    shm: tuple[int, int] | None


class SQLiteStore:
    """A file that many processes may share, or ``":memory:"`` for one that ends with this object."""

    def __init__(self, path: str | os.PathLike[str], *, durability: Durability = "full") -> None:
        # Resolved, so that all who mean this file share its locks, by whatever link or folder they come.
        self._database = None if os.fspath(path) == ":memory:" else located(path)
        self._given = os.fspath(path)
        self._durability: Durability = durability
        self._connection = Connection(self.location, self._connect, self._database)
        self._locks: dict[str, locks.LivenessLock] = {}
        self._workers: dict[str, tuple[str, str, int, str, str, str, str]] = {}
        self._identity: _Identity | None = None
        self._watching: sqlite3.Connection | None = None

    @property
    def location(self) -> str:
        return self._given

    async def open(self) -> None:
        if self._database is not None:
            check_place(Path(self._given))
            create_if_missing(self._database)
        await self._connection.open()
        self._identity = self._current_identity()

    def _connect(self) -> sqlite3.Connection:
        if self._database is None:
            return connect_memory()
        return connect_writer(self._database, self._durability)

    async def close(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None and self._connection.is_of_this_process:
            watching.close()
        try:
            await self._connection.close()
        finally:
            while self._locks:
                self._locks.popitem()[1].drop()

    # --- batches and items ---------------------------------------------------------------------------------------

    async def open_batch(self, name: str, handler: str, options: BatchOptions, *, now: float) -> Batch:
        row = (name, handler, msgspec.json.encode(options).decode(), to_text(now))

        def operation(connection: sqlite3.Connection) -> Batch:
            batch_id: int = connection.execute(sql.UPSERT_BATCH, row).fetchone()[0]
            return Batch(batch_id, name)

        return await self._connection.write(operation)

    async def find_batch(self, name: str) -> Batch | None:
        found = await self._connection.read(lambda connection: connection.execute(sql.BATCH_ID, (name,)).fetchone())
        return None if found is None else Batch(found[0], name)

    async def batch_names(self) -> Sequence[str]:
        found = await self._connection.read(lambda connection: connection.execute(sql.BATCH_NAMES).fetchall())
        return [name for (name,) in found]

    async def stop_batch(self, batch_id: int, reason: str, *, now: float) -> None:
        del now

        def operation(connection: sqlite3.Connection) -> None:
            connection.execute(sql.STOP, (reason, batch_id))

        await self._connection.write(operation)

    async def add(self, batch_id: int, entries: Sequence[Entry], *, on_change: OnChange, now: float) -> Added:
        added = await self._connection.write(adding(batch_id, entries, on_change, now))
        if added.changed and on_change == "rerun":
            await self._sweep()
        return added

    async def reopen(self, batch_id: int, *, max_attempts: int, everything: bool, now: float) -> int:
        del now  # items become due at once

        def operation(connection: sqlite3.Connection) -> int:
            if everything:
                return connection.execute(sql.REOPEN_ALL_FAILED, (batch_id,)).rowcount
            return connection.execute(sql.REOPEN_FAILED, (batch_id, max_attempts)).rowcount

        return await self._connection.write(operation)

    async def turn(
        self, worker_id: str, settled: Sequence[Settled], wants: Sequence[Want], *, saved: Sequence[Saved] = (), now: float
    ) -> Turn:
        def operation(connection: sqlite3.Connection) -> Turn:
            if self._is_outcast(connection, worker_id):
                # What it held was recovered, so nothing of this can be settled, and what it claimed nobody would recover.
                return Turn((), [*(done.claim for done in settled), *(save.claim for save in saved)], {}, outcast=True)
            return turn(connection, worker_id, settled, wants, saved, now)

        return await self._connection.write(operation)

    async def keep(self, claim: Claim, piece: int, text: str) -> bool:
        return await self._connection.write(
            lambda connection: pieces.keep(connection, claim.seq, claim.number, piece, text),
            checkpoint_bytes=pieces.CHECKPOINT_BYTES,
        )

    async def cancel(self, batch_id: int, ids: Sequence[str], *, now: float) -> int:
        row = (to_text(now), batch_id, msgspec.json.encode(ids).decode())
        return await self._connection.write(lambda connection: connection.execute(sql.CANCEL, row).rowcount)

    async def revoked(self, claims: Sequence[Claim]) -> Sequence[Revoked]:
        held = msgspec.json.encode([(claim.seq, claim.number) for claim in claims]).decode()
        found = await self._connection.read(lambda connection: connection.execute(sql.REVOKED, (held,)).fetchall())
        return [Revoked(claims[index], status == Status.CANCELLED) for index, status in found]

    async def controls(self, batch_ids: Sequence[int]) -> Mapping[int, Controls]:
        wanted = msgspec.json.encode(batch_ids).decode()
        found = await self._connection.read(lambda connection: connection.execute(sql.BATCH_CONTROLS, (wanted,)).fetchall())
        return {batch_id: Controls(bool(held), concurrency) for batch_id, held, concurrency in found}

    # --- workers -------------------------------------------------------------------------------------------------

    async def join(self, worker: WorkerInfo, *, now: float) -> None:
        if self._database is not None and worker.worker_id not in self._locks:
            self._locks[worker.worker_id] = locks.LivenessLock(self._database, worker.worker_id)
        moment = to_text(now)
        batches = msgspec.json.encode(worker.batches).decode()
        row = (worker.worker_id, worker.host, worker.pid, worker.role, batches, moment, moment)
        self._workers[worker.worker_id] = row

        def operation(connection: sqlite3.Connection) -> None:
            connection.execute(sql.FORGET_OLD_WORKERS, (to_text(now - _KEEP_WORKERS_SECONDS),))
            connection.execute(sql.INSERT_WORKER, row)

        await self._connection.write(operation)
        await self._sweep()

    async def _sweep(self) -> None:
        with suppress(StoreUnavailable):  # what it comes after is done; the next one takes what is left
            while await self._connection.write(pieces.sweep):
                pass

    async def leave(self, worker_id: str, *, now: float) -> None:
        def operation(connection: sqlite3.Connection) -> None:
            held = connection.execute(sql.HELD_BY, (worker_id,)).fetchall()
            settle(connection, [_given_back(row, now) for row in held], now)
            connection.execute(sql.END_WORKER, (to_text(now), 0, worker_id))

        await self._connection.write(operation)
        await self._sweep()
        lock = self._locks.pop(worker_id, None)
        if lock is not None:
            lock.release()

    async def beat(self, worker_id: str, vitals: Vitals, *, now: float) -> Beat:
        self._check_identity()
        self._restore_locks()

        def operation(connection: sqlite3.Connection) -> Beat:
            is_outcast = self._is_outcast(connection, worker_id)
            newest = from_text(connection.execute(sql.NEWEST_BEAT).fetchone()[0])
            (stop,) = connection.execute(sql.BEAT, (to_text(now), *vitals, worker_id)).fetchone()
            return Beat(
                outcast=is_outcast,
                ahead=0.0 if newest is None else max(0.0, newest - now),
                stop=Stop(min(max(stop, Stop.NO), Stop.CANCEL)),
            )

        return await self._connection.write(operation)

    def _is_outcast(self, connection: sqlite3.Connection, worker_id: str) -> bool:
        ended = connection.execute(sql.IS_OUTCAST, (worker_id,)).fetchone()
        if ended is not None:
            return bool(ended[0])
        # Somebody deleted the row: nobody has recovered anything, so it is there again and goes on.
        connection.execute(sql.INSERT_WORKER, self._workers[worker_id])
        return False

    def _restore_locks(self) -> None:
        for lock in self._locks.values():
            if lock.restore():
                log.warning("the lock files of %s were deleted while they were used; they are made again", self.location)
        self._connection.restore_locks()

    async def set_back(self, seconds: float, *, now: float) -> int:
        row = {"now": to_text(now), "instant": now, "seconds": seconds, "modifier": f"-{seconds:.3f} seconds"}

        def operation(connection: sqlite3.Connection) -> int:
            moved = connection.execute(sql.SET_BACK_RETRIES, row).rowcount
            connection.execute(sql.SET_BACK_BATCHES, row)
            connection.execute(sql.SET_BACK_WORKERS, row)
            return moved

        return await self._connection.write(operation)

    async def peers(self, worker_id: str) -> Sequence[Peer]:
        found = await self._connection.read(lambda connection: connection.execute(sql.PEERS, (worker_id,)).fetchall())
        return [
            Peer(
                peer_id, pulse, host, pid, None if self._database is None else locks.is_held(self._database, peer_id), role,
                _names(batches),
            )
            for peer_id, pulse, host, pid, role, batches in found
        ]  # fmt: skip

    async def ask_to_stop(self, worker_ids: Sequence[str], how: Stop) -> int:
        row = (int(how), msgspec.json.encode(worker_ids).decode())
        return await self._connection.write(lambda connection: connection.execute(sql.ASK_TO_STOP, row).rowcount)

    async def recover(self, worker_id: str, error: ErrorInfo, *, now: float, pulse: str | None = None) -> int:
        recovered = await self._connection.write(lambda connection: lose_worker(connection, worker_id, error, now, pulse))
        await self._sweep()
        if self._database is not None and locks.is_held(self._database, worker_id) is False:
            locks.forget(self._database, worker_id)
        return recovered

    async def recover_orphans(self, error: ErrorInfo, *, now: float) -> int:
        return await self._connection.write(
            lambda connection: len(recover(connection, connection.execute(sql.ORPHANS).fetchall(), error, now))
        )

    async def purge(self, batch_ids: Sequence[int], *, before: float, after: int, limit: int) -> Purged:
        moment = to_text(before)
        found, step = await self._connection.read(lambda connection: find_expired(connection, batch_ids, moment, after, limit))
        if not step.due:
            return step
        removed = await self._connection.write(lambda connection: purge(connection, found, [Status.COMPLETED], moment))
        await self._sweep()
        return step._replace(removed=removed)

    # --- asking --------------------------------------------------------------------------------------------------

    async def counts(self, batch_id: int, *, now: float) -> Counts:
        return await self._connection.read(lambda connection: counts(connection, batch_id, now))

    async def recent_rate(self, batch_id: int) -> float | None:
        return await self._connection.read(lambda connection: reading.recent_rate(connection, batch_id))

    async def rows(self, batch_id: int, *, after: int, limit: int) -> Sequence[ItemRow]:
        found = await self._connection.read(lambda connection: rows(connection, batch_id, after, limit))
        return await self._whole(found)

    async def items(self, batch_id: int, ids: Sequence[str]) -> Sequence[ItemRow]:
        found = await self._connection.read(lambda connection: items_by_id(connection, batch_id, ids))
        return await self._whole(found)

    async def _whole(self, found: Sequence[ItemRow]) -> Sequence[ItemRow]:
        """With the results that are in pieces: those are read one by one, so that others come in between."""
        return [await self._put_together(row) if row.result == pieces.IN_PIECES else row for row in found]

    async def _put_together(self, row: ItemRow) -> ItemRow:
        kept = await self._connection.read(partial(pieces.kept, seq=row.seq))
        if kept is None or from_text(kept.completed_at) != row.completed_at:
            raise self._changed(row)
        texts: list[str] = []
        for piece in range(kept.pieces):
            text = await self._connection.read(partial(pieces.piece_of, seq=row.seq, claim=kept.claim, piece=piece))
            if text is None:
                break
            texts.append(text)
        if not texts or len(texts) < kept.pieces:
            if kept != await self._connection.read(partial(pieces.kept, seq=row.seq)):
                raise self._changed(row)
            raise StoreError(
                f"{self.location}: the result of item {row.id!r} is not whole: somebody deleted rows of result_pieces. Run the "
                'item again, with on_change="rerun" or after deleting its row'
            )
        return row._replace(result="".join(texts))

    def _changed(self, row: ItemRow) -> StoreUnavailable:
        return StoreUnavailable(f"{self.location}: item {row.id!r} was deleted or run again while it was read; it is tried again")

    async def failure_groups(self, batch_id: int, *, limit: int) -> Sequence[FailureGroup]:
        return await self._connection.read(lambda connection: failure_groups(connection, batch_id, limit))

    async def wait_for_change(self, mark: int | None) -> int:
        while True:
            version = self._data_version()
            if version not in (mark, None):
                return version
            await asyncio.sleep(_POLL_SECONDS)  # half of what anyio.sleep costs

    def _data_version(self) -> int | None:
        # On a connection of its own, in the loop: 20 us a look instead of the 300 us of a hop to the writer's thread. It
        # holds no transaction, and waits for nobody: where it could not look, it looks again.
        if self._database is None:
            return 0
        self._connection.check_open()
        if self._watching is None:
            self._watching = connect_watcher(self._database)
        try:
            with translated(self.location):
                version: int = self._watching.execute(sql.DATA_VERSION).fetchone()[0]
        except StoreUnavailable:
            return None
        return version

    def _check_identity(self) -> None:
        current = self._current_identity()
        if current == self._identity or current is None or self._identity is None:
            return
        if current.database == self._identity.database:
            name, what = ("-shm", "SQLite's locks") if current.wal == self._identity.wal else ("-wal", "the newest commits")
            raise StoreReplaced(
                f"{self.location}{name}, which holds {what}, was deleted or replaced while this process used it; what is "
                "finished from now on cannot be stored. Stop every program that uses the file, then run again"
            )
        raise StoreReplaced(
            f"{self.location} was deleted, moved or replaced while this process used it; what is finished from now on "
            "cannot be stored. Put the file back if you can, then run again"
        )

    def _current_identity(self) -> _Identity | None:
        if self._database is None:
            return None
        beside = [self._database.with_name(self._database.name + suffix) for suffix in ("-wal", "-shm")]
        return _Identity(*(self._identity_of(path) for path in (self._database, *beside)))

    def _identity_of(self, path: Path) -> tuple[int, int] | None:
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self.location} cannot be looked at: {error}") from error
        return (found.st_dev, found.st_ino)


def _given_back(row: Sequence[Any], now: float) -> Settled:
    return Settled(Claim(*row[:-1]), Released(), now, now)


def _names(text: str) -> Sequence[str]:
    try:
        return msgspec.json.decode(text, type=list[str])
    except msgspec.DecodeError:  # a person changed it
        return ()
