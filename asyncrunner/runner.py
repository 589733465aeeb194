"""Runner: handlers on one file, inside a running program. The composition root: here the rooms meet."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import random
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, Unpack, cast, overload

import anyio

from asyncrunner.attempt import AttemptRunner, Interruption
from asyncrunner.clock import Clock, SystemClock, Timer
from asyncrunner.codec import codecs_of
from asyncrunner.errors import ConfigurationError, StoreClosed
from asyncrunner.events import Accepted, Events
from asyncrunner.heartbeat import Heartbeat
from asyncrunner.ingest import Encoder
from asyncrunner.naming import default_batch, handler_name
from asyncrunner.settings import HandlerOptions, RunOptions, Settings
from asyncrunner.sqlite import SQLiteStore
from asyncrunner.store import Added, BatchOptions, Store, WorkerInfo
from asyncrunner.transient import Persistence
from asyncrunner.watchdog import Watchdog
from asyncrunner.worker import Lane, Worker

if TYPE_CHECKING:
    from types import TracebackType

    from asyncrunner.item import Entry, OnChange
    from asyncrunner.sqlite.file import Durability

__all__ = ["Handler", "Runner"]

log = logging.getLogger("asyncrunner")

T = TypeVar("T")
R = TypeVar("R")

_BEAT_SECONDS = 1.0
_LOOK_SECONDS = 0.4
_GRACE_SECONDS = 3.0
_STORE_PATIENCE_SECONDS = 5.0


class Handler(Generic[T, R]):
    """A handler registered with a runner. Calling it calls the function itself, without the runner."""

    def __init__(self, runner: Runner, function: Callable[[T], Any], settings: Settings) -> None:
        self._runner = runner
        self._function = function
        self.settings = settings
        self.batch = settings.batch or default_batch(function)
        self.items, self.results = codecs_of(function)
        self.encoder = Encoder(self.items, settings.key)
        self.lane: Lane | None = None
        self.batch_id = -1
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__doc__ = function.__doc__

    @property
    def function(self) -> Callable[[T], Any]:
        return self._function

    def __call__(self, item: T) -> Any:
        return self._function(item)

    def __repr__(self) -> str:
        return f"<Handler {self.batch!r} on {self._runner!r}>"

    async def submit(self, item: T, *, key: str | int | None = None, delay: float = 0.0, priority: int = 0) -> str:
        """Store one item and return its key; it is durable when this returns, and runs soon after.

        ``delay``: not before that many seconds from now. ``priority``: higher runs first. A key that exists with the
        same payload is the same item. Cancelling the caller may or may not have stored it. Raises ItemNotStorable, InvalidKey,
        KeyConflict, StoreClosed unless the runner is started.
        """
        if not (isinstance(delay, int | float) and 0 <= delay < float("inf")):
            raise ConfigurationError(f"delay={delay!r}: give seconds, 0 or more")
        due_at = self._runner.clock.now() + delay if delay else None
        entry = self.encoder.entry(item, key=key, priority=priority, due_at=due_at)
        await self._runner.add(self, [entry], on_change=self.settings.on_change)
        return entry.id


class Decorator(Protocol):
    """Registers the function it is put on."""

    @overload
    def __call__(self, function: Callable[[T], Coroutine[Any, Any, R]], /) -> Handler[T, R]: ...
    @overload
    def __call__(self, function: Callable[[T], R], /) -> Handler[T, R]: ...


class Runner:
    """Runs the items of its handlers, durably, beside whatever else the program does.

    ``async with runner:`` starts it; leaving drains: handlers have ``shutdown_timeout`` seconds to end, the rest is given
    back with the attempt refunded. ``start()`` and ``stop()`` do the same and may be called from different tasks. It
    never installs signal handlers. After a crash the next start recovers at once what was running.
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
        self.clock: Clock = clock or SystemClock()
        self.store: Store = store or SQLiteStore(db, durability=durability)
        self.events = Events()
        self._handlers: dict[str, Handler[Any, Any]] = {}
        self._persist = Persistence(self.clock)
        self._worker: Worker | None = None
        self._engine: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._patience: Timer | None = None  # while draining
        self._limiters: dict[str, anyio.CapacityLimiter] = {}

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

        options.setdefault("concurrency", self.settings.concurrency)
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
                f"the batch {handler.batch!r} has a handler already; name this one's, as in @runner.handler(batch='...')"
            )
        self._attempts(handler)  # fails now rather than at the first item
        self._handlers[handler.batch] = handler
        return handler

    def _attempts(self, handler: Handler[Any, Any]) -> AttemptRunner:
        settings = handler.settings
        return AttemptRunner(
            handler.batch,
            handler.function,
            handler.items,
            handler.results,
            clock=self.clock,
            max_attempts=settings.max_attempts,
            policy=settings.retry,
            timeout=settings.timeout,
            grace=_GRACE_SECONDS,
            thread_limiter=partial(self._limiter, handler.batch, settings.concurrency),
            rng=random.Random(),  # noqa: S311 - it spreads retries
        )

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

    async def start(self) -> None:
        """Open the file, recover what dead workers left, begin to run. Raises StoreError; then nothing is left open."""
        if self._engine is not None:
            raise ConfigurationError("the runner is started already")
        self._failure = None
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
            self._serve(worker, (heartbeat.run, watchdog.run, partial(self._listen, worker))), name="asyncrunner engine"
        )

    async def stop(self, *, drain: bool = True) -> None:
        """Stop claiming, let handlers end, give the rest back, close the file.

        With ``drain`` handlers have ``shutdown_timeout`` seconds to end; without it, or after that, they are cancelled;
        one that does not end then is left behind. Attempts that were interrupted are refunded. A cancelled caller cancels
        the handlers, and the stop goes on to its end. Stopping twice is fine.
        """
        engine, worker = self._engine, self._worker
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

    async def add(self, handler: Handler[Any, Any], entries: list[Entry], *, on_change: OnChange) -> Added:
        """Store entries and wake the worker. Raises StoreClosed unless the runner is started."""
        engine = self._engine
        if engine is None or engine.done():
            self.raise_failure()
            raise StoreClosed(f"{self!r} is not started; use `async with runner:` or `await runner.start()` first")
        added = await self._persist(lambda: self.store.add(handler.batch_id, entries, on_change=on_change, now=self.clock.now()))
        if added.new or added.changed:
            self.wake(handler)
        self.events.publish(Accepted(handler.batch_id, added.new, added.existing))
        return added

    # --- inside --------------------------------------------------------------------------------------------------

    def _joining(self, worker_id: str) -> Callable[[], Awaitable[None]]:
        info = WorkerInfo(worker_id, platform.node() or "unknown", os.getpid())
        return lambda: self.store.join(info, now=self.clock.now())

    async def _open_lane(self, worker: Worker, handler: Handler[Any, Any]) -> None:
        settings = handler.settings
        options = BatchOptions.of(settings.max_attempts, settings.retry)
        name = handler_name(handler.function)
        batch = await self._persist(lambda: self.store.open_batch(handler.batch, name, options, now=self.clock.now()))
        handler.batch_id = batch.batch_id
        handler.lane = Lane(
            batch.batch_id,
            self._attempts(handler),
            limit=min(settings.concurrency, self.settings.concurrency),
            max_failures=settings.max_failures,
        )
        worker.add_lane(handler.lane)

    async def _serve(self, worker: Worker, duties: tuple[Callable[[], Awaitable[None]], ...]) -> None:
        # Its own task, outside of every caller's cancel scope. The pump is shielded: it ends when it is drained.
        try:
            async with anyio.create_task_group() as beside:
                for duty in duties:
                    beside.start_soon(self._guarded, duty)
                with anyio.CancelScope(shield=True):
                    async with anyio.create_task_group() as slots:
                        await self._guarded(partial(worker.pump, slots))
                beside.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
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
        while True:
            await worker.wait_until_hungry()
            await self._persist(self.store.wait_for_change)
            worker.wake()

    async def _depart(self, worker: Worker) -> None:
        try:
            await self._persist(lambda: self.store.leave(worker.id, now=self.clock.now()))
        except Exception as error:  # noqa: BLE001 - as above; the file is closed all the same
            if self._failure is None:
                self._failure = error
            log.error("the worker could not say goodbye; the next start recovers what it held: %s", error)  # noqa: TRY400
        finally:
            await self.store.close()
