"""Run a started runner: join the store as a worker, recover items of dead workers, run handlers, leave the store."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, suppress
from contextvars import copy_context
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio

from asyncrunner.backends import full_location
from asyncrunner.domain.clock import SystemClock
from asyncrunner.errors import StoreReplaced, StoreUnavailable
from asyncrunner.events import Accepted, Settled
from asyncrunner.execution.attempt import current_execution
from asyncrunner.execution.execution import Interruption
from asyncrunner.runner.bare_loop import keyboard_interrupt_in
from asyncrunner.runner.duties.heartbeat import Heartbeat
from asyncrunner.runner.duties.loop_monitor import LoopMonitor
from asyncrunner.runner.duties.retention import Retention
from asyncrunner.runner.duties.versions import Versions
from asyncrunner.runner.duties.watchdog import Watchdog
from asyncrunner.runner.processes.identity import worker_info
from asyncrunner.store.copying.incomplete import check_complete, open_to_submit
from asyncrunner.store.retrying import RetryingStore, every
from asyncrunner.store.workers import Vitals
from asyncrunner.submission.store_access import EnclosingWorker, OpenStore, enclosing_worker
from asyncrunner.text.durations import duration_text
from asyncrunner.worker.batch_queue import BatchQueue
from asyncrunner.worker.worker import Worker

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from asyncrunner.domain.clock import Clock, Timer
    from asyncrunner.domain.options import HandlerOptions, RunnerOptions
    from asyncrunner.events import Events
    from asyncrunner.execution.executor import AttemptExecutor
    from asyncrunner.runner.observers import Observer
    from asyncrunner.runner.processes.supervisor import Supervisor
    from asyncrunner.store.batches import Added
    from asyncrunner.store.items import Mark
    from asyncrunner.store.protocols import Store
    from asyncrunner.store.turn import ClaimRequest
    from asyncrunner.store.workers import Stop
    from asyncrunner.submission.handler import Handler
    from asyncrunner.submission.submitter import ItemSubmitter

log = logging.getLogger("asyncrunner")

GRACE_SECONDS: Final = 3.0
"""Seconds that an interrupted handler may take to end; after them the handler is abandoned."""

_WATCHDOG_SECONDS: Final = 0.4  # so often, running handlers also get the changes of operators
_HEARTBEAT_SECONDS: Final = 3 * _WATCHDOG_SECONDS  # a multiple, so that one wake-up of an idle process serves both
_OBSERVER_TIMEOUT_SECONDS: Final = 2.0
_NOT_SAVED: Final = "items that ended were not saved and run again; the next start recovers the items of this process"

STORE_RETRY_SECONDS: Final = 5.0
"""How long calls of an unavailable store are retried, in a stop after ``GRACE_SECONDS`` or without an engine."""


class Engine:
    """A worker with its background tasks, and the task that runs them all.

    ``failure`` is the exception that made the engine stop, or that prevented a clean stop; None if there was neither. With
    *children* the worker claims no items, because the child processes do; in each of them, *role* is "child".
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        events: Events,
        options: RunnerOptions,
        submitter: ItemSubmitter,
        observers: Sequence[Observer],
        *,
        role: str,
        on_stop: Callable[[Stop], object],
        on_interrupt: Callable[[Engine, BaseException], object],
        children: Supervisor | None = None,
    ) -> None:
        self.bare_store = store  # raises StoreUnavailable immediately
        self.store = RetryingStore(store, clock)
        self.clock = clock
        self.began = clock.monotonic()
        self._events = events
        self._options = options
        self._submitter = submitter
        self._observers = observers
        self._role = "run" if role == "child" else role
        self._on_interrupt = on_interrupt
        self._children = children
        self._is_child = role == "child"
        self._queues: dict[int, BatchQueue] = {}  # by batch id
        self._batches_elsewhere: dict[int, str] = {}  # names by batch id: other workers run the items submitted here
        self.queues: dict[str, BatchQueue] = {}  # the same batch queues by batch name
        self._deadlines: list[Timer] = []
        self._drain_timer: Timer | None = None  # set while the worker drains
        self._background: TaskGroup | None = None
        self.failure: BaseException | None = None
        self.has_left = False  # whether the worker has released its items
        self.is_awaited = False  # whether code waits for the end
        self.has_begun = asyncio.Event()  # set once the start has succeeded or failed
        self.task: asyncio.Task[None] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None  # the event loop in which the engine runs
        self.worker = Worker(secrets.token_hex(8), self.store, concurrency=options.concurrency, clock=clock, events=events)
        self.versions = Versions(self.store, self.worker, hold=self._role == "run")
        self._loop_monitor = LoopMonitor(lambda: self.worker.running)
        self._heartbeat = Heartbeat(
            self.worker,
            store,  # not the retrying store: the heartbeat needs its StoreUnavailable
            self._vitals,
            interval=_HEARTBEAT_SECONDS,
            stale_after=options.stale_after,
            clock=clock,
            outage=self.store.outage,
            on_stop=on_stop,
            origin=self.began,
        )
        self._watchdog = Watchdog(
            self.worker.id,
            self.store,
            interval=_WATCHDOG_SECONDS,
            stale_after=options.stale_after,
            clock=clock,
            events=events,
            on_recovery=self.worker.wake,
            written_at=lambda: self._heartbeat.written_at,
            origin=self.began,
        )
        self.retention: Retention | None = None
        if options.retention_seconds is not None:
            self.retention = Retention(self.store, lambda: list(self._queues), options.retention_seconds, clock=clock)

    # --- start ---------------------------------------------------------------------------------------------------

    async def open(
        self,
        handlers: Sequence[tuple[Handler[Any, Any], AttemptExecutor, int]],
        submit_only: Sequence[Handler[Any, Any]] = (),
    ) -> None:
        """Open the store, join it as a worker, recover items, and open the batches of *handlers*. Raises StoreError.

        Each handler comes with its executor and the number of its concurrent calls. Items may be submitted to the batches of
        *submit_only* too, but this worker does not run them. Raises ConfigurationError, and changes nothing, if a batch is an
        incomplete copy. On any exception, cancellation included, the worker leaves and the store is closed again.
        """
        has_joined = False
        try:
            await self.store.open()
            await check_complete(self.store, [handler.batch for handler, _, _ in handlers])
            has_joined = True  # also if the call of join() is cancelled
            await self.store.join(worker_info(self.worker.id, self._role, [handler.batch for handler, _, _ in handlers]))
            await self._watchdog.look()
            await self._watchdog.adopt_orphans()
            for handler, attempts, limit in handlers:
                await self._add_batch(handler, attempts, limit)
            for handler in submit_only:
                batch = await open_to_submit(self.store, handler.batch, handler.name, handler.batch_options)
                self._batches_elsewhere[batch.batch_id] = batch.name
        except BaseException:
            self._cancel_timers()
            with anyio.CancelScope(shield=True):
                if has_joined:
                    await self._leave_soon()
                await self.store.close()
            raise
        names = {batch_id: queue.name for batch_id, queue in self._queues.items()} | self._batches_elsewhere
        self._submitter.open(OpenStore(self.store, self.clock, {name: number for number, name in names.items()}, self))

    async def _add_batch(self, handler: Handler[Any, Any], attempts: AttemptExecutor, limit: int) -> None:
        options = handler.options
        # The parent has opened the batch. A child must not, because that would end a stop of the batch.
        batch = await self.store.find_batch(handler.batch) if self._is_child else None
        batch = batch or await self.store.open_batch(handler.batch, handler.name, handler.batch_options)
        queue = BatchQueue(
            batch.batch_id, handler.batch, attempts, limit=limit, rate=options.rate, max_failures=options.failure_limit
        )
        queue.runs_in_children = self._children is not None
        queue.has_to_itself = lambda: self.store.claims_with_add and not self._watchdog.has_peers
        self._queues[batch.batch_id] = self.queues[queue.name] = queue
        await self.versions.add_queue(queue, options.version)
        self._watch_deadline(queue, options)

    def _watch_deadline(self, queue: BatchQueue, options: HandlerOptions) -> None:
        seconds = options.seconds_to_deadline(self.clock.now())
        if seconds is None:
            return
        if isinstance(options.deadline, datetime):
            reason = f"its deadline passed ({options.deadline:%Y-%m-%d %H:%M:%S %Z})"
        else:
            reason = f"its deadline of {duration_text(seconds)} passed"
        if seconds <= 0:
            queue.failures.trip(reason)
        else:
            self._deadlines.append(self.clock.call_later(seconds, partial(self._stop_queue, queue, reason)))

    def _stop_queue(self, queue: BatchQueue, reason: str) -> None:
        queue.failures.trip(reason)
        self.worker.wake(queue)

    # --- the methods of LocalWorker --------------------------------------------------------------------------------

    def begin_add(self, batch_id: int) -> ClaimRequest | None:
        queue = self._queues.get(batch_id)
        return None if queue is None else self.worker.begin_add(queue)

    def end_add(self, batch_id: int, request: ClaimRequest | None, added: Added | None) -> None:
        queue = self._queues.get(batch_id)
        if added is not None:
            name = self._batches_elsewhere[batch_id] if queue is None else queue.name
            self._events.publish(Accepted(name, added.new, added.existing))
        if queue is not None:
            self.worker.end_add(queue, request, added)

    async def look_for_cancelled(self) -> None:
        """Cancel the handlers whose items were cancelled in the store."""
        await self.worker.controls.interrupt_lost_claims()

    def waiting(self, batch: str, key: str, *, is_running: bool) -> AbstractContextManager[object]:
        """Return a context manager around a handler's wait for an item; see ``ResultWaits.waiting``."""
        return self.worker.result_waits.waiting(batch, key, is_running=is_running)

    def on_settled(self, observe: Callable[[Settled], object]) -> Callable[[], None]:
        """Call *observe* with each Settled event of this worker; return the function that unsubscribes *observe*."""
        return self._events.on(Settled, observe)

    def start(self) -> None:
        """Create the task that runs the engine."""
        self.loop = asyncio.get_running_loop()
        execution = current_execution.get(None)
        batch = None if execution is None else execution.batch
        enclosing = EnclosingWorker(full_location(self.bare_store.location), self, batch, enclosing_worker.get())
        context = copy_context()  # every handler runs in a copy of it
        context.run(enclosing_worker.set, enclosing)
        self.task = asyncio.create_task(self._serve(), name="asyncrunner engine", context=context)

    async def wait_until_ended(self) -> None:
        """Wait until the engine has ended, or its start has failed. A start that is in progress completes first."""
        await self.has_begun.wait()
        if self.task is not None:
            await asyncio.wait({self.task})

    # --- running -------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        # This is a separate task, so that no caller's cancel scope cancels it. The pump is shielded: it ends only once
        # the worker is drained.
        if isinstance(self.clock, SystemClock):  # the monitor measures real time, and a fake clock does not follow it
            self._loop_monitor.start(origin=self.began)
        try:
            async with anyio.create_task_group() as background:
                duties = [self.versions.run, self._heartbeat.run, self._watchdog.run, self._wake_on_change, self._poll_controls]
                if self.retention is not None:
                    duties.append(self.retention.run)
                for duty in duties:
                    background.start_soon(self._run_guarded, duty)
                self._background = background
                for observer in self._observers:
                    self.start_observer(observer)
                with anyio.CancelScope(shield=True):
                    async with anyio.create_task_group() as slots:
                        if self._children is not None:
                            slots.start_soon(self._run_guarded, self._children.run)
                        await self._run_guarded(partial(self.worker.pump, slots))
                    if self._children is not None and self._children.deaths:
                        await self._run_guarded(self._watchdog.look)  # for children that died during the stop
                    await self._submitter.close()
                    for observer in self._observers:
                        await observer.wait_until_delivered(_OBSERVER_TIMEOUT_SECONDS)
                background.cancel_scope.cancel()
        except BaseException as error:
            if (interrupt := keyboard_interrupt_in(error)) is None:
                raise
            self.interrupt(interrupt)
        finally:
            self._background = None
            self._loop_monitor.stop()
            self._cancel_timers()
            with anyio.CancelScope(shield=True):
                await self._submitter.close()
                await self._leave()

    def _vitals(self) -> Vitals:
        worker, monitor = self.worker, self._loop_monitor
        running = len(worker.running)
        return Vitals(worker.processed, worker.failures, monitor.blocks, monitor.longest, worker.slots, running, worker.throttles)

    def start_observer(self, observer: Observer) -> None:
        """Run *observer* in the background; before the start, do nothing, because the start runs every observer."""
        if self._background is not None:
            self._background.start_soon(observer.run)

    async def _run_guarded(self, duty: Callable[[], Awaitable[object]]) -> None:
        """Run *duty*, a background task or the pump. If it raises an exception, the runner fails."""
        try:
            await duty()
        except KeyboardInterrupt as error:
            self.interrupt(error)
        except Exception as error:  # noqa: BLE001 - the runner raises the failure later
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Record *error* as the runner's failure and cancel the handlers."""
        is_outage = isinstance(error, StoreUnavailable)
        self._record_failure(_NOT_SAVED if is_outage else "the runner failed and is shutting down", error)
        self.request_cancel()

    def _record_failure(self, event: str, error: Exception) -> None:
        """Log *event* with *error*, and keep the first error as the runner's failure."""
        is_known = isinstance(self.failure, StoreUnavailable | StoreReplaced)  # no call can succeed after it
        log.log(logging.DEBUG if is_known else logging.ERROR, "%s: %s", event, error)
        self.failure = self.failure or error

    async def _wake_on_change(self) -> None:
        mark: Mark | None = None
        while True:
            mark = await self.store.wait_for_items(list(self._queues), mark)
            self.worker.wake()
            await self.worker.wait_until_hungry()

    async def _poll_controls(self) -> None:
        await every(_WATCHDOG_SECONDS, self._check_controls, clock=self.clock, immediately=True, origin=self.began)

    async def _check_controls(self) -> None:
        await self.worker.controls.apply_changes()
        await self.worker.controls.interrupt_lost_claims()

    # --- stop ----------------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Begin to drain. Handlers that still run after ``shutdown_timeout`` seconds are cancelled."""
        self.worker.drain()
        if self._children is not None:
            self._children.drain()
        if self._drain_timer is None:
            self._drain_timer = self.clock.call_later(self._options.shutdown_timeout, self.request_cancel)

    def request_cancel(self) -> None:
        """Cancel every handler; the items become pending again with the attempts refunded."""
        deadline = self.clock.monotonic() + GRACE_SECONDS + STORE_RETRY_SECONDS
        self.store.deadline = min(self.store.deadline, deadline)
        self.worker.interrupt(Interruption.SHUTDOWN)
        if self._children is not None:
            self._children.cancel()

    async def abandon(self) -> None:
        """Free the store of an engine whose event loop was closed while it ran; its unfinished items become pending again.

        If the store cannot be written, ``has_left`` stays false, and the next start recovers the items.
        """
        self._loop_monitor.stop()
        self._submitter.results.forget()
        with suppress(Exception):
            await self.bare_store.open()  # its connection belongs to the closed loop
        await self._leave_soon()
        with suppress(Exception):
            await self.bare_store.close()

    async def _leave_soon(self) -> None:
        """Deregister the worker if the store can be written now; otherwise the next start recovers its items."""
        with suppress(Exception), anyio.move_on_after(STORE_RETRY_SECONDS, shield=True):
            await self.bare_store.leave(self.worker.id)
            self.has_left = True

    def interrupt(self, error: BaseException) -> None:
        """Cancel every handler after *error*, a KeyboardInterrupt in the thread of the event loop: a person pressed Ctrl-C."""
        if self.failure is None:
            self.failure = error
            log.warning("interrupted: running handlers are cancelled, finished items are saved; run again to continue")
        self.request_cancel()
        self._on_interrupt(self, error)

    def _cancel_timers(self) -> None:
        for timer in self._deadlines:
            timer.cancel()
        if self._drain_timer is not None:
            self._drain_timer.cancel()

    async def _leave(self) -> None:
        try:
            await self.store.leave(self.worker.id)
            self.has_left = True
        except Exception as error:  # noqa: BLE001 - the store must be closed after any failure
            self._record_failure("failed to deregister the worker; the next start recovers its items", error)
        try:
            await self.store.close()
        except Exception as error:  # noqa: BLE001 - for example, the disk failed
            self._record_failure("failed to close the store cleanly", error)
