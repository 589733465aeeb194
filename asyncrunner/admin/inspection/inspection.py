"""The part of ``Control`` that reads: status, items, causes of failure, workers, problems and exports."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta

from asyncrunner.admin import arguments, health, status
from asyncrunner.admin.arguments import Statuses, status_of, statuses_of
from asyncrunner.admin.changes.items import item_not_found
from asyncrunner.admin.inspection import causes, item_details
from asyncrunner.admin.inspection.history import history_of, span_of
from asyncrunner.admin.opened_file import OpenedFile
from asyncrunner.admin.read_models import FailureCauses, FileStatus, History, ItemDetails, ItemPage, Problem, Stuck, WorkerStatus
from asyncrunner.domain.item import Status
from asyncrunner.store.admin_protocol import Filter
from asyncrunner.store.snapshot import ItemRecord
from asyncrunner.text.validation import checked_choice, checked_count, checked_pattern, checked_seconds, checked_text


class Inspection(OpenedFile):
    """The methods of ``Control`` that only read the file."""

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

    async def history(
        self, batch: str | None = None, *, minutes: int | None = None, since: datetime | timedelta | None = None,
        until: datetime | timedelta | None = None, step: str = "1m",
    ) -> History:  # fmt: skip
        """Return how many items a batch completed, failed and retried in each minute or hour, and for how long they ran.

        ``minutes``: the last minutes up to ``until`` (60), or ``since``: a datetime with a time zone, or an age.
        ``until``: the same, the running minute by default. ``step``: ``"1m"`` or ``"1h"``, an hour of UTC; the first and the last
        step are whole. A step in which no attempt ended has a point with zeros. The file keeps 14 days, so a call returns at
        most 20,160 minutes. An attempt counts in the minute in which its outcome is stored, exactly, also after a crash.
        """
        span = span_of(minutes, since, until, step, await self._store.now())
        row = await self._batch(batch)
        rows = await self._store.history(row.batch_id, since=span.since, until=span.until, step=span.step)
        return history_of(row.name, rows, span)

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
