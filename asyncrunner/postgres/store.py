"""The EngineStore and ReadStore protocols, implemented on a schema of a PostgreSQL server."""

from __future__ import annotations

import asyncio
import math
import time
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from asyncrunner.domain.item import Claim, Status
from asyncrunner.postgres import sql, versions
from asyncrunner.postgres.connection.address import parse_address
from asyncrunner.postgres.connection.schema import create_or_migrate
from asyncrunner.postgres.connection.server_clock import ServerClock
from asyncrunner.postgres.connection.session import Session
from asyncrunner.postgres.insert import Inserter
from asyncrunner.postgres.listener import Listener, lock_key
from asyncrunner.postgres.reader import BEFORE_EVERY_SEQ, PostgresReader, PostgresReads
from asyncrunner.postgres.recovery import delete_orphaned_pieces, recover_items
from asyncrunner.postgres.turns import TurnRequest, Turns
from asyncrunner.store.batches import Added, Batch, BatchOptions, BatchVersion, Controls
from asyncrunner.store.copying.incomplete import incomplete_copy
from asyncrunner.store.items import Cursor, Mark, Numbers, PurgeStep
from asyncrunner.store.rules.purge_walk import STEP_ITEMS, Walk, Window
from asyncrunner.store.turn import Checkpoint, ClaimRequest, LostClaim, Turn, Want
from asyncrunner.store.workers import Beat, Peer, Stop, Vitals, WorkerInfo

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableSequence, Sequence

    from asyncpg import Connection, Record

    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import NewItem, OnKnownKey
    from asyncrunner.domain.options import Durability
    from asyncrunner.domain.outcome import ErrorInfo, Settlement
    from asyncrunner.store.protocols import ReadStore

T = TypeVar("T")

_MAX_TURN_SECONDS: Final = 60.0  # for a server that stays connected and does not answer; a turn takes milliseconds
_GIVEN_AGAIN_PER_STEP: Final = 100_000  # numbers per statement
_REOPENED_PER_STEP: Final = 2000  # items per transaction
_MAX_MEASURE_SECONDS: Final = 0.1  # a heartbeat that took longer is no measurement of the server's clock
_WORKER_RETENTION_SECONDS: Final = 7 * 86400.0
_CLOCK_SLACK_SECONDS: Final = 5.0  # heartbeats of several processes may be written out of order by this much


class PostgresStore(PostgresReads):
    """A store in a schema of a PostgreSQL server, which the processes of many machines may share.

    It has three sessions: one for turns, one that listens (liveness lock, heartbeats, notifications), one for the rest.
    """

    def __init__(self, location: str, *, durability: Durability = "full", clock: Clock | None = None) -> None:
        """Prepare a store at the URL *location*; ``open()`` opens it. Raises ConfigurationError for an unusable URL.

        *clock* gives the times of all rows; the server's clock by default.
        """
        super().__init__(parse_address(location), clock)
        self._durability: Durability = durability
        self._loop: asyncio.AbstractEventLoop | None = None
        self._prepare()
        self._workers: dict[str, WorkerInfo] = {}
        self._given: Numbers | None = None
        self._notes: dict[str, list[int]] = {}

    def _prepare(self) -> None:
        self._listener = Listener(self._address, self._forget_marks)
        self._taking = Session(
            self._address, durability=self._durability, on_connect=self._give_again, call_seconds=_MAX_TURN_SECONDS
        )
        self._writing = Session(self._address, durability=self._durability)
        self._turns = Turns(self._taking, self._insert_worker)
        self._inserter = Inserter(self._writing, self._clock)

    @property
    def location(self) -> str:
        return self._address.shown

    @property
    def busy_until(self) -> float:
        return math.inf

    @property
    def claims_with_add(self) -> bool:
        return False

    async def open(self) -> None:
        if self._loop is not None and self._loop.is_closed():
            for session in (self._taking, self._listener.session, self._writing):
                session.abandon()
            self._prepare()
        self._loop = asyncio.get_running_loop()
        await self._writing.open()
        try:
            await self._writing.call(lambda connection: create_or_migrate(connection, self._address))
            await self._taking.open()
            await self._listener.open()
        except BaseException:
            await self.close()
            raise
        self._measure(self._listener.session.offset)

    async def close(self) -> None:
        await self._inserter.close()
        await self._taking.close()
        await self._listener.close()
        await self._writing.close()

    def _measure(self, offset: float | None) -> None:
        if isinstance(self._clock, ServerClock):
            self._clock.measured(offset)

    @property
    def _skew(self) -> float:
        return self._clock.skew if isinstance(self._clock, ServerClock) else 0.0

    def _forget_marks(self) -> None:
        self._turns.forget_marks()

    async def _read(self, operation: Callable[[Session], Awaitable[T]]) -> T:
        return await operation(self._writing)

    async def reader(self) -> ReadStore:
        return PostgresReader(self._address, self._clock)

    # --- batches and items ---------------------------------------------------------------------------------------

    async def open_batch(self, name: str, handler: str, options: BatchOptions) -> Batch:
        text = msgspec.json.encode(options).decode()
        batch_id: int | None = await self._writing.value(sql.batches.UPSERT_BATCH, name, handler, text, self._clock.now())
        if batch_id is None:
            sources = await self.incomplete_copies([name])
            raise incomplete_copy(self.location, name, sources.get(name, "another store"))
        self._listener.notify(batch_id)
        return Batch(batch_id, name)

    async def adopt_version(self, worker_id: str, batch_id: int, version: str) -> BatchVersion:
        return await versions.adopt(self._writing, worker_id, batch_id, version)

    async def apply_version(self, batch_id: int, number: int) -> int:
        reopened = await versions.apply(self._writing, batch_id, number)
        self._forget_marks()
        return reopened

    async def stop_batch(self, batch_id: int, reason: str) -> None:
        await self._writing.change(sql.batches.STOP, batch_id, reason)

    async def rest_batch(self, batch_id: int, seconds: float) -> None:
        await self._writing.change(sql.batches.COOL_DOWN, batch_id, self._clock.now() + seconds)

    async def add(
        self, batch_id: int, entries: Sequence[NewItem], *, on_change: OnKnownKey, request: ClaimRequest | None = None
    ) -> Added:
        del request  # the statement of a turn claims the items
        added, is_notified = await self._inserter.add(batch_id, entries, on_change)
        first = added.changed > 0 or any(entry.priority > 0 for entry in entries)
        if first:
            self._forget_marks()
        if (added.new or first) and not is_notified:
            self._listener.notify(batch_id, first=first)
        if added.changed and on_change in ("rerun", "run again"):
            await delete_orphaned_pieces(self._writing)
        return added

    async def reopen_failed(self, batch_id: int, *, max_attempts: int | None) -> int:
        if max_attempts is None:
            rows = await self._writing.fetch(sql.items.FAILED_SEQS, batch_id)
        else:
            rows = await self._writing.fetch(sql.items.REOPENABLE_SEQS, batch_id, max_attempts)
        seqs = [seq for (seq,) in rows]
        reopened = 0
        for first in range(0, len(seqs), _REOPENED_PER_STEP):
            reopened += await self._reopen(seqs[first : first + _REOPENED_PER_STEP], max_attempts)
        return reopened

    async def _reopen(self, seqs: Sequence[int], max_attempts: int | None) -> int:
        self._forget_marks()
        if max_attempts is None:
            return await self._writing.change(sql.items.REOPEN, seqs)
        return await self._writing.change(sql.items.REOPEN_FAILED, seqs, max_attempts)

    async def give(self, batch_id: int, seqs: Sequence[int], *, max_attempts: int | None) -> int:
        del batch_id  # a seq is unique in the schema
        numbers = list(seqs)

        async def operation(connection: Connection[Record]) -> None:
            await connection.execute(sql.claims.CREATE_GIVEN)
            await connection.execute(sql.claims.GIVE, numbers)

        await self._taking.call(operation)
        if self._given is None:
            self._given = Numbers()
        for number in numbers:
            self._given.add(number)
        return await self._reopen(numbers, max_attempts)

    async def _give_again(self, connection: Connection[Record]) -> None:
        """Create the table of given items in a new session; those that have ended meanwhile are removed by turns."""
        if self._given is not None:
            await connection.execute(sql.claims.CREATE_GIVEN)
            numbers = iter(self._given)
            while chunk := list(islice(numbers, _GIVEN_AGAIN_PER_STEP)):
                await connection.execute(sql.claims.GIVE, chunk)

    async def turn(
        self,
        worker_id: str,
        settlements: Sequence[Settlement],
        wants: Sequence[Want],
        *,
        checkpoints: Sequence[Checkpoint] = (),
    ) -> Turn:
        if self._given is None and any(want.only_given for want in wants):
            await self.give(0, (), max_attempts=0)
        turn = await self._turns.turn(TurnRequest(worker_id, settlements, wants, checkpoints, self._clock.now(), self._skew))
        for batch_id in {settlement.claim.batch_id for settlement in settlements}:
            self._listener.notify_settled(batch_id)
        return turn

    async def stage_result(self, claim: Claim, piece: int, text: str) -> bool:
        return bool(await self._writing.value(sql.claims.STORE_PIECE, claim.seq, claim.number, piece, text))

    async def cancel(self, batch_id: int, keys: Sequence[str]) -> int:
        return await self._writing.change(sql.items.CANCEL, batch_id, list(keys), self._clock.now())

    async def lost_claims(self, claims: Sequence[Claim]) -> Sequence[LostClaim]:
        rows = await self._listener.session.fetch(
            sql.claims.LOST_CLAIMS, [claim.seq for claim in claims], [claim.number for claim in claims]
        )
        return [LostClaim(claims[position - 1], status == Status.CANCELLED) for position, status in rows]

    async def controls(self, batch_ids: Sequence[int]) -> Mapping[int, Controls]:
        rows = await self._listener.session.fetch(sql.batches.LIVE_CONTROLS, list(batch_ids))
        return {batch_id: Controls(blocked, concurrency) for batch_id, blocked, concurrency in rows}

    async def wait_for_change(self, mark: Mark | None) -> Mark:
        return await self._listener.wait_for_change(mark)

    async def wait_for_items(self, batch_ids: Sequence[int], mark: Mark | None) -> Mark:
        del batch_ids  # the session listens to the notifications of its batches
        return await self._listener.wait_for_change(mark)

    # --- workers -------------------------------------------------------------------------------------------------

    async def join(self, worker: WorkerInfo) -> None:
        await self._listener.lock(worker.worker_id)
        self._workers[worker.worker_id] = worker
        await self._insert_worker(worker.worker_id)
        await self._writing.change(sql.workers.DELETE_OLD_WORKERS, self._clock.now() - _WORKER_RETENTION_SECONDS)
        await delete_orphaned_pieces(self._writing)

    async def _insert_worker(self, worker_id: str) -> None:
        worker = self._workers[worker_id]
        await self._writing.change(
            sql.workers.INSERT_WORKER,
            worker_id,
            lock_key(self._address.schema, worker_id),
            worker.host,
            worker.pid,
            worker.process,
            worker.role,
            msgspec.json.encode(worker.batches).decode(),
            self._clock.now(),
        )

    def slot_notes(self, worker_id: str, slots: int) -> MutableSequence[int]:
        # The numbers end with the process: a recovery counts a crash for every item that the worker held.
        notes = self._notes.setdefault(worker_id, [])
        notes.extend([0] * (slots - len(notes)))
        return notes

    async def leave(self, worker_id: str) -> None:
        await self._writing.fetch(sql.workers.RELEASE, worker_id, self._clock.now())
        await delete_orphaned_pieces(self._writing)
        await self._listener.unlock(worker_id)
        self._listener.notify(0, first=True)
        self._workers.pop(worker_id, None)
        self._notes.pop(worker_id, None)

    async def beat(self, worker_id: str, vitals: Vitals) -> Beat:
        *statistics, _ = vitals
        throttles = msgspec.json.encode(dict(vitals.throttles)).decode()
        now = self._clock.now()
        began = time.monotonic()
        row = await self._listener.session.row(sql.workers.BEAT, worker_id, now, *statistics, throttles)
        ended = time.monotonic()
        if row is None:  # a person deleted the worker's row
            await self._insert_worker(worker_id)
            return await self.beat(worker_id, vitals)
        was_outcast, stop, newest, server_time = row
        if ended - began < _MAX_MEASURE_SECONDS:
            self._measure(server_time - (began + ended) / 2)
        await self._listener.session.fetch(sql.workers.FOLD, now)
        set_back, moved = 0.0, 0
        if newest - now > _CLOCK_SLACK_SECONDS:
            set_back = newest - now
            moved = await self._move_times_back(now, set_back)
        return Beat(was_outcast, Stop(min(max(stop, Stop.NO), Stop.CANCEL)), set_back, moved)

    async def _move_times_back(self, now: float, seconds: float) -> int:
        """Move stored times earlier, because the store's clock was set back; return how many due times were moved."""

        async def operation(connection: Connection[Record]) -> int:
            async with connection.transaction():
                moved = await connection.execute(sql.workers.SET_BACK_RETRIES, now, seconds)
                await connection.execute(sql.workers.SET_BACK_BATCHES, now, seconds)
                await connection.execute(sql.workers.SET_BACK_WORKERS, now)
                return int(moved.rpartition(" ")[2])

        return await self._writing.call(operation)

    async def peers(self, worker_id: str) -> Sequence[Peer]:
        return await self._listener.peers(worker_id)

    async def recover(self, worker_id: str | None, error: ErrorInfo, *, pulse: str | None = None) -> int:
        recovered = await recover_items(self._writing, worker_id, error, self._clock.now(), pulse)
        if recovered:
            self._forget_marks()
            self._listener.notify(0, first=True)
        return recovered

    async def purge_step(self, batch_ids: Sequence[int], *, older_than: float, cursor: Cursor | None) -> PurgeStep:
        before = self._clock.now() - older_than
        walk = Walk.at(cursor)
        after = BEFORE_EVERY_SEQ if walk.after is None else walk.after
        row = await self._writing.row(sql.items.EXPIRED, list(batch_ids), before, after, STEP_ITEMS)
        assert row is not None
        reached, expired, newest = row
        removed = 0
        if expired:
            removed = await self._writing.value(sql.items.PURGE, expired, before)
            await delete_orphaned_pieces(self._writing)
        window = Window(len(expired or ()), "", reached, newest)
        return PurgeStep(window.due, removed, walk.next(window))
