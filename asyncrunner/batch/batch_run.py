"""Run one batch to its end, for run_batch and stream_batch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import anyio

from asyncrunner.batch.call_counts import CallCounts, count_batch, count_call, other_version_note, resuming_note
from asyncrunner.batch.ctrl_c import handle_ctrl_c
from asyncrunner.batch.processes.children import children_of
from asyncrunner.batch.processes.importing import refuse_while_importing
from asyncrunner.batch.processes.settings import parent_options
from asyncrunner.batch.progress import Progress
from asyncrunner.batch.progress_display import as_progress
from asyncrunner.batch.report import GROUPS, BatchReport, ItemOutcome, Outcomes, StoredItems, with_items
from asyncrunner.batch.source.given_claims import GivenClaims
from asyncrunner.batch.source.open_before import OpenBefore
from asyncrunner.batch.source.reader import SourceReader
from asyncrunner.batch.stream import OutcomeStream
from asyncrunner.domain.item import Counts
from asyncrunner.domain.options import RunOptions
from asyncrunner.domain.outcome import Completed, PutOff, Retrying
from asyncrunner.errors import ConfigurationError, ItemError, SourceCancelled, StoreClosed
from asyncrunner.runner.internals import RunnerInternals
from asyncrunner.runner.runner import runner_of
from asyncrunner.store.items import Numbers, OpenItems
from asyncrunner.store.retrying import RetryingStore, every
from asyncrunner.store.workers import Stop
from asyncrunner.submission.handler import Handler
from asyncrunner.submission.store_access import is_within_batch

if TYPE_CHECKING:
    from types import TracebackType

    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import NewItem
    from asyncrunner.store.batches import Added
    from asyncrunner.store.items import FailureGroup
    from asyncrunner.store.protocols import ReadStore, Store
    from asyncrunner.worker.batch_queue import BatchQueue

log = logging.getLogger("asyncrunner")

T = TypeVar("T")
R = TypeVar("R")
_RESYNC_SECONDS: Final = 2.0


class BatchRun(Generic[T, R]):
    """A run of one batch by ``run_batch`` or ``stream_batch``: a runner with one handler, and a source of items.

    The run ends when the batch is done or stopped. *has_consumer*: ``stream()`` is called, and few items run before it is.
    """

    def __init__(
        self,
        items: Iterable[T] | AsyncIterable[T] | None,
        handler: Callable[..., Any],
        options: RunOptions,
        *,
        clock: Clock | None = None,
        store: Store | None = None,
        leave_option: str = "leftovers='leave'",
        has_consumer: bool = False,
    ) -> None:
        refuse_while_importing()
        options.check_items(items, leave_option)
        self._options = options
        self._only_given = options.leftovers == "leave"
        self._has_consumer = has_consumer
        self._stream: OutcomeStream | None = None
        self._leave_option = leave_option  # as the caller writes it
        self._internals = RunnerInternals(options.runner, role="run", on_stop=self._on_stop, clock=clock, store=store)
        self.runner = runner_of(self._internals)
        self.handler: Handler[T, Any] = self._internals.register(handler, options.handler)
        self._children = children_of(self._internals, handler, self.handler.batch, options, leave_option)
        self._queue: BatchQueue | None = None
        self._source: SourceReader | None = None
        if items is not None:
            self._source = SourceReader(items, self.handler.encoder, self._add)
        self._source_task: asyncio.Task[None] | None = None
        self._source_error: BaseException | None = None
        self._given_claims: GivenClaims | None = None  # with leftovers="leave"
        self._is_source_read = items is None
        self._stopped: str | None = None  # the reason of the stop
        self._outcomes: Outcomes[T, Any] = Outcomes(self.handler.items, self.handler.results)
        self._counts_before: Counts | None = None
        self._open_before = OpenBefore()
        self._next_resync = 0.0
        self._progress_task: asyncio.Task[None] | None = None
        self._stop_task: asyncio.Task[None] | None = None
        self._stop_handling_ctrl_c: Callable[[], None] = lambda: None
        self._began = 0.0
        self._purged = 0
        self.stop_requested = False  # whether another process requested a stop
        self.progress: Progress | None = as_progress(options.progress)

    # --- start and stop ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> BatchRun[T, R]:
        batch, location = self.handler.batch, self._internals.store.location
        if is_within_batch(location, batch):
            raise ConfigurationError(
                f"a handler of {batch!r} cannot run the batch {batch!r} of {location}: the run would wait for the item that "
                "waits for the run. Submit the items with a Client, or give another batch= or db="
            )
        self._began = self._internals.clock.monotonic()
        await self._internals.start(options=None if self._children is None else parent_options(self._options))
        self._stop_handling_ctrl_c = handle_ctrl_c(self._internals.interrupt)
        self._queue = self._internals.queue(self.handler)
        self._queue.only_given = self._only_given  # before begin_claims(), so that no turn claims another item
        if self._has_consumer:
            self._stream = OutcomeStream(self._internals, self.handler, self._queue)  # also before: it limits the claims
        try:
            await self._begin()
        except StoreClosed:
            # A stop, for example by a signal, has closed the file; finish() then ends the run as after any stop.
            if self._stopped is None:
                await self._end_start()
                self._internals.raise_failure()
                raise
        except BaseException:
            await self._end_start()
            raise
        return self

    async def _end_start(self) -> None:
        await self.runner.stop(drain=False)
        self._stop_handling_ctrl_c()

    async def _begin(self) -> None:
        store, batch_id = self._internals.retrying_store, self.queue.batch_id
        if self._only_given and self._source is not None:
            self._given_claims = GivenClaims(store, batch_id, self._source.given, self._reopen_below, self._children)
        other_version = await self._internals.wait_for_versions()
        self._counts_before = await store.counts(batch_id)
        reopened = 0 if self._only_given else await store.reopen_failed(batch_id, max_attempts=self._reopen_below)
        if self._source is not None and self._counts_before.total:
            await self._open_before.begin(store, batch_id)
        if self.progress is not None:
            expected = None if self._source is None else self._source.expected
            rate = await store.recent_rate(batch_id)
            self.progress.begin(
                self.handler.batch,
                Counts() if self._only_given else self._counts_before,
                reopened,
                expected,
                self._internals.events,
                rate=rate,
                only_given=self._only_given,
            )
            if self._source is None:
                self.progress.source_ended()
            if other_version:  # the engine logs it
                self.progress.show_note(other_version_note(other_version, self._options.handler.version))
            seconds = _RESYNC_SECONDS if self._children is None else _RESYNC_SECONDS / 4  # no event counts the items of children
            resyncing = every(seconds, self._resync, clock=self._internals.clock)
            self._progress_task = asyncio.create_task(resyncing, name="asyncrunner progress")
        self._stop_task = asyncio.create_task(self._stop_with_batch(), name="asyncrunner stop")
        if self._source is not None and self._stopped is None:
            self._source_task = asyncio.create_task(self._read(self._source), name="asyncrunner source")
        self._internals.begin_claims()
        if self._children is not None:
            given = self._source.given if self._only_given and self._source is not None else None
            wake, is_read = partial(self._internals.wake, self.handler), self._is_source_read
            self._children.begin(self.queue, wake, given=given, is_input_read=is_read, progress=self.progress)

    @property
    def _reopen_below(self) -> int | None:
        """The number of attempts below which a failed item is retried; None: every failed item is."""
        return None if self._options.retry_failed else self._options.handler.max_attempts

    async def _announce_leftovers(self, source: SourceReader) -> None:
        """Log and show which items the run resumes: before a source of unknown length is read, and after another source is."""
        is_after = source.expected is not None
        if self._only_given or is_after != self._is_source_read:
            return
        before, given = await self._open_before.items(), source.given.numbers if is_after else None
        note = resuming_note(before.unfinished, given, self._leave_option)
        if note is not None:
            log.info("%s: %s", self.handler.batch, note, extra={"batch": self.handler.batch})
        if note is not None and self.progress is not None:
            self.progress.show_note(note)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            await self._cancel_tasks()
        finally:
            try:
                await self.runner.stop(drain=kind is None)
            finally:
                self._stop_handling_ctrl_c()
                if self.progress is not None:
                    self.progress.end()

    async def _resync(self) -> None:
        """Set the progress to the counts of the store, which include the items that other processes settle."""
        assert self.progress is not None
        clock, store, batch_id = self._internals.clock, self._internals.store, self.queue.batch_id
        began = clock.monotonic()
        if began < self._next_resync:
            return
        with suppress(StoreClosed):  # the run has just ended
            if self._only_given and self._source is not None:
                given, open_now = self._source.given.numbers, await store.open_items(batch_id)
                self.progress.resync(count_call(given, self._source.undone, await self._open_before.items(), open_now).counts)
            else:
                self.progress.resync(await store.counts(batch_id))
            # With leftovers="leave", a million unfinished items take 0.3 s of CPU time to count.
            self._next_resync = began + 20 * (clock.monotonic() - began)

    async def _cancel_tasks(self) -> None:
        self._open_before.cancel()
        tasks = {
            task for task in (self._source_task, self._progress_task, self._stop_task) if task is not None and not task.done()
        }
        for task in tasks:
            task.cancel()
        if tasks:
            with anyio.CancelScope(shield=True):
                await asyncio.wait(tasks)

    @property
    def queue(self) -> BatchQueue:
        assert self._queue is not None, "the run has not begun"
        return self._queue

    def request_stop(self, reason: str = "interrupted") -> None:
        """Stop claiming and let the handlers end; then ``finish()`` ends. The report shows the first *reason*."""
        self._stopped = self._stopped or reason
        if self._source_task is not None:
            self._source_task.cancel()
        self.runner.request_stop()

    def request_cancel(self) -> None:
        """Stop claiming and cancel the handlers; their items become pending again with the attempt refunded."""
        self.request_stop()
        self.runner.request_cancel()

    def _on_stop(self, how: Stop) -> None:
        log.warning("another process requested a stop of the run of %r", self.handler.batch, extra={"batch": self.handler.batch})
        self.stop_requested = True
        self.request_stop("another process requested a stop")
        if how is Stop.CANCEL:
            self.runner.request_cancel()

    # --- source and end of the batch -----------------------------------------------------------------------------

    async def _read(self, source: SourceReader) -> None:
        try:
            await self._announce_leftovers(source)
            await source.run(self.queue)
            self._is_source_read = True
            await self._announce_leftovers(source)
        except Exception as error:  # noqa: BLE001 - finish() or stream() raises it at the end of the run
            self._source_error = error
        if self._children is not None:
            self._children.record_input_read()
        if isinstance(self._source_error, ItemError):
            # The caller must correct the item: stop now rather than after hours. The next run continues with the stored items.
            self.request_stop("an item could not be accepted")
        if self.progress is not None:
            self.progress.source_ended()
        self._internals.wake(self.handler)

    async def _add(self, chunk: list[NewItem]) -> Added:
        added = await self._internals.submitter.add(self.queue.batch_id, chunk, on_change=self._options.handler.on_change)
        if self._given_claims is not None:
            await self._give(added, self._given_claims)
        return added

    async def _give(self, added: Added, claims: GivenClaims) -> None:
        """Permit the worker to claim the items of a chunk; retry those of them that failed before this call."""
        fresh, reopened = await claims.permit(added)
        if self.progress is not None:
            call = count_call(fresh, Numbers.of(added.undone), await self._open_before.items())
            self.progress.add_given(call.counts_before, reopened)
        self._internals.wake(self.handler)

    async def _stop_with_batch(self) -> None:
        await self.queue.answer.stopped.wait()
        self.request_stop(self.queue.answer.stop_reason or "the batch was stopped")

    async def _wait_until_done(self) -> None:
        if self._source_task is not None:
            await asyncio.wait({self._source_task})
        idle = self.queue.answer.idle if self._children is None else self._children.idle
        await idle.wait()
        while self._given_claims is not None and await self._given_claims.permit_reopened():
            self._internals.wake(self.handler)  # clears `idle`
            await idle.wait()

    async def _wait(self) -> None:
        """Wait until every item of the batch is done or the engine has ended.

        Raises the exception that ended the engine.
        """
        engine = self._internals.engine_task
        assert engine is not None, "the run has not begun"
        done = asyncio.ensure_future(self._wait_until_done())
        try:
            await asyncio.wait({done, engine}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            done.cancel()
        self._internals.raise_failure()
        task = self._source_task
        if self._stopped is None and task is not None and task.cancelled():
            # Without this error the report would look complete with a part of the input unread.
            self._source_error = SourceCancelled("the task that reads the source of the items was cancelled, but not by the run")

    async def finish(self) -> BatchReport[T, R]:
        """Wait for the end of the run and return the report.

        Raises the engine's failure or the exception of the source.
        """
        await self._wait()
        if self._stopped is None and self._source_error is None:
            if self._children is not None:
                await self._children.finish()
            self._purged = await self._internals.purge_oldest(lambda: self._stopped is None)
            report = await self._report_while_open()
            await self.runner.stop()
            self._internals.raise_lasting_failure()  # for example, the disk failed during the stop
        else:
            await self.runner.stop()
            if self._source_error is not None:
                raise self._source_error
            report = await self._report_when_closed()
        return report

    # --- the report ----------------------------------------------------------------------------------------------

    async def _report_while_open(self) -> BatchReport[T, R]:
        store, batch_id = self._internals.retrying_store, self.queue.batch_id
        counts = await store.counts(batch_id)
        call = await self._count_call(store, counts)
        causes: Sequence[FailureGroup] = ()
        if call.failed:
            seqs = None if call.failed == counts.failed else list(call.failures)
            causes = await store.failure_causes(batch_id, GROUPS, seqs=seqs)
        return self._report(counts, call, causes, await store.reader())

    async def _count_call(self, store: RetryingStore, counts: Counts) -> CallCounts:
        if self._source is not None:
            now = OpenItems() if counts.completed == counts.total else await store.open_items(self.queue.batch_id)
            return count_call(self._source.given.numbers, self._source.undone, await self._open_before.items(), now)
        return count_batch(self._counts_before, counts, purged=self._purged, completed=self.queue.tally[Completed])

    async def _report_when_closed(self) -> BatchReport[T, R]:
        # The counts are final only now, because the runner released the unfinished items before it closed the file.
        await self._internals.retrying_store.open()
        try:
            return await self._report_while_open()
        finally:
            await self._internals.store.close()

    def _report(self, counts: Counts, call: CallCounts, causes: Sequence[FailureGroup], reader: ReadStore) -> BatchReport[T, R]:
        if self.progress is not None:
            self.progress.resync(call.counts if self._only_given else counts)
        report: BatchReport[T, R] = BatchReport(
            batch=self.handler.batch,
            db=self._internals.store.location,
            total=call.total,
            completed=call.completed,
            skipped=call.skipped,
            failed=call.failed,
            cancelled=call.cancelled,
            pending=call.pending,
            leftovers=call.leftovers,
            batch_counts=counts,
            attempts=self.queue.attempts,
            retried=self.queue.tally[Retrying],
            put_offs=self.queue.tally[PutOff],
            duplicates=0 if self._source is None else self._source.given.duplicates,
            duration=self._internals.clock.monotonic() - self._began,
            failures=causes,
            stopped=self._stopped,
        )
        given = None if self._source is None else self._source.given
        return with_items(report, StoredItems(self._is_source_read, given, reader, self.queue.batch_id, self._outcomes))

    # --- the stream ----------------------------------------------------------------------------------------------

    async def stream(self) -> AsyncGenerator[ItemOutcome[T, R], None]:
        """Yield the outcome of every item that is done, once each; with leftovers="leave", of every given item.

        Raises the engine's failure or the exception of the source.
        """
        assert self._stream is not None, "the run has begun, and has a consumer"
        given = self._source.given if self._only_given and self._source is not None else None
        async for row in self._stream.rows(given, self._wait):
            yield self._outcomes.of(row)
        if self._source_error is not None:
            raise self._source_error
