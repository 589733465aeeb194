"""Runner: run the handlers of one file inside a program."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, Unpack, get_args, overload

from asyncrunner.domain.clock import Clock
from asyncrunner.domain.options import HandlerKeywords, HandlerOptions, RunnerOptions
from asyncrunner.errors import ConfigurationError, StoreClosed
from asyncrunner.events import Event
from asyncrunner.runner.engine import STORE_RETRY_SECONDS
from asyncrunner.runner.internals import RunnerInternals
from asyncrunner.runner.observers import Observer
from asyncrunner.store.protocols import Store
from asyncrunner.submission.handler import Handler
from asyncrunner.text.durations import Duration
from asyncrunner.text.validation import checked_path

if TYPE_CHECKING:
    from types import TracebackType

    from asyncrunner.domain.options import Durability, SetupFunction
    from asyncrunner.execution.attempt import Attempt
    from asyncrunner.execution.execution import Execution

log = logging.getLogger("asyncrunner")
_CLOCK_RESOLUTION_SECONDS: Final = 0.002  # stored times have a resolution of 1 ms
_POLL_SECONDS: Final = 0.2

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E")


class Decorator(Protocol):
    """A decorator that registers a function as a handler; ``Runner.handler(...)`` returns it."""

    @overload
    def __call__(self, function: Callable[[T], Coroutine[Any, Any, R]], /) -> Handler[T, R]: ...
    @overload
    def __call__(self, function: Callable[[T, Any], Coroutine[Any, Any, R]], /) -> Handler[T, R]: ...
    @overload
    def __call__(self, function: Callable[[T], R], /) -> Handler[T, R]: ...
    @overload
    def __call__(self, function: Callable[[T, Any], R], /) -> Handler[T, R]: ...


class Runner:
    """A durable job runner: runs the items of its handlers in the background of a program.

    ``async with runner:`` starts the runner. At the end of the block the runner drains: handlers may run for
    ``shutdown_timeout`` more seconds, then they are cancelled. An exception that leaves the block cancels the handlers
    immediately. Unfinished items become pending again with the attempt refunded. ``start()`` and ``stop()`` do the same
    and may be called from different tasks; web frameworks call ``lifespan``. A runner never installs signal handlers.
    After a crash the next start immediately recovers the items that were running. ``retention``: seconds, a timedelta
    or "30d", after which completed items of its handlers are deleted with their results and failures; a deleted key
    counts as new. ``setup``: an async context manager function, entered by ``start()`` before the first handler runs and
    left by ``stop()`` after the last one; its value is the second argument of the handlers that take one. Several
    processes, and several runners in one process, may work on one file.
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
        setup: SetupFunction | None = None,
        clock: Clock | None = None,
        store: Store | None = None,
    ) -> None:
        options = RunnerOptions(
            db=checked_path("db", db),
            concurrency=concurrency,
            durability=durability,
            stale_after=stale_after,
            shutdown_timeout=shutdown_timeout,
            retention=retention,
            setup=setup,
        )
        self._internals = RunnerInternals(options, clock=clock, store=store)

    def __repr__(self) -> str:
        return self._internals.name

    @property
    def db(self) -> str:
        """The location of the runner's store: the path of its file."""
        return self._internals.options.db

    # --- handlers ------------------------------------------------------------------------------------------------

    @overload
    def handler(self, function: Callable[[T], Coroutine[Any, Any, R]], /) -> Handler[T, R]: ...
    @overload
    def handler(self, function: Callable[[T, Any], Coroutine[Any, Any, R]], /) -> Handler[T, R]: ...
    @overload
    def handler(self, function: Callable[[T], R], /) -> Handler[T, R]: ...
    @overload
    def handler(self, function: Callable[[T, Any], R], /) -> Handler[T, R]: ...
    @overload
    def handler(self, /, **options: Unpack[HandlerKeywords]) -> Decorator: ...

    def handler(self, function: Callable[..., Any] | None = None, /, **options: Unpack[HandlerKeywords]) -> Any:
        """Register the decorated function as a handler. The options are those of ``run_batch``.

        ``concurrency`` limits this handler; the runner's own ``concurrency`` limits all handlers together. Raises
        ConfigurationError for a function that cannot be called with one item, for a batch that already has a handler,
        and once the runner is started; TypeError for an option that handlers do not have.
        """
        handler_options = HandlerOptions.of(options)

        def register(function: Callable[..., Any]) -> Handler[Any, Any]:
            return self._internals.register(function, handler_options)

        return register if function is None else register(function)

    @property
    def handlers(self) -> Mapping[str, Handler[Any, Any]]:
        """The registered handlers by batch name."""
        return MappingProxyType(self._internals.handlers)

    # --- start and stop ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Runner:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop(drain=kind is None)
        if kind is None:
            self._internals.raise_lasting_failure()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None, None]:
        """Start the runner with a web application and stop it when the application's server shuts down.

        Use ``FastAPI(lifespan=runner.lifespan)`` (Starlette likewise), ``Litestar(lifespan=[runner.lifespan])`` or,
        with aiohttp 3.14, ``app.cleanup_ctx.append(runner.lifespan)``. *app* is ignored.
        """
        del app
        async with self:
            yield

    async def start(self) -> None:
        """Open the file, recover the items of dead workers, and begin to run.

        Raises StoreError if the file cannot be used, ConfigurationError if the runner is already started. If the start
        fails or is cancelled, the file is closed again.
        """
        await self._internals.start()

    async def stop(self, *, drain: bool = True) -> None:
        """Stop claiming, let handlers end, release the unfinished items, and close the file.

        With ``drain`` handlers may run for ``shutdown_timeout`` more seconds and are then cancelled; without ``drain``
        they are cancelled immediately. A handler that does not end within 3 s after its cancellation is abandoned.
        Interrupted items become pending again with the attempt refunded. If the caller is cancelled, the handlers are
        cancelled too, the stop still completes, and CancelledError is raised. Stopping a stopped runner does nothing.
        """
        await self._internals.stop(drain=drain)

    def request_stop(self) -> None:
        """Begin to drain and return immediately.

        Handlers that still run after ``shutdown_timeout`` seconds are cancelled.
        """
        self._internals.request_stop()

    def request_cancel(self) -> None:
        """Cancel every handler and return immediately. The items become pending again with the attempts refunded."""
        self._internals.request_cancel()

    @property
    def failure(self) -> BaseException | None:
        """The exception that made the runner stop, or that prevented a clean stop; None if there was neither."""
        return self._internals.failure

    # --- events -----------------------------------------------------------------------------------------------

    def around(self, surround: Callable[[Attempt], AbstractContextManager[object]]) -> Callable[[], None]:
        """Surround every attempt with the context manager that *surround* returns for it, for example a log context or a span.

        It is entered in the handler's own context, right before the call of the handler, so that a context variable that
        it sets is set in the handler, also in one that runs in a thread. It is left after the call, with the exception
        of the handler, or with CancelledError if the attempt is interrupted. The outcome is not committed yet; see ``on``
        for that. The context manager runs in the event loop, so it must not block. If it raises an exception, the attempt
        fails with it; if it suppresses the exception of the handler, the attempt completes with the result None. The
        first context manager is the outermost one.

        Returns a function that removes it. An attempt that runs keeps its context managers.
        """
        arounds = self._internals.around

        def surround_execution(execution: Execution) -> AbstractContextManager[object]:
            return surround(execution.attempt)

        arounds.append(surround_execution)

        def end() -> None:
            if surround_execution in arounds:
                arounds.remove(surround_execution)

        return end

    def on(self, kind: type[E], observer: Callable[[E], object]) -> Callable[[], None]:
        """Call *observer* with every event of one type from ``asyncrunner.events``, after the store has committed it.

        An ``async def`` runs in the event loop, a ``def`` in a thread, one event at a time. A slow observer does not
        slow the engine: once 10,000 events wait for it, further events are dropped and the log reports how many. An
        exception of the observer is logged, and the next event is delivered. Only events of this runner are delivered.

        Returns a function that ends the subscription. You may call ``on`` before the start or while the runner runs.
        Raises ConfigurationError for an unknown event type or a function that cannot be called with one event.
        """
        if kind not in get_args(Event):
            names = ", ".join(event.__name__ for event in get_args(Event))
            raise ConfigurationError(f"there is no event {kind!r}; asyncrunner.events has {names}")
        internals = self._internals
        subscriber = Observer(observer)
        unsubscribe = subscriber.subscribe(kind, internals.events)
        internals.add_observer(subscriber)

        def end() -> None:
            unsubscribe()
            internals.remove_observer(subscriber)

        return end


def runner_of(internals: RunnerInternals) -> Runner:
    """Return a Runner that shows *internals* to users."""
    runner = Runner.__new__(Runner)
    runner._internals = internals  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - package-internal access
    return runner


def internals_of(runner: Runner) -> RunnerInternals:
    """Return the parts of *runner*, for ``batch``, ``testing``, ``otel`` and the command line."""
    return runner._internals  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - package-internal access


def stop_retrying(internals: RunnerInternals, seconds: float = STORE_RETRY_SECONDS) -> None:
    """Retry calls of an unavailable store only until *seconds* after the last handler has ended: a person waits for the end."""
    worker, clock = internals.worker, internals.clock
    if worker is None:
        return
    if worker.running:
        clock.call_later(_POLL_SECONDS, partial(stop_retrying, internals, seconds))
    else:
        store = internals.retrying_store
        store.deadline = min(store.deadline, clock.monotonic() + seconds)


async def run_until_idle(runner: Runner, *, delayed: bool = True) -> None:
    """Wait until every item of *runner*'s handlers is done; with ``delayed=False``, until no item runs or is due.

    On a test clock, which has ``leap()``, the time leaps to each delayed item and each retry in turn; on another clock
    this function waits for their times. It also waits for a handler that waits for the test. Items of a paused or
    stopped batch stay pending. Raises StoreClosed if the runner is not started, and the runner's failure if it failed.
    """
    internals = internals_of(runner)
    worker, engine = internals.worker, internals.engine_task
    if worker is None or engine is None:
        raise StoreClosed(f"{runner!r} is not started; use `async with in_memory(runner):`")
    await internals.wait_for_versions()
    while True:
        idle = asyncio.ensure_future(worker.wait_until_at_rest())
        try:
            await asyncio.wait({idle, engine}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()
        internals.raise_failure()
        seconds = worker.next_due()
        if not delayed or engine.done() or seconds is None or not math.isfinite(seconds):
            return
        pass_time: Callable[[float], Awaitable[None]] = getattr(internals.clock, "leap", internals.clock.sleep)
        await pass_time(max(0.0, seconds) + _CLOCK_RESOLUTION_SECONDS)
