"""Runner: run the handlers of one file inside a program. This module composes the worker, the store and the handlers."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import fields
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Unpack, get_args, overload

import anyio

from asyncrunner.backends import open_engine
from asyncrunner.domain.clock import Clock, SystemClock
from asyncrunner.domain.options import HandlerKeywords, HandlerOptions, RunnerOptions
from asyncrunner.errors import ConfigurationError, StoreClosed, StoreUnavailable
from asyncrunner.events import Event, Events
from asyncrunner.execution.execution import Around
from asyncrunner.execution.executor import AttemptExecutor
from asyncrunner.execution.process_handler import ChildCall
from asyncrunner.runner.engine import GRACE_SECONDS, STORE_PATIENCE_SECONDS, Engine
from asyncrunner.runner.observers import Observer
from asyncrunner.store.protocols import Store
from asyncrunner.store.retrying import RetryingStore
from asyncrunner.store.workers import Stop
from asyncrunner.submission.handler import Handler
from asyncrunner.submission.submitter import Desk
from asyncrunner.text.durations import Duration
from asyncrunner.text.validation import checked_path

if TYPE_CHECKING:
    from types import TracebackType

    from asyncrunner.domain.options import Durability
    from asyncrunner.worker.worker import Worker


log = logging.getLogger("asyncrunner")

T = TypeVar("T")

R = TypeVar("R")

E = TypeVar("E")


class Decorator(Protocol):
    """What ``handler(...)`` returns: a decorator that registers a function as a handler."""

    @overload
    def __call__(self, function: Callable[[T], Coroutine[Any, Any, R]], /) -> Handler[T, R]: ...
    @overload
    def __call__(self, function: Callable[[T], R], /) -> Handler[T, R]: ...


class Runner:
    """A durable job runner: runs the items of its handlers in the background of a program.

    ``async with runner:`` starts it. Leaving the block drains it: handlers have ``shutdown_timeout`` seconds to end, then they
    are cancelled; unfinished items become pending again with the attempt refunded. ``start()`` and ``stop()`` do the same and
    may be called from different tasks; web frameworks call ``lifespan``. A runner never installs signal handlers. After a crash
    the next start immediately recovers the items that were running. ``retention``: seconds, a timedelta or "30d", after which
    completed items of its handlers are deleted with their results and failures; a deleted key counts as new. Several processes,
    and several runners in one process, may work on one file.
    """

    def __init__(
        self,
        db: str | os.PathLike[str] = "asyncrunner.db",
        *,
        concurrency: int = 10,
        durability: Durability = "full",
        stale_after: float = 300.0,
        shutdown_timeout: float = 30.0,
        retention: Duration | None = None,
        clock: Clock | None = None,
        store: Store | None = None,
    ) -> None:
        self.options = RunnerOptions(
            db=checked_path("db", db),
            concurrency=concurrency,
            durability=durability,
            stale_after=stale_after,
            shutdown_timeout=shutdown_timeout,
            retention=retention,
        )
        self.db = self.options.db
        self.role = "service"  # `asyncrunner stop` never stops a service
        self.on_stop: Callable[[Stop], object] = self._on_stop  # called when another process requests a stop
        self.events = Events()
        self.around: list[Around] = []
        clock = clock or SystemClock()
        self._use(store or open_engine(self.db, durability, clock), clock)
        self._observers: list[Observer] = []
        self._handlers: dict[str, Handler[Any, Any]] = {}
        self._engine: Engine | None = None
        self._failure: BaseException | None = None  # of the previous engine
        self._has_run = False
        self._limiters: dict[str, anyio.CapacityLimiter] = {}

    @classmethod
    def of(cls, options: RunnerOptions, *, clock: Clock | None = None, store: Store | None = None) -> Runner:
        """Return a runner with *options*."""
        return cls(**{each.name: getattr(options, each.name) for each in fields(options)}, clock=clock, store=store)

    def _use(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.desk = Desk(clock, self._closed_reason)

    @contextmanager
    def using(self, store: Store, clock: Clock) -> Generator[None, None, None]:
        """Replace the runner's store and clock inside the ``with`` block; used by ``asyncrunner.testing``.

        Raises ConfigurationError while the runner is started.
        """
        if self._engine is not None:
            raise ConfigurationError(f"{self!r} is started; replace its store and clock before the start")
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
    def handler(self, /, **options: Unpack[HandlerKeywords]) -> Decorator: ...

    def handler(self, function: Callable[[Any], Any] | None = None, /, **options: Unpack[HandlerKeywords]) -> Any:
        """Register the decorated function as a handler. The options are those of ``run_batch``.

        ``concurrency`` limits this handler; the runner's own ``concurrency`` limits all handlers together. Raises
        ConfigurationError for a function that cannot be called with one item, a batch that already has a handler, or after
        the start; TypeError for an option that handlers do not have.
        """

        handler_options = HandlerOptions.of(options)

        def register(function: Callable[[Any], Any]) -> Handler[Any, Any]:
            return self.register(function, handler_options)

        return register if function is None else register(function)

    def register(self, function: Callable[[T], Any], options: HandlerOptions) -> Handler[T, Any]:
        """Register *function* with validated options. Raises ConfigurationError, also once the runner is started."""
        if self._engine is not None:
            raise ConfigurationError("register handlers before the runner is started")
        handler: Handler[T, Any] = Handler(self, function, options)
        if handler.batch in self._handlers:
            raise ConfigurationError(
                f"the batch {handler.batch!r} already has a handler, {self._handlers[handler.batch].name}; give this handler "
                "another batch name, as in @runner.handler(batch='...')"
            )
        self._attempt_runner(handler)  # fails now rather than at the first item
        self._handlers[handler.batch] = handler
        return handler

    def _attempt_runner(self, handler: Handler[Any, Any]) -> AttemptExecutor:
        options = handler.options
        function = handler.function
        limiter = partial(self._thread_limiter, handler, self._limit(options))
        if options.run_in == "process":
            function = ChildCall(function, limiter)
        elif options.run_in == "thread" and inspect.iscoroutinefunction(function):
            raise ConfigurationError(f'run_in="thread" is for a `def`; the `async def` {handler.name} runs in the event loop')
        return AttemptExecutor(
            handler.batch,
            function,
            handler.items,
            handler.results,
            clock=self.clock,
            max_attempts=options.max_attempts,
            policy=options.retry,
            timeout=options.timeout,
            grace=GRACE_SECONDS,
            limiter=limiter,
            rng=random.Random(),  # noqa: S311 - only spreads retries
            around=self.around,
        )

    def _limit(self, options: HandlerOptions) -> int:
        limit = min(options.concurrency, self.options.concurrency)
        # Each process keeps one core busy; more processes than cores only compete.
        return min(limit, os.cpu_count() or 1) if options.run_in == "process" else limit

    def _thread_limiter(self, handler: Handler[Any, Any], concurrency: int) -> anyio.CapacityLimiter:
        # One limiter per handler, so that a handler whose threads hang cannot take the threads of another.
        limiter = self._limiters.get(handler.batch)
        if limiter is None:
            limiter = self._limiters[handler.batch] = anyio.CapacityLimiter(concurrency)
        if handler.queue is not None and handler.queue.limit > limiter.total_tokens:
            limiter.total_tokens = handler.queue.limit  # an operator raised the batch's concurrency
        return limiter

    # --- start and stop ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Runner:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop(drain=kind is None)
        if kind is None:
            self.raise_lasting_failure()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None, None]:
        """Start the runner with a web application and stop it when the application's server shuts down.

        Use ``FastAPI(lifespan=runner.lifespan)`` (Starlette likewise), ``Litestar(lifespan=[runner.lifespan])`` or, with
        aiohttp 3.14, ``app.cleanup_ctx.append(runner.lifespan)``. *app* is ignored.
        """
        del app
        async with self:
            yield

    async def start(self) -> None:
        """Open the file, recover the items of dead workers, and begin to run.

        Raises StoreError if the file cannot be used, ConfigurationError if the runner is already started. The file is closed
        again after an error or a cancellation.
        """
        if self._engine is not None:
            raise ConfigurationError("the runner is already started")
        self._has_run = True
        self._failure = None
        self._limiters.clear()
        self._engine = engine = Engine(
            self.store, self.clock, self.events, self.options, self.desk, self._observers,
            role=self.role, on_stop=lambda how: self.on_stop(how),
        )  # fmt: skip
        try:
            await engine.open({handler: self._attempt_runner(handler) for handler in self._handlers.values()}, self._limit)
            engine.start()
        except BaseException:
            self._engine = None
            raise
        finally:
            engine.has_begun.set()

    async def stop(self, *, drain: bool = True) -> None:
        """Stop claiming, let handlers end, release the unfinished items, close the file.

        With ``drain`` handlers have ``shutdown_timeout`` seconds to end; without it, or after that time, they are cancelled.
        A handler that does not end within 3 s of being cancelled is abandoned. Interrupted items become pending again with the
        attempt refunded. If the caller is cancelled, the handlers are cancelled too, the stop still completes, and
        CancelledError is raised. Stopping a stopped runner does nothing.
        """
        engine = self._engine
        if engine is None:
            return
        if drain:
            engine.request_stop()
        else:
            engine.request_cancel()
        await engine.has_begun.wait()  # a start in progress completes first
        if engine.task is None:
            return
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while not engine.task.done():
                try:
                    await asyncio.wait({engine.task})
                except asyncio.CancelledError as error:
                    cancelled = error
                    engine.request_cancel()
        self._failure = engine.failure
        self._engine = None
        if cancelled is not None:
            raise cancelled

    def request_stop(self) -> None:
        """Begin to drain and return immediately. Handlers that still run after ``shutdown_timeout`` seconds are cancelled."""
        if self._engine is not None:
            self._engine.request_stop()

    def request_cancel(self) -> None:
        """Cancel every handler and return immediately. Its item becomes pending again with the attempt refunded."""
        if self._engine is not None:
            self._engine.request_cancel()

    @property
    def engine(self) -> asyncio.Task[None] | None:
        """The task that runs the engine, or None unless the runner is started; the task is done once the engine has ended."""
        return None if self._engine is None else self._engine.task

    @property
    def failure(self) -> BaseException | None:
        """The exception that ended the runner, or None if it still runs or ended because a stop was requested."""
        return self._failure if self._engine is None else self._engine.failure

    @property
    def retrying_store(self) -> RetryingStore:
        """The store with its calls retried while it is unavailable; without an engine, for at most 5 s from now on."""
        if self._engine is not None:
            return self._engine.store
        return RetryingStore(self.store, self.clock, deadline=self.clock.monotonic() + STORE_PATIENCE_SECONDS)

    def raise_failure(self) -> None:
        """Raise the exception that ended the runner, if there is one."""
        if self.failure is not None:
            raise self.failure

    def raise_lasting_failure(self) -> None:
        """Raise the failure after a stop, except StoreUnavailable: the next start recovers what could not be written then."""
        if not isinstance(self.failure, StoreUnavailable):
            self.raise_failure()

    def wake(self, handler: Handler[Any, Any]) -> None:
        """Make the worker look for items of that handler now."""
        if self.worker is not None:
            self.worker.wake(handler.queue)

    @property
    def handlers(self) -> Mapping[str, Handler[Any, Any]]:
        """The registered handlers by batch name."""
        return MappingProxyType(self._handlers)

    @property
    def worker(self) -> Worker | None:
        """The running worker, or None unless the runner is started."""
        return None if self._engine is None else self._engine.worker

    def on(self, kind: type[E], observer: Callable[[E], object]) -> Callable[[], None]:
        """Call *observer* with every event of one type from ``asyncrunner.events``, after the event is committed.

        An ``async def`` runs in the event loop, a ``def`` in a thread, one event at a time. A slow observer does not slow the
        engine: once 10,000 events wait for it, further events are dropped and the log reports how many. An exception of the
        observer is logged, and the next event is delivered. Only events of this process are delivered.

        Returns a function that ends the subscription. May be called before the start and while the runner runs. Raises
        ConfigurationError for an unknown event type or a function that cannot be called with one event.
        """
        if kind not in get_args(Event):
            names = ", ".join(event.__name__ for event in get_args(Event))
            raise ConfigurationError(f"there is no event {kind!r}; asyncrunner.events has {names}")
        subscriber = Observer(observer)
        unsubscribe = subscriber.subscribe(kind, self.events)
        self._observers.append(subscriber)
        if self._engine is not None:
            self._engine.begin_to_tell(subscriber)

        def end() -> None:
            unsubscribe()
            if subscriber in self._observers:
                self._observers.remove(subscriber)

        return end

    async def purge_oldest(self, may_go_on: Callable[[], bool]) -> int:
        """Purge all items that are older than ``retention``, oldest first and without pauses, while *may_go_on* returns True.

        Returns the number of items purged since the runner was started. Purging ends early if the store is unavailable.
        """
        retention = None if self._engine is None else self._engine.retention
        if retention is None:
            return 0
        with suppress(StoreUnavailable, StoreClosed):  # the next purge deletes the rest
            await retention.purge_oldest(may_go_on=may_go_on)
        return retention.removed

    # --- private -------------------------------------------------------------------------------------------------

    def _on_stop(self, how: Stop) -> None:
        log.warning("another process requested this worker to stop%s", " immediately" if how is Stop.CANCEL else "")
        if how is Stop.CANCEL:
            self.request_cancel()
        else:
            self.request_stop()

    def _closed_reason(self) -> str:
        if self.failure is not None:
            return f"{self!r} has stopped: {self.failure}"
        if self._has_run:
            return f"{self!r} is stopped; start it again before you submit items or wait for results"
        return (
            f"{self!r} is not started; use `async with runner:` or `await runner.start()` first, or a Client if other "
            "processes run the items"
        )
