"""Compose the parts of a runner: its store, its handlers and, while it is started, its engine."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import random
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from asyncrunner.backends import open_engine, open_transactional_insert
from asyncrunner.domain.clock import SystemClock
from asyncrunner.domain.outcome import Completed
from asyncrunner.errors import ConfigurationError, StoreClosed, StoreUnavailable
from asyncrunner.events import Events
from asyncrunner.execution.executor import AttemptExecutor
from asyncrunner.execution.process_handler import ChildCall
from asyncrunner.runner.bare_loop import LoopEnd, is_freed_with
from asyncrunner.runner.engine import GRACE_SECONDS, STORE_RETRY_SECONDS, Engine
from asyncrunner.runner.interrupt_message import Summary, watch_for_ctrl_c
from asyncrunner.runner.observers import Observer
from asyncrunner.runner.setup import Setup
from asyncrunner.store.retrying import RetryingStore
from asyncrunner.store.workers import Stop
from asyncrunner.submission.handler import Handler
from asyncrunner.submission.submitter import ItemSubmitter
from asyncrunner.text.durations import duration_text
from asyncrunner.text.escaping import safe_text

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.options import HandlerOptions, RunnerOptions
    from asyncrunner.execution.execution import Around
    from asyncrunner.runner.processes.supervisor import Supervisor
    from asyncrunner.store.protocols import Store, TransactionalInsert
    from asyncrunner.worker.batch_queue import BatchQueue
    from asyncrunner.worker.worker import Worker

log = logging.getLogger("asyncrunner")

T = TypeVar("T")


class RunnerInternals:
    """The runner for ``batch``, ``testing``, ``otel`` and the command line; ``Runner`` shows only the names for users.

    *role* is stored for ``asyncrunner stop``, which never stops a "service"; "child" is a child process of a run. *on_stop* is
    called when another process requests a stop; by default the runner stops. ``around`` lists functions whose context managers
    surround every attempt.
    """

    def __init__(
        self,
        options: RunnerOptions,
        *,
        role: str = "service",
        on_stop: Callable[[Stop], object] | None = None,
        clock: Clock | None = None,
        store: Store | None = None,
    ) -> None:
        self.options = options
        self.events = Events()
        self.around: list[Around] = []
        self.handlers: dict[str, Handler[Any, Any]] = {}
        self._clock: Clock = clock or SystemClock()
        self._store: Store = store or open_engine(options.db, options.durability, self._clock)
        self.submitter = ItemSubmitter(self._clock, self._closed_reason)
        self._role = role
        self._on_stop = on_stop or self._stop_as_requested
        self._observers: list[Observer] = []
        self._engine: Engine | None = None
        self._setup: Setup | None = None
        # They are kept, because freeing them would run the `finally` blocks of their coroutines, on the store of the next engine.
        self._abandoned: list[Engine] = []
        self._failure: BaseException | None = None  # of the previous engine
        self._loop_end = LoopEnd(partial(self.stop, drain=False))
        self._has_run = False
        self._end_watch: Callable[[BaseException | None], None] = lambda _: None
        self._limiters: dict[str, anyio.CapacityLimiter] = {}
        self.children: Supervisor | None = None  # the child processes that run the handlers

    @property
    def name(self) -> str:
        """The runner's name in messages."""
        return f"<Runner on {self.store.location}>"

    @property
    def store(self) -> Store:
        """The store with which the runner was started; while the runner is not started, its own store."""
        return self._store if self._engine is None else self._engine.bare_store

    @property
    def clock(self) -> Clock:
        """The clock with which the runner was started; while the runner is not started, its own clock."""
        return self._clock if self._engine is None else self._engine.clock

    # --- handlers ------------------------------------------------------------------------------------------------

    def register(self, function: Callable[..., Any], options: HandlerOptions) -> Handler[Any, Any]:
        """Register *function* as a handler. Raises ConfigurationError, for example once the runner is started."""
        if self._engine is not None:
            raise ConfigurationError("register handlers before the runner is started")
        has_setup = self.options.setup is not None
        handler: Handler[Any, Any] = Handler(
            function, options, self.submitter, self._open_inserter, self.name, has_setup=has_setup
        )
        if handler.batch in self.handlers:
            raise ConfigurationError(
                f"the batch {handler.batch!r} already has a handler, {self.handlers[handler.batch].name}; give this handler "
                "another batch name, as in @runner.handler(batch='...')"
            )
        self._executor_of(handler, self.options)  # an invalid option raises here rather than at the start
        self.handlers[handler.batch] = handler
        return handler

    def _open_inserter(self) -> TransactionalInsert:
        return open_transactional_insert(self.options.db, self.clock)

    def _executor_of(
        self,
        handler: Handler[Any, Any],
        runner_options: RunnerOptions,
        setup_value: object = None,
        on_interrupt: Callable[[BaseException], object] | None = None,
    ) -> AttemptExecutor:
        options = handler.options
        function = handler.function
        if handler.setup_parameter is not None:
            if options.run_in == "process":
                raise ConfigurationError(
                    f"{handler.name} runs in child processes, to which the value of setup= cannot be passed; open what it needs "
                    "in the function itself, or run it in threads"
                )
            function = partial(function, **{handler.setup_parameter: setup_value})
        limiter = partial(self._thread_limiter, handler.batch, _limit_of(options, runner_options))
        if options.run_in == "process":
            function = ChildCall(function, limiter, nan=options.nan)
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
            rng=random.Random(),  # noqa: S311 - it only adds jitter to retries
            around=self.around,
            on_interrupt=on_interrupt,
        )

    def _thread_limiter(self, batch: str, concurrency: int) -> anyio.CapacityLimiter:
        # Each handler has its own limiter, so that a handler whose threads hang cannot take the threads of another.
        limiter = self._limiters.get(batch)
        if limiter is None:
            limiter = self._limiters[batch] = anyio.CapacityLimiter(concurrency)
        queue = None if self._engine is None else self._engine.queues.get(batch)
        if queue is not None and queue.limit > limiter.total_tokens:
            limiter.total_tokens = queue.limit  # an operator raised the batch's concurrency
        return limiter

    # --- start and stop ------------------------------------------------------------------------------------------

    async def start(
        self,
        *,
        role: str | None = None,
        options: RunnerOptions | None = None,
        store: Store | None = None,
        clock: Clock | None = None,
        batches: Collection[str] | None = None,
    ) -> None:
        """See ``Runner.start``. *store* and *clock* replace the runner's own until the runner is stopped, *options* also later.

        A runner whose event loop was closed while it ran can be started again, in another loop.
        *batches*: run only the items of these batches. Items may still be submitted to every handler.
        """
        if self._engine is not None and self._engine.loop is not None and self._engine.loop.is_closed():
            self._abandoned.append(self._engine)
            await self._engine.abandon()
            self._engine = None
        if self._engine is not None:
            raise ConfigurationError("the runner is already started")
        self.options = options = options or self.options
        self._has_run = True
        self._failure = None
        self._limiters.clear()
        self._engine = engine = Engine(
            store or self._store,
            clock or self._clock,
            self.events,
            options,
            self.submitter,
            self._observers,
            role=role or self._role,
            on_stop=self._on_stop,
            on_interrupt=self._loop_end.begin,
            children=self.children,
        )
        self._end_watch = watch_for_ctrl_c(partial(self._summary, engine), engine.abandon)
        try:
            value = await self._enter_setup(engine, options)
            await engine.open(
                [
                    (handler, self._executor_of(handler, options, value, engine.interrupt), _limit_of(handler.options, options))
                    for handler in self.handlers.values()
                    if batches is None or handler.batch in batches
                ],
                [handler for handler in self.handlers.values() if batches is not None and handler.batch not in batches],
            )
            engine.start()
        except BaseException:
            self._engine = None
            self._end_watch(None)
            await self._leave_setup()
            raise
        finally:
            engine.has_begun.set()

    def _summary(self, engine: Engine) -> Summary:
        seconds = duration_text(engine.clock.monotonic() - engine.began)
        counts = [
            f"{safe_text(name)}: {queue.tally[Completed]:,} completed in {seconds}" for name, queue in engine.queues.items()
        ]
        return Summary(counts, engine.bare_store.location, engine.has_left)

    async def _enter_setup(self, engine: Engine, options: RunnerOptions) -> object:
        if options.setup is None:
            return None
        self._setup = Setup(options.setup, engine.fail)
        return await self._setup.enter()

    async def _leave_setup(self) -> None:
        setup, self._setup = self._setup, None
        if setup is not None:
            await setup.leave()

    async def stop(self, *, drain: bool = True) -> None:
        """See ``Runner.stop``."""
        engine = self._engine
        if engine is None or is_freed_with(engine.loop):
            return
        engine.is_awaited = True
        request = engine.request_stop if drain else engine.request_cancel
        request()
        cancelled: asyncio.CancelledError | None = None
        ending = asyncio.ensure_future(engine.wait_until_ended())
        with anyio.CancelScope(shield=True):
            while not ending.done():
                try:
                    await asyncio.wait({ending})
                except asyncio.CancelledError as error:
                    cancelled = error
                    engine.request_cancel()
        if engine.task is not None and self._engine is engine:
            self._failure = engine.failure
            self._engine = None
            try:
                await self._leave_setup()
            except Exception as error:
                log.exception("the context manager of setup= raised an exception when it was left")
                self._failure = self._failure or error
            self._end_watch(self._failure)
        if cancelled is not None:
            raise cancelled

    def request_stop(self) -> None:
        """See ``Runner.request_stop``."""
        if self._engine is not None:
            self._engine.request_stop()

    def request_cancel(self) -> None:
        """See ``Runner.request_cancel``."""
        if self._engine is not None:
            self._engine.request_cancel()

    def interrupt(self) -> None:
        """End the runner in order, as by Ctrl-C; ``failure`` is then a KeyboardInterrupt."""
        if self._engine is not None:
            self._engine.interrupt(KeyboardInterrupt())

    def _stop_as_requested(self, how: Stop) -> None:
        log.warning("another process requested this worker to stop%s", " immediately" if how is Stop.CANCEL else "")
        request = self.request_cancel if how is Stop.CANCEL else self.request_stop
        request()

    # --- while started -------------------------------------------------------------------------------------------

    @property
    def engine_task(self) -> asyncio.Task[None] | None:
        """The task that runs the engine, done once the engine has ended; None if the runner is not started."""
        return None if self._engine is None else self._engine.task

    @property
    def worker(self) -> Worker | None:
        """The running worker, or None if the runner is not started."""
        return None if self._engine is None else self._engine.worker

    def queue(self, handler: Handler[Any, Any]) -> BatchQueue:
        """Return the batch queue of *handler*. Raises StoreClosed if the runner is not started."""
        queue = None if self._engine is None else self._engine.queues.get(handler.batch)
        if queue is None:
            raise StoreClosed(self._closed_reason())
        return queue

    async def wait_for_versions(self) -> int:
        """Wait until the items that another version completed are pending, or the engine has ended; return their number."""
        engine = self._engine
        return 0 if engine is None or engine.task is None else await engine.versions.wait_until_applied(engine.task)

    def begin_claims(self) -> None:
        """Let the worker of a run claim items; it claims none before this call."""
        if self._engine is not None:
            self._engine.versions.begin.set()

    def wake(self, handler: Handler[Any, Any]) -> None:
        """Make the worker look for items of *handler* now."""
        if self._engine is not None:
            self._engine.worker.wake(self._engine.queues.get(handler.batch))

    def add_observer(self, observer: Observer) -> None:
        """Run *observer* whenever the runner is started, now included."""
        self._observers.append(observer)
        if self._engine is not None:
            self._engine.start_observer(observer)

    def remove_observer(self, observer: Observer) -> None:
        """Remove *observer*, so that the next start does not run it. Removing it again does nothing."""
        if observer in self._observers:
            self._observers.remove(observer)

    @property
    def retrying_store(self) -> RetryingStore:
        """The store, whose calls are retried while it is unavailable.

        Without an engine, calls are retried for at most 5 s after this property is read.
        """
        if self._engine is not None:
            return self._engine.store
        return RetryingStore(self._store, self._clock, deadline=self._clock.monotonic() + STORE_RETRY_SECONDS)

    async def purge_oldest(self, may_continue: Callable[[], bool]) -> int:
        """Purge all items older than ``retention``, oldest first and without pauses, while *may_continue* returns True.

        Returns the number of items purged since the runner was started. The purge ends early if the store is
        unavailable.
        """
        retention = None if self._engine is None else self._engine.retention
        if retention is None:
            return 0
        with suppress(StoreUnavailable, StoreClosed):  # the next purge deletes the rest
            await retention.purge_oldest(may_continue=may_continue)
        return retention.removed

    # --- failures ------------------------------------------------------------------------------------------------

    @property
    def failure(self) -> BaseException | None:
        """See ``Runner.failure``."""
        return self._failure if self._engine is None else self._engine.failure

    def raise_failure(self) -> None:
        """Raise the exception that ended the runner, if there is one."""
        if self.failure is not None:
            raise self.failure

    def raise_lasting_failure(self) -> None:
        """Raise the failure of a stopped runner, except StoreUnavailable.

        After StoreUnavailable the next start recovers the items whose outcomes the stop could not write.
        """
        if not isinstance(self.failure, StoreUnavailable):
            self.raise_failure()

    def _closed_reason(self) -> str:
        if self.failure is not None:
            return f"{self.name} has stopped: {self.failure}"
        if self._has_run:
            return f"{self.name} is stopped; start it again before you submit items or wait for results"
        return (
            f"{self.name} is not started; use `async with runner:` or `await runner.start()` first, or a Client if other "
            "processes run the items"
        )


def _limit_of(options: HandlerOptions, runner_options: RunnerOptions) -> int:
    limit = min(options.concurrency, runner_options.concurrency)
    # A child process keeps one core busy; more processes than cores only compete for the cores.
    return min(limit, os.cpu_count() or 1) if options.run_in == "process" else limit
