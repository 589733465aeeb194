"""``run_batch``, ``run_batch_sync`` and ``stream_batch``: a coroutine over many items, durably."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from contextvars import copy_context
from typing import Any, TypeVar, Unpack, overload

from asyncrunner.batch.batch_run import BatchRun
from asyncrunner.batch.plan import check_batch
from asyncrunner.batch.report import BatchReport, ItemOutcome
from asyncrunner.domain.options import RunKeywords, RunKeywordsWithoutSetup, RunOptions
from asyncrunner.errors import ConfigurationError

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")
V = TypeVar("V")


@overload
async def run_batch(
    items: Iterable[T] | AsyncIterable[T] | None, handler: Callable[[T], Awaitable[R]], **options: Unpack[RunKeywords]
) -> BatchReport[T, R]: ...
@overload
async def run_batch(
    items: Iterable[T] | AsyncIterable[T] | None, handler: Callable[[T], R], **options: Unpack[RunKeywords]
) -> BatchReport[T, R]: ...
@overload
async def run_batch(
    items: Iterable[T] | AsyncIterable[T] | None,
    handler: Callable[[T, S], Awaitable[R]],
    *,
    setup: Callable[[], AbstractAsyncContextManager[S]],
    **options: Unpack[RunKeywordsWithoutSetup],
) -> BatchReport[T, R]: ...
@overload
async def run_batch(
    items: Iterable[T] | AsyncIterable[T] | None,
    handler: Callable[[T, S], R],
    *,
    setup: Callable[[], AbstractAsyncContextManager[S]],
    **options: Unpack[RunKeywordsWithoutSetup],
) -> BatchReport[T, R]: ...


async def run_batch(items: Any, handler: Callable[..., Any], **options: Unpack[RunKeywords]) -> BatchReport[Any, Any]:
    """Run *handler* over *items*, with each item's state kept in one SQLite file, and return when every item is done.

    ``items``: any iterable or async iterable, also a lazy or infinite one; None continues with the items in the file. An
    iterable with a step that blocks the event loop for 0.1 s is read in a thread from then on. A generator is closed when
    the run ends, also early.
    ``handler``: an ``async def``, or a ``def``, which runs in threads. The options and their defaults (see
    ``domain.options``)::

        db="asyncrunner.db", batch=None, key=None, concurrency=10, max_attempts=5, retry=RetryPolicy(),
        timeout=None, on_change="error", version=None, max_failures=None, deadline=None, rate_limit=None, run_in=None,
        nan="refuse", retry_failed=False, leftovers="run", progress=None, processes=1, durability="full",
        stale_after=300, shutdown_timeout=30, retention=None, setup=None

    ``setup`` opens what the handlers share: an async context manager function, entered before the first handler runs and
    left after the last one. Its value is the second argument of the handler::

        @asynccontextmanager
        async def client() -> AsyncGenerator[httpx.AsyncClient]:
            async with httpx.AsyncClient(timeout=10) as client:
                yield client

        async def fetch(url: str, client: httpx.AsyncClient) -> int: ...

        await run_batch(urls, fetch, setup=client)

    If it raises an exception, ``run_batch`` raises SetupFailed with its type and text, and no item has lost an attempt.

    With ``processes=4``, four child processes run the handlers, which may then use four cores; ``concurrency`` is the total. The
    children import the handler and ``setup`` by their names, and each enters ``setup``. A child that dies is replaced, and its
    items run again; children whose parent has died let their running handlers end. Raises ConfigurationError if another process
    cannot import the handler, ProcessesFailed if the children cannot run it or die again and again.

    Calling it again, also after a crash, resumes the batch: completed items never run again, pending items run, and
    failed items with attempts left are retried. With another ``version``, as in ``version="prompt-3"``, items that another
    version completed run again, and keep their old result until the new one is committed (see ``HandlerOptions``). All that
    includes items of earlier runs that are not in ``items``; the log and the progress display name their number at the start.
    With ``leftovers="leave"`` the call runs and retries only ``items``, and the others stay pending, also over a crash. In both
    cases the counts, ``report.results()`` and ``report.outcomes()`` are of ``items``, and ``report.leftovers`` counts the others.
    Several processes may run the same batch together; each call ends when its own items have ended, in whichever process.
    When it returns, every outcome is on disk. If it is cancelled, it commits the finished items, releases the others (with
    the attempt refunded) and raises CancelledError. The first Ctrl-C does the same and raises KeyboardInterrupt, unless the
    program handles SIGINT itself, as ``asyncio.run()`` does.

    Items that fail do not raise; see ``report.failed`` and ``report.raise_for_failures()``. Raises ConfigurationError
    for invalid options, ItemError for an item that cannot be stored (running handlers end first, the other items stay
    pending), StoreError if the file cannot be used (without items StoreNotFound or BatchNotFound, with similar names, if
    there is no batch to continue with; no file is made), and an exception of the source after the items that the source gave
    before it are done (SourceCancelled for a source or a key function that raises CancelledError or GeneratorExit itself).
    """
    run_options = RunOptions.of("run_batch", options)
    run: BatchRun[Any, Any] = BatchRun(items, handler, run_options)
    if items is None:
        await check_batch(run_options.runner.db, run.handler.batch)
    async with run:
        return await run.finish()


@overload
def run_batch_sync(
    items: Iterable[T] | AsyncIterable[T] | None, handler: Callable[[T], Awaitable[R]], **options: Unpack[RunKeywords]
) -> BatchReport[T, R]: ...
@overload
def run_batch_sync(
    items: Iterable[T] | AsyncIterable[T] | None, handler: Callable[[T], R], **options: Unpack[RunKeywords]
) -> BatchReport[T, R]: ...
@overload
def run_batch_sync(
    items: Iterable[T] | AsyncIterable[T] | None,
    handler: Callable[[T, S], Awaitable[R]],
    *,
    setup: Callable[[], AbstractAsyncContextManager[S]],
    **options: Unpack[RunKeywordsWithoutSetup],
) -> BatchReport[T, R]: ...
@overload
def run_batch_sync(
    items: Iterable[T] | AsyncIterable[T] | None,
    handler: Callable[[T, S], R],
    *,
    setup: Callable[[], AbstractAsyncContextManager[S]],
    **options: Unpack[RunKeywordsWithoutSetup],
) -> BatchReport[T, R]: ...


def run_batch_sync(items: Any, handler: Callable[..., Any], **options: Unpack[RunKeywords]) -> BatchReport[Any, Any]:
    """Run ``run_batch`` to its end, without ``await``, and return its report; options and errors are the same.

    In a thread with a running event loop, such as a notebook's, the batch runs in a thread of its own, with a copy of the
    context variables, and the calling loop stands still meanwhile; there ``await run_batch(...)`` is better. Ctrl-C cancels
    the run, as it cancels ``run_batch``, and raises KeyboardInterrupt after the finished items are saved and the others
    released.

    The methods of the report are asynchronous: ``asyncio.run(report.results())``.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run_batch(items, handler, **options))
    return _run_in_thread(lambda: run_batch(items, handler, **options))


@overload
def stream_batch(
    items: Iterable[T] | AsyncIterable[T] | None, handler: Callable[[T], Awaitable[R]], **options: Unpack[RunKeywords]
) -> AbstractAsyncContextManager[AsyncIterator[ItemOutcome[T, R]]]: ...
@overload
def stream_batch(
    items: Iterable[T] | AsyncIterable[T] | None, handler: Callable[[T], R], **options: Unpack[RunKeywords]
) -> AbstractAsyncContextManager[AsyncIterator[ItemOutcome[T, R]]]: ...
@overload
def stream_batch(
    items: Iterable[T] | AsyncIterable[T] | None,
    handler: Callable[[T, S], Awaitable[R]],
    *,
    setup: Callable[[], AbstractAsyncContextManager[S]],
    **options: Unpack[RunKeywordsWithoutSetup],
) -> AbstractAsyncContextManager[AsyncIterator[ItemOutcome[T, R]]]: ...
@overload
def stream_batch(
    items: Iterable[T] | AsyncIterable[T] | None,
    handler: Callable[[T, S], R],
    *,
    setup: Callable[[], AbstractAsyncContextManager[S]],
    **options: Unpack[RunKeywordsWithoutSetup],
) -> AbstractAsyncContextManager[AsyncIterator[ItemOutcome[T, R]]]: ...


def stream_batch(
    items: Any, handler: Callable[..., Any], **options: Unpack[RunKeywords]
) -> AbstractAsyncContextManager[AsyncIterator[ItemOutcome[Any, Any]]]:
    """Run like ``run_batch`` and yield each item's outcome after it is committed::

        async with stream_batch(urls, fetch) as outcomes:
            async for outcome in outcomes:
                print(outcome.id, outcome.result)

    Each outcome is yielded once: first the outcomes of all items of the batch that were already done, in input order, then
    the others as they are committed. With ``leftovers="leave"`` only outcomes of the given items are yielded, and those of
    items that another process or an earlier run completed come last, in input order. Leaving the block early releases the
    unfinished items. Few items run beyond the consumer: at first two per slot; more, up to 5,000, only for a consumer that
    keeps up (see ``ConsumerWindow``). ``processes`` is refused. Raises the same errors as ``run_batch``.
    """
    run_options = RunOptions.of("stream_batch", options)
    if run_options.processes > 1:
        raise ConfigurationError(
            "stream_batch() runs its handlers in this process, because outcomes do not pass from process to process; leave out "
            "processes=, or use run_batch() and read report.outcomes()"
        )
    return _stream(items, handler, run_options)


@asynccontextmanager
async def _stream(
    items: Any, handler: Callable[..., Any], options: RunOptions
) -> AsyncGenerator[AsyncIterator[ItemOutcome[Any, Any]], None]:
    run: BatchRun[Any, Any] = BatchRun(items, handler, options, has_consumer=True)
    if items is None:
        await check_batch(options.runner.db, run.handler.batch)
    async with run, aclosing(run.stream()) as outcomes:
        yield outcomes


def _run_in_thread(call: Callable[[], Coroutine[Any, Any, V]]) -> V:
    """Run the coroutine of *call* in an event loop in a new thread, and return its value or raise its exception."""
    end: Future[V] = Future()
    cancel: Future[Callable[[], object]] = Future()

    async def main() -> V:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "asyncio.run() makes a task"
        cancel.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        return await call()

    def run() -> None:
        try:
            end.set_result(asyncio.run(main()))
        except BaseException as error:  # noqa: BLE001 - the calling thread raises it
            end.set_exception(error)

    thread = threading.Thread(target=copy_context().run, args=(run,), name="asyncrunner run_batch_sync")
    thread.start()
    try:
        with _interrupting_waits():
            return end.result()
    except KeyboardInterrupt:
        if not end.done():
            cancel.result()()
        raise
    finally:
        thread.join()


@contextmanager
def _interrupting_waits() -> Generator[None, None, None]:
    """Let Ctrl-C interrupt a wait of this thread: the handler of ``asyncio.run()`` only cancels a task of the loop that waits."""
    handler = signal.getsignal(signal.SIGINT)
    is_of_asyncio = isinstance(getattr(getattr(handler, "func", handler), "__self__", None), asyncio.Runner)
    if not is_of_asyncio or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
