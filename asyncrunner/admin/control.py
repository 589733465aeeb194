"""Operator API: inspect, pause, retry, export and purge batches, with or without running workers."""

from __future__ import annotations

import os
import platform
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from asyncrunner.admin import arguments, causes, changes, health, item_details, status
from asyncrunner.admin.arguments import Statuses, finished_statuses_of, rerun_statuses_of, status_of, statuses_of
from asyncrunner.admin.changes import change_items, item_not_found, select_ids
from asyncrunner.admin.read_models import (
    Changed,
    FailureCauses,
    FileStatus,
    ItemDetails,
    ItemPage,
    Problem,
    Purged,
    Stuck,
    WorkerStatus,
)
from asyncrunner.backends import open_admin, open_maintenance
from asyncrunner.domain.clock import Clock, SystemClock
from asyncrunner.domain.item import Status
from asyncrunner.domain.options import DEFAULT_DB
from asyncrunner.errors import ConfigurationError, StoreClosed
from asyncrunner.store.admin_protocol import AdminStore, Change, Filter, Selection
from asyncrunner.store.snapshot import BatchRow, ItemRecord
from asyncrunner.text.timestamps import to_text
from asyncrunner.text.validation import (
    checked_choice,
    checked_count,
    checked_ids,
    checked_past,
    checked_path,
    checked_pattern,
    checked_seconds,
    checked_text,
)

if TYPE_CHECKING:
    from types import TracebackType

_MAX_CONCURRENCY: Final = 100_000


class Control:
    """An operator's view of a file: inspects its batches, items and workers, and changes them.

    ``async with Control("jobs.db") as control:``. The file must exist; ``Control`` never creates one. It works with or
    without running workers: it only reads and writes the file, and workers apply a change within a second. ``batch``
    may be omitted if the file has one batch; where a method mentions "all batches", omitting it means all of them.

    Reads take no lock that blocks a writer. A method that changes many items commits 2,000 of them per transaction, and
    workers commit in between: after a cancellation or a crash midway, the committed transactions remain, and a second
    call does the rest.

    Every method raises BatchNotFound for an unknown batch name (the message suggests a similar one), ConfigurationError
    for an invalid argument, and StoreUnavailable if another program locks the file for 30 seconds. The failed
    transaction changed nothing; earlier transactions of the same call remain.
    """

    def __init__(
        self, db: str | os.PathLike[str] = DEFAULT_DB, *, clock: Clock | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:  # fmt: skip
        """Check the arguments; ``open()`` opens the file.

        ``progress`` is called with the number of items changed so far, after each transaction of a method that changes
        many.
        """
        checked_path("db", db)
        self.db = db
        self._location = os.fspath(db)
        self._clock: Clock = clock or SystemClock()
        self._admin_store = open_admin(self._location, self._clock)
        self._is_open = False
        self._progress = progress

    def __repr__(self) -> str:
        return f"<Control of {os.fspath(self.db)}>"

    async def __aenter__(self) -> Control:
        await self.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def open(self) -> None:
        """Open the file for reading.

        Raises StoreNotFound (without creating the file), NotAStore, SchemaTooNew, StoreError.
        """
        await self._admin_store.open()
        self._is_open = True

    async def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._is_open = False
        await self._admin_store.close()

    @property
    def _store(self) -> AdminStore:
        if not self._is_open:
            raise StoreClosed(f"{self._location} is not open; use `async with control:` or `await control.open()` first")
        return self._admin_store

    async def _batches(self, name: str | None) -> Sequence[BatchRow]:
        """Return all batches, or only the one with that *name*. Raises BatchNotFound."""
        if name is not None:
            checked_text("batch", name)
        return arguments.batches_named(await self._store.batches(), name, self._location)

    async def _batch(self, name: str | None) -> BatchRow:
        """Return the batch with that *name*, or the only one.

        Raises BatchNotFound, ConfigurationError if there are several.
        """
        return arguments.only_batch(await self._batches(name), self._location)

    # --- inspecting --------------------------------------------------------------------------------------------------

    async def batches(self) -> list[str]:
        """Return the names of the file's batches, in the order of their creation."""
        return [row.name for row in await self._batches(None)]

    async def status(self, batch: str | None = None, *, stuck_after: float = 300.0) -> FileStatus:
        """Return the state of all batches or of one, of the workers, and the newest failures of items that failed.

        ``stuck_after``: seconds in processing after which an item is reported as stuck.
        """
        stuck_after = checked_seconds("stuck_after", stuck_after)
        batch_ids = None if batch is None else [row.batch_id for row in await self._batches(batch)]
        return status.file_status(await self._store.snapshot(batch_ids, stuck_after=stuck_after), self._location)

    async def items(
        self, batch: str | None = None, *, status: Status | str | None = None, error: str | None = None,
        older_than: float | None = None, limit: int = 100, after: str | None = None,
    ) -> ItemPage:  # fmt: skip
        """Return a page of items in input order, without payloads and results.

        ``error``: a part of the error's text, in which ``*`` matches anything, or a fingerprint; without a ``status``
        only failed items are searched. ``older_than``: seconds since a finished item ended, a processing item started,
        or a pending item was added; if the clock was set back by more than an hour while items were added, some of them
        may be missed. ``after``: start behind the item with this id, see ``ItemPage.after``. Raises ItemNotFound if
        there is no item with the id ``after``, or, on a first page, if no item's error matches ``error``.
        """
        limit = checked_count("limit", limit)
        if after is not None:
            checked_text("after", after)
        if error is not None:
            checked_pattern("error", error)
        if older_than is not None:
            checked_seconds("older_than", older_than)
        criteria = Filter(
            status_of(status) if status is not None else Status.FAILED if error is not None else None,
            error,
            None if older_than is None else await self._store.now() - older_than,
        )
        row = await self._batch(batch)
        items = await self._store.find(row.batch_id, criteria, after=after, limit=limit + 1)
        if items is None:
            raise await item_not_found(self._store, row, [after or ""])
        if not items and error is not None and after is None:
            raise item_details.no_such_error(row.name, error, criteria.status)
        page = list(items[:limit])
        return ItemPage(row.name, page, page[-1].id if len(items) > limit else None)

    async def show(self, id: str, batch: str | None = None) -> ItemDetails:  # noqa: A002 - the name of the column and the option
        """Return all details of an item: payload, result, timeline, newest 100 failed attempts with tracebacks.

        Without a ``batch``, all batches are searched. Raises ItemNotFound (the message suggests similar ids), and
        ConfigurationError if several batches have an item with this id.
        """
        checked_text("id", id)
        if batch is None:
            batch = item_details.batch_of(id, await self._store.batches_with(id), len(await self._batches(None)))
        row = await self._batch(batch)
        item = await self._store.item(row.batch_id, id)
        if item is None:
            raise await item_not_found(self._store, row, [id])
        return item_details.details_of(item)

    async def failures(self, batch: str | None = None, *, limit: int = 20) -> FailureCauses:
        """Return the causes of failure in all batches or in one, those with the most failed items first.

        ``limit``: the number of causes per batch. If a batch has more, causes with the same type of error and the same place
        are joined, see ``FailureCause.causes``; the list counts the causes and the items that it still omits. Causes of
        attempts that were or will be retried are included, with 0 items.
        """
        limit = checked_count("limit", limit)
        rows, most = await self._batches(batch), max(limit, causes.MAX_JOINED)
        return causes.failure_causes([(row.name, await self._store.failure_causes(row.batch_id, most)) for row in rows], limit)

    async def stuck(self, batch: str | None = None, *, longer_than: float = 300.0, limit: int = 100) -> list[Stuck]:
        """Return the items of all batches or of one that have been processing for more than ``longer_than`` seconds.

        The items that have been processing for the longest time are first.
        """
        longer_than, limit = checked_seconds("longer_than", longer_than), checked_count("limit", limit)
        batch_ids = [row.batch_id for row in await self._batches(batch)]
        rows = await self._store.stuck(batch_ids, longer_than=longer_than, limit=limit)
        items = status.stuck_items(rows, await self._store.workers(), await self._store.now())
        return sorted(items, key=lambda item: -item.seconds)[:limit]

    async def workers(self, batch: str | None = None) -> list[WorkerStatus]:
        """Return the workers that have not deregistered; with a ``batch``, only those that hold items of it."""
        batch_id = None if batch is None else (await self._batch(batch)).batch_id
        return status.worker_statuses(await self._store.workers(batch_id), await self._store.now())

    async def check(
        self, batch: str | None = None, *, max_failed: int | None = 0, max_pending_age: float | None = None,
        max_processing_age: float | None = None, probe: str | None = None,
    ) -> list[Problem]:  # fmt: skip
        """Return the problems of all batches or of one that need an operator; the list is empty if there are none.

        ``max_failed``: the accepted number of failed items per batch; None: any. ``max_pending_age``,
        ``max_processing_age``: the accepted seconds; None: any. ``probe``: ``"liveness"`` returns only what a restart of the
        workers of this host solves, ``"readiness"`` only why an item that is added now would not start.
        """
        limits = arguments.limits_of(max_failed, max_pending_age, max_processing_age)
        batch_ids = [row.batch_id for row in await self._batches(batch)]
        snapshot = await self._store.snapshot(batch_ids, stuck_after=limits.max_processing_age)
        if probe is None:
            return list(health.problems(snapshot, limits))
        if checked_choice("probe", probe, ("liveness", "readiness")) == "readiness":
            return list(health.readiness_problems(snapshot))
        return list(health.liveness_problems(snapshot, platform.node() or "unknown", batch))

    async def export(self, batch: str | None = None, *, status: Statuses | None = None) -> AsyncIterator[ItemRecord]:
        """Yield all items of a batch, or the items in the given states, in input order, with payload and result.

        Items are read in pages of 1,000, each in a short transaction, so that an export never delays workers, and memory
        does not grow with the number of items. Items that change during the export are returned as they are when their
        page is read.
        """
        async for page in self.export_pages(batch, status=status):
            for record in page:
                yield record

    async def export_pages(
        self, batch: str | None = None, *, status: Statuses | None = None
    ) -> AsyncIterator[Sequence[ItemRecord]]:
        """Yield the items of ``export()`` in pages of up to 1,000 items."""
        statuses = None if status is None else statuses_of(status)
        row = await self._batch(batch)
        cursor = None
        while True:
            page = await self._store.export_page(row.batch_id, statuses, cursor)
            if page.rows:
                yield page.rows
            cursor = page.next
            if cursor is None:
                return

    # --- changing ----------------------------------------------------------------------------------------------------

    async def pause(self, batch: str | None = None) -> bool:
        """Pause the batch: no process starts more of its items. Running handlers finish. Return False if it was paused."""
        row = await self._batch(batch)
        return await self._store.set_controls(row.batch_id, paused=True)

    async def resume(self, batch: str | None = None) -> bool:
        """End a pause, a stop by a guardrail and a cool-down of the batch; return False if the batch had none of them."""
        row = await self._batch(batch)
        return await self._store.set_controls(row.batch_id, paused=False)

    async def set_concurrency(self, concurrency: int | None, batch: str | None = None) -> None:
        """Set how many handlers of the batch each worker runs concurrently, instead of its program's setting.

        ``None`` restores the program's setting. The value is stored in the file: it also applies to workers started
        later, until it is set again.
        """
        if concurrency is not None:
            checked_count("concurrency", concurrency, at_most=_MAX_CONCURRENCY)
        row = await self._batch(batch)
        await self._store.set_controls(row.batch_id, concurrency=concurrency)

    async def cancel(self, ids: Iterable[str] | None = None, batch: str | None = None, *, pending: bool = False) -> Changed:
        """Cancel the pending and processing items with the given ids, or, with ``pending``, every pending item.

        A running handler is cancelled within a second and its outcome is discarded. Finished items count as unchanged.
        Raises ItemNotFound if an id does not exist; then nothing is changed.
        """
        if (ids is not None) == pending:
            raise ConfigurationError("give either ids or pending=True (every pending item)")
        row = await self._batch(batch)
        if ids is None:
            items = await self._store.select(row.batch_id, Selection((Status.PENDING,)))
        else:
            items = await select_ids(self._store, row, ids)
        return await change_items(self._store, row, items, Change.CANCEL, self._progress)

    async def retry(
        self, ids: Iterable[str] | None = None, batch: str | None = None, *, failed: bool = False, error: str | None = None,
        everything: bool = False,
    ) -> Changed:  # fmt: skip
        """Reset items to pending with all their attempts, due immediately. Payload and checkpoint are kept.

        Give exactly one selection: ``ids``; ``failed``, every failed item; ``error``, every failed item whose error
        contains this text (``*`` matches anything) or whose error has this fingerprint; ``everything``, every failed or
        cancelled item. Pending items count as unchanged. Raises ConfigurationError for an id of a processing or
        completed item, and ItemNotFound if an id does not exist or no item has such an error; then nothing is changed.
        """
        if [ids is not None, failed, error is not None, everything].count(True) != 1:
            raise ConfigurationError("give exactly one of ids, failed=True, error=..., everything=True")
        statuses = (Status.FAILED, Status.CANCELLED) if everything else (Status.FAILED,)
        return await changes.retry(self._store, await self._batch(batch), ids, statuses, error, self._progress)

    async def rerun(
        self, ids: Iterable[str] | None = None, batch: str | None = None, *, status: Statuses | None = None,
        error: str | None = None, everything: bool = False, dry_run: bool = False,
    ) -> Changed:  # fmt: skip
        """Run items that are done once more, with the payload that they have, all their attempts and no checkpoint.

        An item keeps its result until the new one is committed, also if the new attempt fails. An item that is running
        runs once more after its attempt, whose outcome is dropped. Pending items count as unchanged. ``retry`` is for
        failed and cancelled items, and keeps their checkpoints.

        Give exactly one selection: ``ids``; ``status``, one or several of completed, failed, cancelled and processing;
        ``error``, as in ``retry``; ``everything``, every item that is not pending. With ``dry_run`` the items are only
        counted. Raises ItemNotFound if an id does not exist or no item has such an error; then nothing is changed.
        """
        if [ids is not None, status is not None, error is not None, everything].count(True) != 1:
            raise ConfigurationError("give exactly one of ids, status=..., error=..., everything=True")
        statuses, row = rerun_statuses_of(status), await self._batch(batch)
        return await changes.rerun(self._store, row, ids, statuses, error, self._progress, dry_run=dry_run)

    async def recover(self, worker_ids: Iterable[str] = (), batch: str | None = None) -> dict[str, int]:
        """Recover the items of dead workers now, as the next worker to start would.

        Returns the number of items by worker id. Orphaned items, which no registered worker holds, are counted under
        ``""``. With a ``batch``, only workers that
        hold items of it are recovered, including their items of other batches, and only the orphaned items of this
        batch. If ``worker_ids`` are given, only these workers are recovered.

        A worker is dead when its lock is free. A worker whose lock file is missing is dead if its heartbeat does not
        change for 5 seconds; this method waits that long. A live worker is recovered only if its id is given, for
        example when its event loop hangs: once its loop runs again, its handlers are cancelled and their outcomes
        discarded. Raises ConfigurationError for an unknown worker id.
        """
        named = frozenset(checked_ids("worker_ids", worker_ids))
        row = None if batch is None else await self._batch(batch)
        return await changes.recover_workers(self._store, self._clock, named, row)

    # --- purging and copying -----------------------------------------------------------------------------------------

    async def purge(
        self, before: datetime | timedelta, batch: str | None = None, *, status: Statuses = (Status.COMPLETED,),
        dry_run: bool = False,
    ) -> Purged:  # fmt: skip
        """Delete items of a batch that ended before a time, or longer ago than an age, with their failure records.

        ``status``: one or several of completed, failed and cancelled; other states raise ConfigurationError. With
        ``dry_run`` the items are only counted. The file does not shrink: new items reuse the space; ``vacuum()``
        returns it to the disk.
        """
        statuses = finished_statuses_of(status)
        moment = checked_past("before", before, await self._store.now())
        row = await self._batch(batch)
        items = await self._store.select(row.batch_id, Selection(statuses, before=moment))
        if not dry_run:
            await change_items(self._store, row, items, Change.PURGE, self._progress)
        free = await open_maintenance(self._location, self._clock).free_bytes()
        return Purged(row.name, to_text(moment), dict(items.counts), dry_run, free)

    async def vacuum(self) -> int:
        """Rewrite the file without the free space that deleted items left, and return its new size in bytes.

        Meanwhile no process can write the file; the rewrite takes about as long as a copy of the file. Raises
        ConfigurationError if a worker is alive, or cannot be proven dead. Needs free disk space of up to twice the size
        of the file. The rewrite cannot be cancelled after it has started; after a crash the file is unchanged.
        """
        maintenance = open_maintenance(self._location, self._clock)
        await self.check_unused()
        return await maintenance.vacuum()

    async def check_unused(self) -> None:
        """Raise ConfigurationError if ``vacuum()`` would block a worker that is alive or cannot be proven dead."""
        reason = health.why_in_use(await self.workers())
        if reason is not None:
            raise ConfigurationError(f"{reason}. Without a vacuum, new items reuse the space of deleted items")

    async def backup(self, target: str | os.PathLike[str], batch: str | None = None) -> int:
        """Copy the current state of the file to *target*, a new file, and return the size of the copy in bytes.

        With a ``batch``, the copy contains only this batch. Workers continue during the copy; their later writes are
        not in it. The copy can be used like any other file: it has no workers, and the items that workers hold are
        pending in it, with the attempt refunded. *target* appears only when the copy is complete, also after a crash.
        Cancelling stops the copy and removes its temporary file. Raises ConfigurationError if *target* exists or cannot
        be written, and StoreError, for example if the disk is full.
        """
        maintenance = open_maintenance(self._location, self._clock)
        checked_path("target", target)
        batch_id = None if batch is None else (await self._batch(batch)).batch_id
        return await maintenance.backup(target, batch_id=batch_id)
