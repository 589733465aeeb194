"""The part of ``Control`` that reads: status, items, causes of failure, workers, problems and exports."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from asyncrunner.admin import arguments, health, status
from asyncrunner.admin.arguments import Statuses, status_of, statuses_of
from asyncrunner.admin.exports.fields import chosen_fields, value_of
from asyncrunner.admin.exports.pages import all_pages, selected_pages
from asyncrunner.admin.inspection import causes, item_details
from asyncrunner.admin.inspection.history import history_of, last_minutes, span_of
from asyncrunner.admin.inspection.named_items import item_not_found, select_ids
from asyncrunner.admin.opened_file import OnProgress, OpenedFile
from asyncrunner.admin.read_models import FailureCauses, FileStatus, History, ItemDetails, ItemPage, Problem, Stuck, WorkerStatus
from asyncrunner.domain.item import Status
from asyncrunner.errors import ConfigurationError
from asyncrunner.store.admin_protocol import Filter, Selection
from asyncrunner.store.snapshot import BatchRow, ItemRecord
from asyncrunner.text.durations import Duration, checked_age
from asyncrunner.text.timestamps import from_text
from asyncrunner.text.validation import checked_choice, checked_count, checked_ids, checked_pattern, checked_text

_IDS_PER_READ: Final = 2000
_STUCK_SECONDS: Final = 300.0
_MAX_COUNTED: Final = 5_000  # attempts of each cause in a history


class Inspection(OpenedFile):
    """The methods of ``Control`` that only read the file."""

    async def batches(self) -> list[str]:
        """Return the names of the file's batches, in the order of their creation."""
        return [row.name for row in await self._batches(None)]

    async def status(self, batch: str | None = None, *, stuck_after: Duration = 300.0) -> FileStatus:
        """Return the state of all batches or of one, of the workers, and the newest failures of items that failed.

        ``stuck_after``: the time in processing after which an item is reported as stuck: seconds, a timedelta or a text ("15m").
        """
        seconds = checked_age("stuck_after", stuck_after)
        batch_ids = None if batch is None else [row.batch_id for row in await self._batches(batch)]
        return status.file_status(await self._store.snapshot(batch_ids, stuck_after=seconds), self._shown_location)

    async def status_and_problems(self, batch: str | None = None) -> tuple[FileStatus, list[Problem]]:
        """Return ``status()`` and ``check()`` of the same moment, for the time of one of them."""
        rows = await self._batches(batch)
        batch_ids = None if batch is None else [row.batch_id for row in rows]
        snapshot = await self._store.snapshot(batch_ids, stuck_after=_STUCK_SECONDS)
        problems = list(health.problems(snapshot, health.Limits(), self._shown_location))
        return status.file_status(snapshot, self._shown_location), problems

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
        older_than: Duration | None = None, contains: str | None = None, newest: bool = False, limit: int = 100,
        after: str | None = None,
    ) -> ItemPage:  # fmt: skip
        """Return a page of items in input order, or the newest first, with the start of each payload and without results.

        ``error``: a part of the error's text, in which ``*`` matches anything, or a fingerprint; without a ``status``
        only failed items are searched. ``older_than``: the time (seconds, a timedelta or a text such as "7d") since a
        finished item ended, a processing item started, or a pending item was added; if the clock was set back by more than
        an hour while items were added, some of them may be missed. ``after``: start behind the item with this id, see
        ``ItemPage.after``. Raises ItemNotFound if there is no item with the id ``after``, or, on a first page, if no item's
        error matches ``error``.

        ``contains``: only items with this text (``*`` matches anything, the case of ASCII letters is ignored) in their id,
        payload, result or error. The search looks at the newest 10,000 items that the other arguments select, and at fewer
        if their payloads and results have more than 100 MB; ``ItemPage.looked_at`` has the number, and ``after`` continues
        with older items. It does not read results of more than 2 MB, which are stored in pieces.
        """
        limit = checked_count("limit", limit)
        if after is not None:
            checked_text("after", after)
        criteria = await self._filter(status, error, older_than, newest=newest)
        row = await self._batch(batch)
        if contains is not None:
            return await self._search(row, criteria, checked_pattern("contains", contains), after, limit)
        items = await self._store.find(row.batch_id, criteria, after=after, limit=limit + 1)
        if items is None:
            raise await item_not_found(self._store, row, [after or ""])
        if not items and error is not None and after is None:
            raise item_details.no_such_error(row.name, error, criteria.status)
        page = list(items[:limit])
        return ItemPage(row.name, page, page[-1].id if len(items) > limit else None)

    async def _filter(
        self, status: Status | str | None, error: str | None, older_than: Duration | None, *, newest: bool
    ) -> Filter:
        """Return the filter of a list. Raises ConfigurationError for an invalid argument."""
        if error is not None:
            checked_pattern("error", error)
        before = None if older_than is None else await self._store.now() - checked_age("older_than", older_than)
        chosen = status_of(status) if status is not None else Status.FAILED if error is not None else None
        return Filter(chosen, error, before, newest)

    async def _search(self, row: BatchRow, criteria: Filter, text: str, after: str | None, limit: int) -> ItemPage:
        matches = await self._store.search(row.batch_id, criteria, text, after=after, limit=limit)
        if matches is None:
            raise await item_not_found(self._store, row, [after or ""])
        return ItemPage(row.name, list(matches.rows), matches.last, matches.looked_at, matches.of)

    async def count(
        self, batch: str | None = None, *, status: Status | str | None = None, error: str | None = None,
        older_than: Duration | None = None,
    ) -> int:  # fmt: skip
        """Return the exact number of all items that ``items()`` with the same arguments lists.

        The store keeps the numbers by status. With an ``error`` or an age, the items are selected, which takes about a second
        for a million items, and 8 bytes of memory for each.
        """
        criteria = await self._filter(status, error, older_than, newest=False)
        row = await self._batch(batch)
        if criteria.error is None and criteria.before is None:
            counts = (await self._store.snapshot([row.batch_id])).batches[0].counts
            return counts.total if criteria.status is None else int(getattr(counts, criteria.status.value))
        statuses = tuple(Status) if criteria.status is None else (criteria.status,)
        return len((await self._store.select(row.batch_id, Selection(statuses, None, error, criteria.before))).numbers)

    async def ids_with(self, prefix: str, batch: str | None = None, *, limit: int = 100) -> list[str]:
        """Return up to ``limit`` ids of items that begin with ``prefix``, in sorted order."""
        limit = checked_count("limit", limit)
        row = await self._batch(batch)
        return list(await self._store.keys_with([row.batch_id], checked_text("prefix", prefix), limit))

    async def ids(
        self, batch: str | None = None, *, status: Status | str | None = None, error: str | None = None,
        older_than: Duration | None = None, newest: bool = False,
    ) -> AsyncIterator[str]:  # fmt: skip
        """Yield the ids of all items that ``items()`` with the same arguments lists, in its order.

        The items are selected first, which takes 8 bytes of memory for each. Items that are deleted meanwhile or have left the
        states are omitted. Raises ItemNotFound if no item's error matches ``error``.
        """
        criteria = await self._filter(status, error, older_than, newest=newest)
        row = await self._batch(batch)
        selection = Selection(tuple(Status) if criteria.status is None else (criteria.status,), None, error, criteria.before)
        items = await self._store.select(row.batch_id, selection, in_input_order=True)
        if not items.numbers and error is not None:
            raise item_details.no_such_error(row.name, error, criteria.status)
        if newest:
            items = items._replace(numbers=items.numbers[::-1])
        for first in range(0, len(items.numbers), _IDS_PER_READ):
            for key in await self._store.ids_of(items.part(first, _IDS_PER_READ)):
                yield key

    async def show(self, id: str, batch: str | None = None) -> ItemDetails:  # noqa: A002 - the name of the column and the option
        """Return all details of an item: payload, result, timeline, newest 100 failed attempts with tracebacks.

        At most 64 kB of each value are read, see ``ItemDetails.cut``; ``export(ids=[id])`` returns whole values.
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

    async def cause_history(self, fingerprints: Sequence[str], batch: str | None = None) -> dict[str, list[int]]:
        """Return how many attempts of a batch failed with each cause in each of the last 60 minutes.

        ``fingerprints``: those of the causes, see ``failures()``. The last number is of the running minute. Only the newest
        5,000 attempts of each cause count.
        """
        chosen, row = checked_ids("fingerprints", fingerprints), await self._batch(batch)
        minutes = last_minutes(await self._store.now())
        since = from_text(minutes[0]) or 0.0
        counts = await self._store.cause_minutes(row.batch_id, chosen, since=since, limit=_MAX_COUNTED)
        return {each: [counts[each].get(minute, 0) for minute in minutes] for each in chosen}

    async def stuck(self, batch: str | None = None, *, older_than: Duration = 300.0, limit: int = 100) -> list[Stuck]:
        """Return the items of all batches or of one that have been processing for longer than ``older_than``.

        ``older_than``: seconds, a timedelta or a text ("15m"). The items that began first are first.
        """
        seconds, limit = checked_age("older_than", older_than), checked_count("limit", limit)
        batch_ids = [row.batch_id for row in await self._batches(batch)]
        rows = await self._store.stuck(batch_ids, longer_than=seconds, limit=limit)
        items = status.stuck_items(rows, await self._store.workers(), await self._store.now())
        return sorted(items, key=lambda item: -item.seconds)[:limit]

    async def workers(self, batch: str | None = None) -> list[WorkerStatus]:
        """Return the workers that have not deregistered; with a ``batch``, only those that hold items of it."""
        batch_id = None if batch is None else (await self._batch(batch)).batch_id
        return status.worker_statuses(await self._store.workers(batch_id), await self._store.now())

    async def check(
        self, batch: str | None = None, *, max_failed: int | Literal["any"] | None = 0,
        max_pending_age: Duration | None = None, max_processing_age: Duration | None = None, probe: str | None = None,
    ) -> list[Problem]:  # fmt: skip
        """Return the problems of all batches or of one that need an operator; the list is empty if there are none.

        ``max_failed``: the accepted number of failed items per batch; "any" or None: any number. ``max_pending_age``,
        ``max_processing_age``: the accepted time, as seconds, a timedelta or a text ("15m"); None: any.
        ``probe``: ``"liveness"`` returns only what a restart of the workers of this host solves, ``"readiness"`` only why an item
        that is added now would not start; a batch whose items are all finished needs no worker.
        """
        limits = arguments.limits_of(max_failed, max_pending_age, max_processing_age)
        batch_ids = [row.batch_id for row in await self._batches(batch)]
        snapshot = await self._store.snapshot(batch_ids, stuck_after=limits.max_processing_age)
        if probe is None:
            return list(health.problems(snapshot, limits, self._shown_location))
        if checked_choice("probe", probe, ("liveness", "readiness")) == "readiness":
            return list(health.readiness_problems(snapshot, self._shown_location))
        return list(health.liveness_problems(snapshot, platform.node() or "unknown", batch))

    async def export(
        self, batch: str | None = None, *, status: Statuses | None = None, error: str | None = None,
        ids: Iterable[str] | None = None, on_progress: OnProgress | None = None,
    ) -> AsyncIterator[ItemRecord]:  # fmt: skip
        """Yield items of a batch with payload and result: all in input order, those that match, or those with the ``ids``.

        ``status``: one or several states. ``error``: a part of the error's text, in which ``*`` matches anything, or a
        fingerprint; without a ``status`` only failed items match. ``ids``: exactly these items, in the given order.

        Items are read in pages of 1,000, each in a short transaction, so that an export never delays workers, and memory
        does not grow with the number of items, except by 8 bytes for each item that ``error`` or ``ids`` select. Items that
        change during the export are returned as they are when their page is read. Raises ItemNotFound if an id does not exist
        or no item has such an error.
        """
        async for page in self.export_pages(batch, status=status, error=error, ids=ids, on_progress=on_progress):
            for record in page:
                yield record

    async def export_rows(
        self, batch: str | None = None, *, fields: Sequence[str] | None = None, flatten: bool = False,
        status: Statuses | None = None, error: str | None = None, ids: Iterable[str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> AsyncIterator[dict[str, Any]]:  # fmt: skip
        """Yield the items of ``export()`` as dicts, with the JSON of payload, result and checkpoint decoded.

        ``fields``: only these fields; ``payload.user.name`` is a value inside a payload, None if an item does not have it.
        With ``flatten``, a JSON object becomes a key for each of its values, with such a dotted name.
        """
        chosen = chosen_fields(None if fields is None else checked_ids("fields", fields), flatten=flatten)
        async for record in self.export(batch, status=status, error=error, ids=ids, on_progress=on_progress):
            yield {column: value_of(value) for column, value in chosen.row_of(record).items()}

    async def export_pages(
        self, batch: str | None = None, *, status: Statuses | None = None, error: str | None = None,
        ids: Iterable[str] | None = None, on_progress: OnProgress | None = None,
    ) -> AsyncIterator[Sequence[ItemRecord]]:  # fmt: skip
        """Yield the items of ``export()`` in pages of up to 1,000 items."""
        statuses = None if status is None else statuses_of(status)
        if ids is not None and (status is not None or error is not None):
            raise ConfigurationError("give either ids, or status and error; an export has the items with the ids in any state")
        row = await self._batch(batch)
        if ids is None and error is None:
            pages = all_pages(self._store, row, statuses, on_progress)
        elif ids is not None:
            pages = selected_pages(self._store, row, await select_ids(self._store, row, ids), on_progress)
        else:
            chosen = statuses or [Status.FAILED]
            pattern = checked_pattern("error", error)
            items = await self._store.select(row.batch_id, Selection(chosen, error=pattern), in_input_order=True)
            if not items.numbers:
                raise item_details.no_such_error(row.name, pattern, chosen[0] if len(chosen) == 1 else None)
            pages = selected_pages(self._store, row, items, on_progress)
        async for page in pages:
            yield page
