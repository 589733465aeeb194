"""Runner: handlers on one file, inside a running program. The composition root: here the rooms meet."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Unpack, cast, get_args, overload

import anyio

from asyncrunner.attempt import Around, AttemptRunner
from asyncrunner.child import ChildCall
from asyncrunner.clock import Clock, SystemClock
from asyncrunner.desk import Desk
from asyncrunner.durations import Duration
from asyncrunner.engine import GRACE_SECONDS, STORE_PATIENCE_SECONDS, Engine
from asyncrunner.errors import ConfigurationError, StoreClosed, StoreUnavailable
from asyncrunner.events import Event, Events
from asyncrunner.handler import Handler
from asyncrunner.observers import Observer
from asyncrunner.settings import NO_LIMIT, HandlerOptions, RunOptions, Settings
from asyncrunner.sqlite import SQLiteStore
from asyncrunner.store import Stop, Store
from asyncrunner.transient import Persistence

if TYPE_CHECKING:
    from types import TracebackType

    from asyncrunner.sqlite.file import Durability
    from asyncrunner.worker import Worker

__all__ = ["Handler", "Runner"]

log = logging.getLogger("asyncrunner")

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E")


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
    what was running. ``retention``: seconds, a timedelta or "30d", after which its handlers' completed items are forgotten, with
    their results and failures; a key that was forgotten is new again. Several processes may run the same runner on one file; so
    may several runners of one process.
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
        self.settings = Settings(
            db=db,
            concurrency=concurrency,
            durability=durability,
            stale_after=stale_after,
            shutdown_timeout=shutdown_timeout,
            retention=retention,
        )
        self.db = db
        self.role = "service"  # what `asyncrunner stop` knows it as: what serves an application is stopped with that
        self.on_stop: Callable[[Stop], object] = self._on_stop  # somebody outside asked
        self.events = Events()
        self.around: list[Around] = []
        self._use(store or SQLiteStore(db, durability=durability), clock or SystemClock())
        self._observers: list[Observer] = []
        self._handlers: dict[str, Handler[Any, Any]] = {}
        self._engine: Engine | None = None
        self._failure: BaseException | None = None  # of the engine before
        self._has_run = False
        self._limiters: dict[str, anyio.CapacityLimiter] = {}

    def _use(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.desk = Desk(store, clock, self._why_closed)

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

        for name in sorted(set(options) & (set(RunOptions.__annotations__) - set(HandlerOptions.__annotations__))):
            raise TypeError(f"{name} is an option of the runner or of run_batch, not of a handler")
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
        limiter = partial(self._limiter, handler, self._limit(settings))
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
            grace=GRACE_SECONDS,
            limiter=limiter,
            rng=random.Random(),  # noqa: S311 - it spreads retries
            around=self.around,
        )

    def _limit(self, settings: Settings) -> int:
        limit = min(settings.concurrency, self.settings.concurrency)
        # A process is a core's work; more of them than cores would only wait for each other.
        return min(limit, os.cpu_count() or 1) if settings.run_in == "process" else limit

    def _limiter(self, handler: Handler[Any, Any], concurrency: int) -> anyio.CapacityLimiter:
        # Of its own, so that handlers stuck in threads never keep anybody else from getting one.
        limiter = self._limiters.get(handler.batch)
        if limiter is None:
            limiter = self._limiters[handler.batch] = anyio.CapacityLimiter(concurrency)
        if handler.lane is not None and handler.lane.limit > limiter.total_tokens:
            limiter.total_tokens = handler.lane.limit  # a person gave the batch more slots
        return limiter

    # --- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Runner:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop(drain=kind is None)
        if kind is None:
            self.raise_lasting_failure()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None, None]:
        """The runner's life as that of a web application, whose server says when it begins and ends.

        ``FastAPI(lifespan=runner.lifespan)`` and Starlette alike, ``Litestar(lifespan=[runner.lifespan])``, aiohttp's (3.14)
        ``app.cleanup_ctx.append(runner.lifespan)``.
        """
        del app
        async with self:
            yield

    async def start(self) -> None:
        """Open the file, recover what dead workers left, begin to run. Raises StoreError; then nothing is left open."""
        if self._engine is not None:
            raise ConfigurationError("the runner is started already")
        self._has_run = True
        self._failure = None
        self._limiters.clear()
        self._engine = engine = Engine(
            self.store, self.clock, self.events, self.settings, self.desk, self._observers,
            role=self.role, on_stop=lambda how: self.on_stop(how),
        )  # fmt: skip
        try:
            await engine.open({handler: self._attempts(handler) for handler in self._handlers.values()}, self._limit)
            engine.start()
        except BaseException:
            self._engine = None
            raise
        finally:
            engine.has_begun.set()

    async def stop(self, *, drain: bool = True) -> None:
        """Stop claiming, let handlers end, give the rest back, close the file.

        With ``drain`` handlers have ``shutdown_timeout`` seconds to end; without it, or after that, they are cancelled;
        one that does not end then is left behind. Attempts that were interrupted are refunded. A cancelled caller cancels
        the handlers, and the stop goes on to its end. Stopping twice is fine.
        """
        engine = self._engine
        if engine is None:
            return
        if drain:
            engine.request_stop()
        else:
            engine.request_cancel()
        await engine.has_begun.wait()  # while it is being started, the start comes to its end first
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
        """Begin to drain; after ``shutdown_timeout`` handlers are cancelled. Returns at once."""
        if self._engine is not None:
            self._engine.request_stop()

    def request_cancel(self) -> None:
        """Cancel every handler; its item is given back. Returns at once."""
        if self._engine is not None:
            self._engine.request_cancel()

    @property
    def engine(self) -> asyncio.Task[None] | None:
        """The task that everything runs in; done when the runner has ended by itself."""
        return None if self._engine is None else self._engine.task

    @property
    def failure(self) -> BaseException | None:
        """What ended the runner, if it did not end because it was asked to."""
        return self._failure if self._engine is None else self._engine.failure

    @property
    def persist(self) -> Persistence:
        """How calls of the store are repeated while it is unavailable: as the engine does or, without one, not for long."""
        if self._engine is not None:
            return self._engine.persist
        brief = Persistence(self.clock)
        brief.give_up_at = self.clock.monotonic() + STORE_PATIENCE_SECONDS
        return brief

    def raise_failure(self) -> None:
        """Raise what ended the runner, if it did not end because it was asked to."""
        if self.failure is not None:
            raise self.failure

    def raise_lasting_failure(self) -> None:
        """The same after a stop, unless it is only that the file was busy then: the next start puts in order what is left."""
        if not isinstance(self.failure, StoreUnavailable):
            self.raise_failure()

    def wake(self, handler: Handler[Any, Any]) -> None:
        """Look for items of that handler now."""
        if self.worker is not None:
            self.worker.wake(handler.lane)

    @property
    def handlers(self) -> Mapping[str, Handler[Any, Any]]:
        """The registered handlers, by their batch."""
        return MappingProxyType(self._handlers)

    @property
    def worker(self) -> Worker | None:
        """The worker that runs; None unless the runner is started."""
        return None if self._engine is None else self._engine.worker

    def on(self, kind: type[E], observer: Callable[[E], object]) -> Callable[[], None]:
        """Call *observer* with every event of that type, from ``asyncrunner.events``, once it is in the file.

        An ``async def`` runs in the loop, a ``def`` in a thread, one event after the other, beside the engine: a slow observer
        slows nothing, it misses events once 10,000 wait for it (the log says so), and one that raises is logged and called again.
        Only this process's events are told. Returns what ends it. May be called before the runner is started and while it runs.
        """
        if kind not in get_args(Event):
            names = ", ".join(event.__name__ for event in get_args(Event))
            raise ConfigurationError(f"there is no event {kind!r}; asyncrunner.events has {names}")
        made = Observer(observer)
        unsubscribe = made.subscribe(kind, self.events)
        self._observers.append(made)
        if self._engine is not None:
            self._engine.begin_to_tell(made)

        def end() -> None:
            unsubscribe()
            if made in self._observers:
                self._observers.remove(made)

        return end

    async def purge_oldest(self, may_go_on: Callable[[], bool]) -> int:
        """Purge what ``retention`` lets go, without rest, from the oldest on; returns what this life has purged in all."""
        retention = None if self._engine is None else self._engine.retention
        if retention is None:
            return 0
        with suppress(StoreUnavailable, StoreClosed):  # another time, then
            await retention.purge_oldest(may_go_on=may_go_on)
        return retention.removed

    # --- inside --------------------------------------------------------------------------------------------------

    def _on_stop(self, how: Stop) -> None:
        log.warning("somebody outside asked this worker to stop%s", " at once" if how is Stop.CANCEL else "")
        if how is Stop.CANCEL:
            self.request_cancel()
        else:
            self.request_stop()

    def _why_closed(self) -> str:
        if self.failure is not None:
            return f"{self!r} has stopped: {self.failure}"
        if self._has_run:
            return f"{self!r} is stopped; start it again to submit and to ask"
        return (
            f"{self!r} is not started; use `async with runner:` or `await runner.start()` first, or a Client where other "
            "processes run the items"
        )
