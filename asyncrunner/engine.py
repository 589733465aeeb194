"""One life of a runner: it joins the file as a worker, recovers what others left, runs, and leaves."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio

from asyncrunner.attempt import Interruption
from asyncrunner.clock import SystemClock
from asyncrunner.duty import every
from asyncrunner.events import Accepted, Settled
from asyncrunner.guardian import Guardian
from asyncrunner.heartbeat import Heartbeat
from asyncrunner.lane import Lane
from asyncrunner.retention import Retention
from asyncrunner.store import Vitals, WorkerInfo
from asyncrunner.text import duration_text
from asyncrunner.transient import Persistence
from asyncrunner.watchdog import Watchdog
from asyncrunner.worker import Worker

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from asyncrunner.attempt import AttemptRunner
    from asyncrunner.clock import Clock, Timer
    from asyncrunner.desk import Desk
    from asyncrunner.events import Events
    from asyncrunner.handler import Handler
    from asyncrunner.observers import Observer
    from asyncrunner.settings import Settings
    from asyncrunner.store import Added, Stop, Store

__all__ = ["GRACE_SECONDS", "STORE_PATIENCE_SECONDS", "Engine"]

log = logging.getLogger("asyncrunner")

GRACE_SECONDS: Final = 3.0
"""What a handler has to end once it was interrupted."""

_BEAT_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.4
_LOOK_OUTSIDE_SECONDS: Final = 0.4  # what people do is obeyed within a second, the handler's own steps included
_OBSERVER_PATIENCE_SECONDS: Final = 2.0
STORE_PATIENCE_SECONDS: Final = 5.0
"""How long a stop waits for a store that is unavailable."""


class Engine:
    """A worker with its duties, and the task that they all run in. ``failure`` is what ended it, unless it was asked to end."""

    def __init__(
        self, store: Store, clock: Clock, events: Events, settings: Settings, desk: Desk, observers: Sequence[Observer],
        *, role: str, on_stop: Callable[[Stop], object],
    ) -> None:  # fmt: skip
        self._store = store
        self._clock = clock
        self._events = events
        self._settings = settings
        self._desk = desk
        self._observers = observers
        self._role = role
        self.persist = Persistence(clock)
        self._lanes: dict[int, Lane] = {}
        self._deadlines: list[Timer] = []
        self._patience: Timer | None = None  # while draining
        self._beside: TaskGroup | None = None
        self.failure: BaseException | None = None
        self.has_begun = asyncio.Event()  # or has failed to
        self.task: asyncio.Task[None] | None = None
        self.worker = Worker(
            secrets.token_hex(8),
            store,
            concurrency=settings.concurrency,
            clock=clock,
            events=events,
            persist=self.persist,
            grace=GRACE_SECONDS,
        )
        self._guardian = Guardian(lambda: self.worker.running_attempts)
        self._heartbeat = Heartbeat(
            self.worker,
            store,
            self._vitals,
            interval=_BEAT_SECONDS,
            stale_after=settings.stale_after,
            clock=clock,
            persist=self.persist,
            on_stop=on_stop,
        )
        self._watchdog = Watchdog(
            self.worker.id,
            store,
            interval=_LOOK_SECONDS,
            stale_after=settings.stale_after,
            clock=clock,
            events=events,
            persist=self.persist,
            on_recovery=self.worker.wake,
            written_at=lambda: self._heartbeat.written_at,
        )
        self.retention: Retention | None = None
        if settings.retention_seconds is not None:
            self.retention = Retention(
                store, lambda: list(self._lanes), settings.retention_seconds, clock=clock, persist=self.persist
            )

    # --- beginning -----------------------------------------------------------------------------------------------

    async def open(self, handlers: Mapping[Handler[Any, Any], AttemptRunner], limit: Callable[[Settings], int]) -> None:
        """Open the store, join, recover, and take the handlers' batches on. Whatever is raised, nothing is left open."""
        try:
            await self.persist(self._store.open)
            batches = [handler.batch for handler in handlers]
            info = WorkerInfo(self.worker.id, platform.node() or "unknown", os.getpid(), self._role, batches)
            await self.persist(lambda: self._store.join(info, now=self._clock.now()))
            await self.persist(self._watchdog.look)
            await self.persist(self._watchdog.adopt_orphans)
            for handler, attempts in handlers.items():
                await self._take_on(handler, attempts, limit(handler.settings))
        except BaseException:
            self._cancel_timers()
            with anyio.CancelScope(shield=True):
                await self._store.close()
            raise
        self._open_desk()

    async def _take_on(self, handler: Handler[Any, Any], attempts: AttemptRunner, limit: int) -> None:
        settings = handler.settings
        batch = await self.persist(
            lambda: self._store.open_batch(handler.batch, handler.name, handler.options, now=self._clock.now())
        )
        handler.batch_id = batch.batch_id
        handler.lane = self._lanes[batch.batch_id] = lane = Lane(
            batch.batch_id,
            handler.batch,
            attempts,
            limit=limit,
            rate=settings.rate,
            max_failures=settings.failure_limit,
        )
        self.worker.add_lane(lane)
        self._watch_deadline(lane, settings)

    def _watch_deadline(self, lane: Lane, settings: Settings) -> None:
        seconds = settings.seconds_to_deadline(self._clock.now())
        if seconds is None:
            return
        if isinstance(settings.deadline, datetime):
            reason = f"its deadline passed ({settings.deadline:%Y-%m-%d %H:%M:%S %Z})"
        else:
            reason = f"its deadline of {duration_text(seconds)} passed"
        if seconds <= 0:
            lane.guard.trip(reason)
        else:
            self._deadlines.append(self._clock.call_later(seconds, partial(self._stop_lane, lane, reason)))

    def _stop_lane(self, lane: Lane, reason: str) -> None:
        lane.guard.trip(reason)
        self.worker.wake(lane)

    def _open_desk(self) -> None:
        desk = self._desk
        # Woken while the add is on its way, the pump's turn shares its transaction: one commit from submit to start.
        desk.on_adding = lambda batch_id: self.worker.wake(self._lanes[batch_id])
        desk.on_added = self._on_added
        desk.on_cancelled = self.worker.look_for_revoked
        desk.waiting = self.worker.waiting
        desk.listen = lambda: self._events.on(Settled, desk.told)
        desk.open(self.persist)

    def _on_added(self, batch_id: int, added: Added) -> None:
        lane = self._lanes[batch_id]
        if added.new or added.changed:
            self.worker.wake(lane)
        self._events.publish(Accepted(lane.name, added.new, added.existing))

    def start(self) -> None:
        """Begin to run, in a task of its own."""
        self.task = asyncio.create_task(self._serve(), name="asyncrunner engine")

    # --- running -------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        # Its own task, outside of every caller's cancel scope. The pump is shielded: it ends when it is drained.
        if isinstance(self._clock, SystemClock):  # a loop whose time stands still has no blocks
            self._guardian.start()
        try:
            async with anyio.create_task_group() as beside:
                for duty in (self._heartbeat.run, self._watchdog.run, self._listen, self._look_outside):
                    beside.start_soon(self._guarded, duty)
                if self.retention is not None:
                    beside.start_soon(self._guarded, self.retention.run)
                self._beside = beside
                for observer in self._observers:
                    self.begin_to_tell(observer)
                with anyio.CancelScope(shield=True):
                    async with anyio.create_task_group() as slots:
                        await self._guarded(partial(self.worker.pump, slots))
                    await self._desk.close()
                    for observer in self._observers:
                        await observer.all_told(_OBSERVER_PATIENCE_SECONDS)
                beside.cancel_scope.cancel()
        finally:
            self._beside = None
            self._guardian.stop()
            self._cancel_timers()
            with anyio.CancelScope(shield=True):
                await self._desk.close()
                await self._depart()

    def _vitals(self) -> Vitals:
        worker, guardian = self.worker, self._guardian
        return Vitals(
            worker.processed, worker.failures, guardian.blocks, guardian.longest, worker.slots, len(worker.running_attempts)
        )

    def begin_to_tell(self, observer: Observer) -> None:
        """Have the observer hear of what happens from now on; before the start it waits for that."""
        if self._beside is not None:
            self._beside.start_soon(observer.run)

    async def _guarded(self, duty: Callable[[], Awaitable[None]]) -> None:
        """A duty that fails for good ends the engine, in order."""
        try:
            await duty()
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller hears of it
            if self.failure is None:
                self.failure = error
            log.error("the runner stops: %s", error)  # noqa: TRY400 - raised where the runner is awaited
            self.request_cancel()

    async def _listen(self) -> None:
        mark: int | None = None
        while True:
            mark = await self.persist(partial(self._store.wait_for_change, mark))
            self.worker.wake()
            await self.worker.wait_until_hungry()

    async def _look_outside(self) -> None:
        await every(_LOOK_OUTSIDE_SECONDS, self._see_what_people_did, clock=self._clock, at_once=True)

    async def _see_what_people_did(self) -> None:
        await self.worker.look_for_controls()
        await self.worker.look_for_revoked()

    # --- ending --------------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Begin to drain; after ``shutdown_timeout`` handlers are cancelled."""
        self.worker.drain()
        if self._patience is None:
            self._patience = self._clock.call_later(self._settings.shutdown_timeout, self.request_cancel)

    def request_cancel(self) -> None:
        """Cancel every handler; its item is given back."""
        give_up_at = self._clock.monotonic() + GRACE_SECONDS + STORE_PATIENCE_SECONDS
        self.persist.give_up_at = min(self.persist.give_up_at, give_up_at)
        self.worker.interrupt(Interruption.SHUTDOWN)

    def _cancel_timers(self) -> None:
        for timer in self._deadlines:
            timer.cancel()
        if self._patience is not None:
            self._patience.cancel()

    async def _depart(self) -> None:
        try:
            await self.persist(lambda: self._store.leave(self.worker.id, now=self._clock.now()))
        except Exception as error:  # noqa: BLE001 - the file is closed all the same
            if self.failure is None:
                self.failure = error
            log.error("the worker could not say goodbye; the next start recovers what it held: %s", error)  # noqa: TRY400
        try:
            await self._store.close()
        except Exception as error:  # noqa: BLE001 - the disk failed at the last moment
            if self.failure is None:
                self.failure = error
            log.error("the file could not be closed in order: %s", error)  # noqa: TRY400
