"""Runner: handlers on one file, inside a running program. The composition root: here the rooms meet."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import platform
import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Unpack, cast, overload

import anyio

from asyncrunner.attempt import Around, AttemptRunner, Interruption
from asyncrunner.child import ChildCall
from asyncrunner.clock import Clock, SystemClock, Timer
from asyncrunner.desk import Desk
from asyncrunner.duty import every
from asyncrunner.errors import ConfigurationError
from asyncrunner.events import Accepted, Events, Settled
from asyncrunner.handler import Handler
from asyncrunner.heartbeat import Heartbeat
from asyncrunner.observers import Observer
from asyncrunner.settings import NO_LIMIT, HandlerOptions, RunOptions, Settings
from asyncrunner.sqlite import SQLiteStore
from asyncrunner.store import Added, Store, WorkerInfo
from asyncrunner.text import duration_text
from asyncrunner.transient import Persistence
from asyncrunner.watchdog import Watchdog
from asyncrunner.worker import Lane, Worker

if TYPE_CHECKING:
    from types import TracebackType

    from anyio.abc import TaskGroup

    from asyncrunner.sqlite.file import Durability

__all__ = ["Handler", "Runner"]

log = logging.getLogger("asyncrunner")

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E")

_BEAT_SECONDS = 1.0
_LOOK_SECONDS = 0.4
_REVOKED_SECONDS = 0.5
_OBSERVER_PATIENCE_SECONDS = 2.0
_GRACE_SECONDS = 3.0
_STORE_PATIENCE_SECONDS = 5.0


class Decorator(Protocol):
    """Registers the function it is put on."""

    @overload
    def __call__(self, function: Callable[[T], Coroutine[Any, Any, R]], /) -> Handler[T, R]: ...
    @overload
    def __call__(self, function: Callable[[T], R], /) -> Handler[T, R]: ...


class Runner:
    """Runs the items of its handlers, durably, beside whatever else the program does.

    ``async with runner:`` starts it; leaving drains: handlers have ``shutdown_timeout`` seconds to end, the rest is given
    back with the attempt refunded. ``start()`` and ``stop()`` do the same and may be called from different tasks, and
    ``lifespan`` is what web frameworks call. It never installs signal handlers. After a crash the next start recovers at once
    what was running. Several processes may run the same runner on one file; so may several runners of one process.
    """

    def __init__(
        self,
        db: str | os.PathLike[str] = "asyncrunner.db",
        *,
        concurrency: int = 10,
        durability: Durability = "full",
        stale_after: float = 300.0,
        shutdown_timeout: float = 30.0,
        clock: Clock | None = None,
        store: Store | None = None,
    ) -> None:
        self.settings = Settings(
            db=db,
            concurrency=concurrency,
            durability=durability,
            stale_after=stale_after,
            shutdown_timeout=shutdown_timeout,
        )
        self.db = db
        self.events = Events()
        self.around: list[Around] = []
        self._use(store or SQLiteStore(db, durability=durability), clock or SystemClock())
        self._observers: list[Observer] = []
        self._beside: TaskGroup | None = None
        self._deadlines: list[Timer] = []
        self._handlers: dict[str, Handler[Any, Any]] = {}
        self._worker: Worker | None = None
        self._engine: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._has_run = False
        self._patience: Timer | None = None  # while draining
        self._limiters: dict[str, anyio.CapacityLimiter] = {}

    def _use(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self._persist = Persistence(clock)
        self.desk = Desk(store, clock, lambda: self._persist, self._why_closed)

    @contextmanager
    def using(self, store: Store, clock: Clock) -> Generator[None, None, None]:
        """Inside it the runner has another store and another clock; ``asyncrunner.testing`` is built on it.

        Raises ConfigurationError while the runner is started.
        """
        if self._engine is not None:
            raise ConfigurationError(f"{self!r} is started; a store and a clock are given before that")
        before = self.store, self.clock
        self._use(store, clock)
        try:
            yield
        finally:
            self._use(*before)

    def __repr__(self) -> str:
        return f"<Runner on {self.store.location}>"

    # --- handlers ------------------------------------------------------------------------------------------------

    @overload
    def handler(self, function: Callable[[T], Coroutine[Any, Any, R]], /) -> Handler[T, R]: ...
    @overload
    def handler(self, function: Callable[[T], R], /) -> Handler[T, R]: ...
    @overload
    def handler(self, /, **options: Unpack[HandlerOptions]) -> Decorator: ...

    def handler(self, function: Callable[[Any], Any] | None = None, /, **options: Unpack[HandlerOptions]) -> Any:
        """Register the decorated function. The options mean what they mean for ``run_batch``.

        ``concurrency`` bounds this handler within the runner's own. Raises ConfigurationError for a function that cannot be
        called with one item, or a batch that has a handler already.
        """

        options.setdefault("concurrency", NO_LIMIT)  # but the runner's
        settings = Settings.of("handler", cast("RunOptions", options))

        def register(function: Callable[[Any], Any]) -> Handler[Any, Any]:
            return self.register(function, settings)

        return register if function is None else register(function)

    def register(self, function: Callable[[T], Any], settings: Settings) -> Handler[T, Any]:
        """What the decorator does, with ready-made settings. Only before the runner is started."""
        if self._engine is not None:
            raise ConfigurationError("register handlers before the runner is started")
        handler: Handler[T, Any] = Handler(self, function, settings)
        if handler.batch in self._handlers:
            raise ConfigurationError(
                f"the batch {handler.batch!r} has a handler already, {self._handlers[handler.batch].name}; give this one a "
                "name of its own, as in @runner.handler(batch='...')"
            )
        self._attempts(handler)  # fails now rather than at the first item
        self._handlers[handler.batch] = handler
        return handler

    def _attempts(self, handler: Handler[Any, Any]) -> AttemptRunner:
        settings = handler.settings
        function = handler.function
        limiter = partial(self._limiter, handler.batch, self._limit(settings))
        if settings.run_in == "process":
            function = ChildCall(function, limiter)
        elif settings.run_in == "thread" and inspect.iscoroutinefunction(function):
            raise ConfigurationError(f'run_in="thread" is for a `def`; the `async def` {handler.name} runs in the loop')
        return AttemptRunner(
            handler.batch,
            function,
            handler.items,
            handler.results,
            clock=self.clock,
            max_attempts=settings.max_attempts,
            policy=settings.retry,
            timeout=settings.timeout,
            grace=_GRACE_SECONDS,
            limiter=limiter,
            rng=random.Random(),  # noqa: S311 - it spreads retries
            around=self.around,
        )

    def _limit(self, settings: Settings) -> int:
        limit = min(settings.concurrency, self.settings.concurrency)
        # A process is a core's work; more of them than cores would only wait for each other.
        return min(limit, os.cpu_count() or 1) if settings.run_in == "process" else limit

    def _limiter(self, batch: str, concurrency: int) -> anyio.CapacityLimiter:
        # Of its own, so that handlers stuck in threads never keep anybody else from getting one.
        if batch not in self._limiters:
            self._limiters[batch] = anyio.CapacityLimiter(concurrency)
        return self._limiters[batch]

    # --- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Runner:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop(drain=kind is None)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None, None]:
        """The runner's life as that of a web application, whose server says when it begins and ends.

        ``FastAPI(lifespan=runner.lifespan)`` and Starlette alike, ``Litestar(lifespan=[runner.lifespan])``, aiohttp's
        ``app.cleanup_ctx.append(runner.lifespan)``.
        """
        del app
        async with self:
            yield

    async def start(self) -> None:
        """Open the file, recover what dead workers left, begin to run. Raises StoreError; then nothing is left open."""
        if self._engine is not None:
            raise ConfigurationError("the runner is started already")
        self._failure = None
        self._has_run = True
        self._persist = Persistence(self.clock)
        self._limiters.clear()
        worker_id = secrets.token_hex(8)
        settings = self.settings
        try:
            await self._persist(self.store.open)
            await self._persist(self._joining(worker_id))
            self._worker = worker = Worker(
                worker_id,
                self.store,
                concurrency=settings.concurrency,
                clock=self.clock,
                events=self.events,
                persist=self._persist,
                grace=_GRACE_SECONDS,
            )
            watchdog = Watchdog(
                worker_id,
                self.store,
                interval=_LOOK_SECONDS,
                stale_after=settings.stale_after,
                clock=self.clock,
                events=self.events,
                persist=self._persist,
                on_recovery=worker.wake,
            )
            await self._persist(watchdog.look)
            await self._persist(watchdog.adopt_orphans)
            for handler in self._handlers.values():
                await self._open_lane(worker, handler)
            self._open_desk(worker)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.store.close()
            raise
        heartbeat = Heartbeat(
            worker,
            self.store,
            interval=_BEAT_SECONDS,
            stale_after=settings.stale_after,
            clock=self.clock,
            persist=self._persist,
        )
        self._engine = asyncio.create_task(
            self._serve(worker, (heartbeat.run, watchdog.run, partial(self._listen, worker), partial(self._look, worker))),
            name="asyncrunner engine",
        )

    async def stop(self, *, drain: bool = True) -> None:
        """Stop claiming, let handlers end, give the rest back, close the file.

        With ``drain`` handlers have ``shutdown_timeout`` seconds to end; without it, or after that, they are cancelled;
        one that does not end then is left behind. Attempts that were interrupted are refunded. A cancelled caller cancels
        the handlers, and the stop goes on to its end. Stopping twice is fine.
        """
        engine, worker = self._engine, self._worker
        for timer in self._deadlines:
            timer.cancel()
        self._deadlines.clear()
        if engine is None or worker is None:
            return
        if drain:
            self.request_stop()
        else:
            self.request_cancel()
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while not engine.done():
                try:
                    await asyncio.wait({engine})
                except asyncio.CancelledError as error:
                    cancelled = error
                    self.request_cancel()
        self._engine = None
        if self._patience is not None:
            self._patience.cancel()  # or it would cancel the handlers of the next start
            self._patience = None
        if cancelled is not None:
            raise cancelled

    def request_stop(self) -> None:
        """Begin to drain; after ``shutdown_timeout`` handlers are cancelled. Returns at once."""
        if self._worker is not None:
            self._worker.drain()
            if self._patience is None:
                self._patience = self.clock.call_later(self.settings.shutdown_timeout, self.request_cancel)

    def request_cancel(self) -> None:
        """Cancel every handler; its item is given back. Returns at once."""
        if self._worker is not None:
            self._persist.give_up_at = min(
                self._persist.give_up_at, self.clock.monotonic() + _GRACE_SECONDS + _STORE_PATIENCE_SECONDS
            )
            self._worker.interrupt(Interruption.SHUTDOWN)

    @property
    def engine(self) -> asyncio.Task[None] | None:
        """The task that everything runs in; done when the runner has ended by itself."""
        return self._engine

    def raise_failure(self) -> None:
        """Raise what ended the runner, if it did not end because it was asked to."""
        if self._failure is not None:
            raise self._failure

    def wake(self, handler: Handler[Any, Any]) -> None:
        """Look for items of that handler now."""
        if self._worker is not None:
            self._worker.wake(handler.lane)

    @property
    def handlers(self) -> Mapping[str, Handler[Any, Any]]:
        """The registered handlers, by their batch."""
        return MappingProxyType(self._handlers)

    @property
    def worker(self) -> Worker | None:
        """The running worker; None before the first start."""
        return self._worker

    def on(self, kind: type[E], observer: Callable[[E], object]) -> Callable[[], None]:
        """Call *observer* with every event of that type, from ``asyncrunner.events``, once it is in the file.

        An ``async def`` runs in the loop, a ``def`` in a thread, one event after the other, beside the engine: a slow observer
        slows nothing, it misses events once 10,000 wait for it (the log says so), and one that raises is logged and called again.
        Only this process's events are told. Returns what ends it. May be called before the runner is started and while it runs.
        """
        made = Observer(observer)
        unsubscribe = made.subscribe(kind, self.events)
        self._observers.append(made)
        if self._beside is not None:
            self._beside.start_soon(made.run)

        def end() -> None:
            unsubscribe()
            if made in self._observers:
                self._observers.remove(made)

        return end

    # --- inside --------------------------------------------------------------------------------------------------

    def _joining(self, worker_id: str) -> Callable[[], Awaitable[None]]:
        info = WorkerInfo(worker_id, platform.node() or "unknown", os.getpid())
        return lambda: self.store.join(info, now=self.clock.now())

    async def _open_lane(self, worker: Worker, handler: Handler[Any, Any]) -> None:
        settings = handler.settings
        batch = await self._persist(
            lambda: self.store.open_batch(handler.batch, handler.name, handler.options, now=self.clock.now())
        )
        handler.batch_id = batch.batch_id
        handler.lane = Lane(
            batch.batch_id,
            handler.batch,
            self._attempts(handler),
            limit=self._limit(settings),
            rate=settings.rate,
            max_failures=settings.failure_limit,
        )
        worker.add_lane(handler.lane)
        self._watch_deadline(worker, handler.lane, settings)

    def _watch_deadline(self, worker: Worker, lane: Lane, settings: Settings) -> None:
        seconds = settings.seconds_to_deadline(self.clock.now())
        if seconds is None:
            return
        if isinstance(settings.deadline, datetime):
            reason = f"its deadline passed ({settings.deadline:%Y-%m-%d %H:%M:%S %Z})"
        else:
            reason = f"its deadline of {duration_text(seconds)} passed"
        if seconds <= 0:
            lane.guard.trip(reason)
        else:
            self._deadlines.append(self.clock.call_later(seconds, partial(self._stop_lane, worker, lane, reason)))

    def _open_desk(self, worker: Worker) -> None:
        desk = self.desk
        # Woken while the add is on its way, the pump's turn shares its transaction: one commit from submit to start.
        desk.on_adding = self._wake_batch
        desk.on_added = self._added
        desk.on_cancelled = worker.look_for_revoked
        desk.waiting = worker.waiting
        desk.listen = lambda: self.events.on(Settled, desk.told)
        desk.open()

    def _stop_lane(self, worker: Worker, lane: Lane, reason: str) -> None:
        lane.guard.trip(reason)
        worker.wake(lane)

    async def _serve(self, worker: Worker, duties: tuple[Callable[[], Awaitable[None]], ...]) -> None:
        # Its own task, outside of every caller's cancel scope. The pump is shielded: it ends when it is drained.
        try:
            async with anyio.create_task_group() as beside:
                for duty in duties:
                    beside.start_soon(self._guarded, duty)
                for observer in self._observers:
                    beside.start_soon(observer.run)
                self._beside = beside
                with anyio.CancelScope(shield=True):
                    async with anyio.create_task_group() as slots:
                        await self._guarded(partial(worker.pump, slots))
                    await self.desk.close()
                    for observer in self._observers:
                        await observer.all_told(_OBSERVER_PATIENCE_SECONDS)
                beside.cancel_scope.cancel()
        finally:
            self._beside = None
            with anyio.CancelScope(shield=True):
                await self.desk.close()
                await self._depart(worker)

    async def _guarded(self, duty: Callable[[], Awaitable[None]]) -> None:
        """A duty that fails for good ends the runner, in order."""
        try:
            await duty()
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller hears of it
            if self._failure is None:
                self._failure = error
            log.error("the runner stops: %s", error)  # noqa: TRY400 - raised where the runner is awaited
            self.request_cancel()

    async def _listen(self, worker: Worker) -> None:
        mark: int | None = None
        while True:
            mark = await self._persist(partial(self.store.wait_for_change, mark))
            worker.wake()
            await worker.wait_until_hungry()

    async def _look(self, worker: Worker) -> None:
        await every(_REVOKED_SECONDS, worker.look_for_revoked, clock=self.clock)

    def _why_closed(self) -> str:
        if self._failure is not None:
            return f"{self!r} has stopped: {self._failure}"
        if self._has_run:
            return f"{self!r} is stopped"
        return (
            f"{self!r} is not started; use `async with runner:` or `await runner.start()` first, or a Client where other "
            "processes run the items"
        )

    def _added(self, batch_id: int, added: Added) -> None:
        if added.new or added.changed:
            self._wake_batch(batch_id)
        name = next(handler.batch for handler in self._handlers.values() if handler.batch_id == batch_id)
        self.events.publish(Accepted(name, added.new, added.existing))

    def _wake_batch(self, batch_id: int) -> None:
        for handler in self._handlers.values():
            if handler.batch_id == batch_id:
                self.wake(handler)

    async def _depart(self, worker: Worker) -> None:
        try:
            await self._persist(lambda: self.store.leave(worker.id, now=self.clock.now()))
        except Exception as error:  # noqa: BLE001 - as above; the file is closed all the same
            if self._failure is None:
                self._failure = error
            log.error("the worker could not say goodbye; the next start recovers what it held: %s", error)  # noqa: TRY400
        finally:
            await self.store.close()
