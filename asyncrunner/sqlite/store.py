"""The EngineStore and ReadStore protocols, implemented on one SQLite file."""

from __future__ import annotations

import logging
import os
import sqlite3
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from asyncrunner.domain.clock import Clock, SystemClock
from asyncrunner.domain.item import Claim, Status
from asyncrunner.domain.options import Durability
from asyncrunner.domain.outcome import Completed, Released, Settlement
from asyncrunner.errors import StoreError
from asyncrunner.sqlite import large_results, queries, sql, transitions, versions
from asyncrunner.sqlite.change_watch import ChangeWatch
from asyncrunner.sqlite.claims.claim import claim_of
from asyncrunner.sqlite.claims.recovery import recover_items
from asyncrunner.sqlite.claims.settle import prepare, settle
from asyncrunner.sqlite.claims.turn import turn
from asyncrunner.sqlite.file.connection import Connection
from asyncrunner.sqlite.file.creation import check_place, create_if_missing
from asyncrunner.sqlite.file.identity import FileIdentity
from asyncrunner.sqlite.file.opening import connect_memory, connect_writer, located
from asyncrunner.sqlite.insert import Insertion
from asyncrunner.sqlite.large_results import delete_orphaned_pieces, with_results
from asyncrunner.sqlite.locks import liveness_lock
from asyncrunner.sqlite.locks.slot_journal import SlotJournal
from asyncrunner.sqlite.purge import find_expired, purge
from asyncrunner.sqlite.reader import SQLiteReader, copied
from asyncrunner.store.batches import Added, Batch, BatchOptions, BatchVersion, Controls
from asyncrunner.store.copying.incomplete import incomplete_copy
from asyncrunner.store.items import Cursor, FailureGroup, ItemRow, Mark, OpenItems, Page, PurgeStep
from asyncrunner.store.rules.purge_walk import Walk
from asyncrunner.store.turn import Checkpoint, ClaimRequest, LostClaim, Turn, Want
from asyncrunner.store.workers import Beat, Peer, Stop, Vitals, WorkerInfo
from asyncrunner.text.timestamps import from_text, to_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableSequence, Sequence

    from asyncrunner.domain.item import Counts, NewItem, OnKnownKey
    from asyncrunner.domain.outcome import ErrorInfo
    from asyncrunner.store.protocols import ReadStore

log = logging.getLogger("asyncrunner")

_REOPENED_PER_STEP: Final = 2000  # items per transaction, which takes some hundredths of a second
_WORKER_RETENTION_SECONDS: Final = 7 * 86400.0
_CLOCK_SLACK_SECONDS: Final = 5.0  # heartbeats of several processes may be written out of order by this much


class SQLiteStore:
    """A store in one SQLite file, which many processes may share, or in memory (``":memory:"``), which ends with ``close()``."""

    def __init__(self, path: str | os.PathLike[str], *, durability: Durability = "full", clock: Clock | None = None) -> None:
        """Prepare a store at *path*; ``open()`` opens it. Raises StoreError for an unusable path.

        *clock* gives the times of all rows; the machine's clock by default. Several threads call its ``now()``.
        """
        # Resolve the path: processes that open the file through different links or folders must share its locks.
        self._database = None if os.fspath(path) == ":memory:" else located(path)
        self._given_path = os.fspath(path)
        self._durability: Durability = durability
        self._clock: Clock = clock or SystemClock()
        self._connection = Connection(self.location, self._connect, self._database)
        self._locks: dict[str, liveness_lock.LivenessLock] = {}
        self._journals: dict[str, SlotJournal] = {}
        self._workers: dict[str, tuple[str, str, int, str, str, str, str, str]] = {}
        self._identity = FileIdentity(self._database, self.location)
        self._undelivered = 0  # claims of a turn that its worker has not received: until then an add claims nothing more for it
        self._was_known = False  # whether all items of the last add existed
        self._watch = ChangeWatch(self._database, self.location, check_open=self._connection.check_open, now=self._clock.now)
        self._connection.ring = self._watch.ring

    @property
    def location(self) -> str:
        return self._given_path

    @property
    def busy_until(self) -> float:
        return self._connection.busy_until

    @property
    def claims_with_add(self) -> bool:
        return True

    async def open(self) -> None:
        if self._database is not None:
            check_place(Path(self._given_path))
            create_if_missing(self._database)
        await self._connection.open()
        self._identity.remember()

    def _connect(self) -> sqlite3.Connection:
        if self._database is None:
            return connect_memory()
        return connect_writer(self._database, self._durability)

    async def close(self) -> None:
        self._watch.close(is_of_this_process=self._connection.is_of_this_process)
        try:
            await self._connection.close()
        finally:
            while self._journals:
                self._journals.popitem()[1].drop()
            while self._locks:
                self._locks.popitem()[1].drop()

    # --- batches and items ---------------------------------------------------------------------------------------

    async def open_batch(self, name: str, handler: str, options: BatchOptions) -> Batch:
        row = (name, handler, msgspec.json.encode(options).decode(), to_text(self._clock.now()))

        def operation(connection: sqlite3.Connection) -> Batch:
            opened = connection.execute(sql.batches.UPSERT_BATCH, row).fetchone()
            if opened is None:
                raise incomplete_copy(self.location, name, queries.incomplete_copies(connection, [name])[name])
            return Batch(opened[0], name)

        return await self._connection.write(operation, rings=bool)

    async def adopt_version(self, worker_id: str, batch_id: int, version: str) -> BatchVersion:
        return await self._connection.write(
            lambda connection: versions.adopt(connection, self._database, worker_id, batch_id, version)
        )

    async def apply_version(self, batch_id: int, number: int) -> int:
        return await versions.apply(self._connection, batch_id, number)

    async def find_batch(self, name: str) -> Batch | None:
        return await self._connection.read(lambda connection: queries.find_batch(connection, name))

    async def incomplete_copies(self, names: Sequence[str]) -> Mapping[str, str]:
        return await self._connection.read(lambda connection: queries.incomplete_copies(connection, names))

    async def batch_names(self) -> Sequence[str]:
        return await self._connection.read(queries.batch_names)

    async def stop_batch(self, batch_id: int, reason: str) -> None:
        def operation(connection: sqlite3.Connection) -> None:
            connection.execute(sql.batches.STOP, (reason, batch_id))

        await self._connection.write(operation)

    async def rest_batch(self, batch_id: int, seconds: float) -> None:
        def operation(connection: sqlite3.Connection) -> None:
            connection.execute(sql.batches.COOL_DOWN, (to_text(self._clock.now() + seconds), batch_id))

        await self._connection.write(operation)

    async def add(
        self, batch_id: int, entries: Sequence[NewItem], *, on_change: OnKnownKey, request: ClaimRequest | None = None
    ) -> Added:
        now = self._clock.now()
        insertion = Insertion(
            batch_id, entries, on_change, now, request, expects_known=self._was_known, may_claim=lambda: not self._undelivered
        )
        added = insertion.with_claims(await self._connection.write(insertion, rings=insertion.leaves_items))
        self._was_known = added.existing > 0 and not added.new
        if added.changed and on_change in ("rerun", "run again"):
            await delete_orphaned_pieces(self._connection)
        return added

    async def reopen_failed(self, batch_id: int, *, max_attempts: int | None) -> int:
        seqs = await self._connection.read(lambda connection: transitions.reopenable(connection, batch_id, max_attempts))
        reopened = 0
        for first in range(0, len(seqs), _REOPENED_PER_STEP):
            step = partial(transitions.reopen_failed, seqs=seqs[first : first + _REOPENED_PER_STEP], max_attempts=max_attempts)
            reopened += await self._connection.write(step, rings=bool)
        return reopened

    async def give(self, batch_id: int, seqs: Sequence[int], *, max_attempts: int | None) -> int:
        del batch_id  # a seq is unique in the file
        return await self._connection.write(lambda connection: transitions.give(connection, seqs, max_attempts), rings=bool)

    async def turn(
        self,
        worker_id: str,
        settlements: Sequence[Settlement],
        wants: Sequence[Want],
        *,
        checkpoints: Sequence[Checkpoint] = (),
    ) -> Turn:
        prepared = prepare(settlements, self._clock.now())

        def operation(connection: sqlite3.Connection) -> Turn:
            if self._is_outcast(connection, worker_id):
                # Recovery has settled the worker's items, so the outcomes have no current claim. A new claim would stay
                # unrecovered, because the worker is already marked as lost.
                lost = [*(settlement.claim for settlement in settlements), *(checkpoint.claim for checkpoint in checkpoints)]
                return Turn((), lost, {}, outcast=True)
            done = turn(connection, worker_id, settlements, prepared, wants, checkpoints)
            self._undelivered = len(done.claims)
            return done

        result: Turn = await self._connection.write(operation, rings=partial(self._watch.rings_after, settlements))
        self._undelivered = 0
        if result.reruns and any(isinstance(each.outcome, Completed) and each.outcome.kept for each in settlements):
            await delete_orphaned_pieces(self._connection)
        return result

    async def stage_result(self, claim: Claim, piece: int, text: str) -> bool:
        return await self._connection.write(
            lambda connection: large_results.store_piece(connection, claim.seq, claim.number, piece, text),
            checkpoint_bytes=large_results.PIECES_CHECKPOINT_BYTES,
        )

    async def cancel(self, batch_id: int, keys: Sequence[str]) -> int:
        now = self._clock.now()
        return await self._connection.write(lambda connection: transitions.cancel_keys(connection, batch_id, keys, now))

    async def lost_claims(self, claims: Sequence[Claim]) -> Sequence[LostClaim]:
        pairs = msgspec.json.encode([(claim.seq, claim.number) for claim in claims]).decode()
        lost = await self._connection.read(lambda connection: connection.execute(sql.claims.LOST_CLAIMS, (pairs,)).fetchall())
        return [LostClaim(claims[index], status == Status.CANCELLED) for index, status in lost]

    async def controls(self, batch_ids: Sequence[int]) -> Mapping[int, Controls]:
        ids = msgspec.json.encode(batch_ids).decode()
        controls = await self._read_small(sql.batches.LIVE_CONTROLS, (ids,))
        return {batch_id: Controls(bool(blocked), concurrency) for batch_id, blocked, concurrency in controls}

    # --- workers -------------------------------------------------------------------------------------------------

    async def join(self, worker: WorkerInfo) -> None:
        if self._database is not None and worker.worker_id not in self._locks:
            self._locks[worker.worker_id] = liveness_lock.LivenessLock(self._database, worker.worker_id)
        now = self._clock.now()
        moment = to_text(now)
        batches = msgspec.json.encode(worker.batches).decode()
        row = (worker.worker_id, worker.host, worker.pid, worker.process, worker.role, batches, moment, moment)
        self._workers[worker.worker_id] = row

        def operation(connection: sqlite3.Connection) -> None:
            connection.execute(sql.workers.DELETE_OLD_WORKERS, (to_text(now - _WORKER_RETENTION_SECONDS),))
            connection.execute(sql.workers.INSERT_WORKER, row)

        await self._connection.write(operation)
        self._watch.open_bell(worker.worker_id)
        await delete_orphaned_pieces(self._connection)

    def slot_notes(self, worker_id: str, slots: int) -> MutableSequence[int]:
        if self._database is None:
            return [0] * slots
        journal = self._journals.setdefault(worker_id, SlotJournal(self._database, worker_id))
        return journal.notes(slots)

    async def leave(self, worker_id: str) -> None:
        now = self._clock.now()

        def operation(connection: sqlite3.Connection) -> int:
            held_rows = connection.execute(sql.workers.HELD_BY, (worker_id,)).fetchall()
            settle(connection, prepare([Settlement(claim_of(row[:-1]), Released(), now, now) for row in held_rows], now))
            connection.execute(sql.workers.END_WORKER, (to_text(now), 0, worker_id))
            return len(held_rows)

        await self._connection.write(operation, rings=bool)
        await delete_orphaned_pieces(self._connection)
        journal = self._journals.pop(worker_id, None)
        if journal is not None:
            journal.delete()
        self._watch.close_bell()
        lock = self._locks.pop(worker_id, None)
        if lock is not None:
            lock.release()

    async def beat(self, worker_id: str, vitals: Vitals) -> Beat:
        self._identity.check()
        self._restore_locks()
        now = self._clock.now()
        *statistics, _ = vitals
        throttles = msgspec.json.encode(dict(vitals.throttles)).decode()

        def operation(connection: sqlite3.Connection) -> Beat:
            is_outcast = self._is_outcast(connection, worker_id)
            newest = from_text(connection.execute(sql.workers.NEWEST_BEAT).fetchone()[0])
            (stop,) = connection.execute(sql.workers.BEAT, (to_text(now), *statistics, throttles, worker_id)).fetchone()
            set_back, moved = 0.0, 0
            if newest is not None and newest - now > _CLOCK_SLACK_SECONDS:
                set_back, moved = self._move_times_back(connection, newest)
            return Beat(is_outcast, Stop(min(max(stop, Stop.NO), Stop.CANCEL)), set_back, moved)

        return await self._connection.write(operation, is_lasting=False)

    def _move_times_back(self, connection: sqlite3.Connection, newest: float) -> tuple[float, int]:
        """Move stored times earlier if the newest heartbeat, at *newest*, is in the future because the clock was set back.

        The times are those of waiting retries and put-offs, cool-downs, rate limits and workers. Returns by how many seconds the
        clock was set back, and how many due times of items were moved.
        """
        now = self._clock.now()  # read again: if the transaction waited for the write lock, the time of this heartbeat is old
        seconds = newest - now
        if seconds <= _CLOCK_SLACK_SECONDS:
            return 0.0, 0
        row = {"now": to_text(now), "instant": now, "seconds": seconds, "modifier": f"-{seconds:.3f} seconds"}
        moved = connection.execute(sql.workers.SET_BACK_RETRIES, row).rowcount
        connection.execute(sql.workers.SET_BACK_BATCHES, row)
        connection.execute(sql.workers.SET_BACK_WORKERS, row)
        return seconds, moved

    def _is_outcast(self, connection: sqlite3.Connection, worker_id: str) -> bool:
        ended = connection.execute(sql.workers.IS_OUTCAST, (worker_id,)).fetchone()
        if ended is not None:
            return bool(ended[0])
        # A person deleted the worker's row. No process declared the worker lost, so insert the row again.
        connection.execute(sql.workers.INSERT_WORKER, self._workers[worker_id])
        return False

    def _restore_locks(self) -> None:
        for lock in self._locks.values():
            if lock.restore():
                log.warning(
                    "the lock files of %s were deleted or replaced while in use; asyncrunner created them again", self.location
                )
        self._connection.restore_locks()
        self._watch.restore_bell()

    async def peers(self, worker_id: str) -> Sequence[Peer]:
        peers = await self._read_small(sql.workers.PEERS, (worker_id,))
        return [self._peer(*columns) for columns in peers]

    async def _read_small(self, statement: str, arguments: Sequence[object]) -> Sequence[Any]:
        rows = self._watch.read(statement, arguments)
        if rows is None:
            rows = await self._connection.read(lambda connection: connection.execute(statement, arguments).fetchall())
        return rows

    def _peer(self, worker_id: str, pulse: str, host: str, pid: int) -> Peer:
        alive = None if self._database is None else liveness_lock.is_held(self._database, worker_id)
        return Peer(worker_id, pulse, host, pid, alive, liveness_lock.EVIDENCE[alive])

    async def recover(self, worker_id: str | None, error: ErrorInfo, *, pulse: str | None = None) -> int:
        return await recover_items(self._connection, self._database, worker_id, error, self._clock.now(), pulse)

    async def purge_step(self, batch_ids: Sequence[int], *, older_than: float, cursor: Cursor | None) -> PurgeStep:
        before = to_text(self._clock.now() - older_than)
        walk = Walk.at(cursor)
        window = await self._connection.read(lambda connection: find_expired(connection, batch_ids, before, walk.after))
        removed = 0
        if window.due:
            removed = await self._connection.write(
                lambda connection: purge(connection, window.expired, [Status.COMPLETED], before)
            )
            await delete_orphaned_pieces(self._connection)
        return PurgeStep(window.due, removed, walk.next(window))

    # --- reading -------------------------------------------------------------------------------------------------

    async def counts(self, batch_id: int) -> Counts:
        now = self._clock.now()
        return await self._connection.read(lambda connection: queries.counts(connection, batch_id, now))

    async def recent_rate(self, batch_id: int) -> float | None:
        return await self._connection.read(lambda connection: queries.recent_rate(connection, batch_id))

    async def item_page(self, batch_id: int, cursor: Cursor | None, limit: int) -> Page[ItemRow]:
        page = await self._connection.read(lambda connection: queries.item_page(connection, batch_id, cursor, limit))
        return page._replace(rows=await with_results(self._connection, page.rows))

    async def items_by_seq(self, batch_id: int, seqs: Sequence[int]) -> Sequence[ItemRow]:
        existing = await self._connection.read(lambda connection: queries.items_by_seq(connection, batch_id, seqs))
        return await with_results(self._connection, existing)

    async def items(self, batch_id: int, keys: Sequence[str]) -> Sequence[ItemRow]:
        existing = await self._connection.read(lambda connection: queries.items_by_id(connection, batch_id, keys))
        rows = await with_results(self._connection, existing)
        for row in rows:
            if row.result == large_results.IN_PIECES and row.status is Status.COMPLETED:
                raise StoreError(
                    f"{self.location}: the result of item {row.id!r} is incomplete: rows of result_pieces were deleted. To run "
                    "the item again, delete its row in items and add it again, or add it with a changed payload and "
                    'on_change="rerun"'
                )
        return rows

    async def open_items(self, batch_id: int, *, on_snapshot: Callable[[], object] | None = None) -> OpenItems:
        if on_snapshot is not None and self._database is not None:  # on a connection of its own, beside the writer
            return await (await self.reader()).open_items(batch_id, on_snapshot=on_snapshot)
        return await self._connection.read(lambda connection: queries.open_items(connection, batch_id))

    async def failure_causes(self, batch_id: int, limit: int, *, seqs: Sequence[int] | None = None) -> Sequence[FailureGroup]:
        return await self._connection.read(lambda connection: queries.failure_causes(connection, batch_id, limit, seqs))

    async def reader(self) -> ReadStore:
        if self._database is None:
            return SQLiteReader.of_copy(await self._connection.read(copied), self.location, self._clock)
        return SQLiteReader.of_file(self._database, self.location, self._clock)

    async def wait_for_change(self, mark: Mark | None) -> Mark:
        return await self._watch.wait_for_change(mark)

    async def wait_for_items(self, batch_ids: Sequence[int], mark: Mark | None) -> Mark:
        return await self._watch.wait_for_items(batch_ids, mark)
