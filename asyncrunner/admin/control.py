"""Operator API: inspect, pause, retry, export and purge batches, with or without running workers."""

from __future__ import annotations

import asyncio
import os
import threading
from array import array
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import anyio.to_thread
import msgspec

from asyncrunner.admin import health, recovery, status
from asyncrunner.admin.arguments import Statuses, status_of, statuses_of
from asyncrunner.domain.clock import Clock, SystemClock
from asyncrunner.domain.item import TERMINAL, Status
from asyncrunner.domain.options import DEFAULT_DB
from asyncrunner.errors import ConfigurationError, ItemNotFound
from asyncrunner.sqlite import purge
from asyncrunner.sqlite.admin import backup, changes
from asyncrunner.sqlite.admin import queries as admin_queries
from asyncrunner.sqlite.admin.store import CHUNK, OperatedFile, no_such_error, retriable
from asyncrunner.sqlite.file.creation import check_place
from asyncrunner.sqlite.large_results import sweep
from asyncrunner.store.read_models import (
    Changed,
    FailureCause,
    FileStatus,
    ItemDetails,
    ItemPage,
    ItemRecord,
    Problem,
    Purged,
    Stuck,
    WorkerStatus,
)
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.timestamps import to_text
from asyncrunner.text.validation import (
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


T = TypeVar("T")

_PAGE: Final = 1000

_MAX_CONCURRENCY: Final = 100_000


class Control:
    """An operator's view of a file: inspects its batches, items and workers, and changes them.

    ``async with Control("jobs.db") as control:``. The file must exist; ``Control`` never creates one. It works with or without
    running workers: it only reads and writes the file, and workers apply a change within a second. ``batch`` may be omitted if
    the file has one batch; where a method mentions "all batches", omitting it means all of them.

    Reads take no lock that blocks a writer. A method that changes many items commits 2,000 of them per transaction, and workers
    commit in between: after a cancellation or a crash midway, the committed transactions remain, and a second call does the rest.

    Every method raises BatchNotFound for an unknown batch name (the message suggests a similar one), ConfigurationError for an
    invalid argument, and StoreUnavailable if another program locks the file for 30 seconds. The failed transaction changed
    nothing; earlier transactions of the same call remain.
    """

    def __init__(
        self, db: str | os.PathLike[str] = DEFAULT_DB, *, clock: Clock | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:  # fmt: skip
        """``progress`` is called after each transaction of a method that changes many items, with the number changed so far."""
        checked_path("db", db)
        self.db = db
        self._clock: Clock = clock or SystemClock()
        self._file = OperatedFile(db, self._clock, progress)
        self._path = self._file.path

    def __repr__(self) -> str:
        return f"<Control of {os.fspath(self.db)}>"

    async def __aenter__(self) -> Control:
        await self.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def open(self) -> None:
        """Open the file for reading. Raises StoreNotFound (without creating the file), NotAStore, SchemaTooNew, StoreError."""
        await self._file.open()

    async def close(self) -> None:
        """Close the file. A second call does nothing."""
        await self._file.close()

    # --- inspecting --------------------------------------------------------------------------------------------------

    async def batches(self) -> list[str]:
        """Return the names of the file's batches, in the order of their creation."""
        return [row.name for row in await self._file.rows(None)]

    async def status(self, batch: str | None = None, *, stuck_after: float = 300.0) -> FileStatus:
        """Return the state of all batches or of one, of the workers, and the newest failed attempts.

        ``stuck_after``: seconds in processing after which an item is reported as stuck.
        """
        stuck_after = checked_seconds("stuck_after", stuck_after)
        rows = await self._file.rows(batch)
        batch_id = rows[0].batch_id if batch is not None else None
        now = self._clock.now()
        return await self._file.read(
            lambda reader: status.read_status(
                reader, self._path, os.fspath(self.db), rows, one=batch_id, stuck_after=stuck_after, now=now
            )
        )

    async def items(
        self, batch: str | None = None, *, status: Status | str | None = None, error: str | None = None,
        older_than: float | None = None, limit: int = 100, after: str | None = None,
    ) -> ItemPage:  # fmt: skip
        """Return a page of items in input order, without payloads and results.

        ``error``: a part of the error's text, in which ``*`` matches anything, or a fingerprint; without a ``status`` only
        failed items are searched. ``older_than``: seconds since the item ended, else since it started (while processing), else
        since it was added; if the clock was set back by more than an hour while items were added, some of them may be missed.
        ``after``: start behind the item with this id, see ``ItemPage.after``. Raises ItemNotFound if there is no item with the
        id ``after``, or, on a first page, if no item's error matches ``error``.
        """
        limit = checked_count("limit", limit)
        if after is not None:
            checked_text("after", after)
        if error is not None:
            checked_pattern("error", error)
        item_filter = admin_queries.Filter(
            status_of(status) if status is not None else Status.FAILED if error is not None else None,
            error,
            None if older_than is None else self._clock.now() - checked_seconds("older_than", older_than),
        )
        row = await self._file.row(batch)
        items = await self._file.read(
            lambda reader: admin_queries.listed(reader, row.batch_id, item_filter, after=after, limit=limit + 1)
        )
        if items is None:
            raise await self._file.no_item(row, [after or ""])
        if not items and error is not None and after is None:
            raise no_such_error(row.name, error, item_filter.status)
        page = list(items[:limit])
        return ItemPage(row.name, page, page[-1].id if len(items) > limit else None)

    async def show(self, id: str, batch: str | None = None) -> ItemDetails:  # noqa: A002 - the name of the column and the option
        """Return all details of an item: payload, result, the newest 100 failed attempts with tracebacks, and its timeline.

        Without a ``batch``, all batches are searched. Raises ItemNotFound (the message suggests similar ids), and
        ConfigurationError if several batches have an item with this id.
        """
        checked_text("id", id)
        if batch is None:
            names = await self._file.read(lambda reader: admin_queries.batches_with(reader, id))
            if len(names) > 1:
                raise ConfigurationError(f"{id!r} is in several batches: {', '.join(map(repr, names))}; give one of them")
            batch = names[0] if names else None
            batches = await self._file.rows(None)
            if not names and len(batches) > 1:
                raise ItemNotFound(
                    f"there is no item {safe_text(id, limit=80)!r} in any of the {len(batches)} batches of the file"
                )
        row = await self._file.row(batch)
        details = await self._file.read(lambda reader: admin_queries.details(reader, row.batch_id, row.name, id))
        if details is None:
            raise await self._file.no_item(row, [id])
        return details

    async def failures(self, batch: str | None = None, *, limit: int = 20) -> list[FailureCause]:
        """Return the causes of failure in all batches or in one, those with the most failed items first.

        ``limit``: the number of causes per batch. Causes of attempts that were or will be retried are included, with 0 items.
        """
        limit = checked_count("limit", limit)
        rows = await self._file.rows(batch)
        causes = [
            cause
            for row in rows
            for cause in await self._file.read(partial(admin_queries.causes, batch_id=row.batch_id, batch=row.name, limit=limit))
        ]
        return sorted(causes, key=lambda cause: (-cause.items, -cause.attempts))

    async def stuck(self, batch: str | None = None, *, longer_than: float = 300.0, limit: int = 100) -> list[Stuck]:
        """Return items of all batches or of one that are processing for more than ``longer_than`` seconds, longest first."""
        longer_than, limit = checked_seconds("longer_than", longer_than), checked_count("limit", limit)
        rows = await self._file.rows(batch)
        now = self._clock.now()
        stuck = await self._file.read(
            lambda reader: list(status.read_stuck(reader, self._path, rows, longer_than=longer_than, limit=limit, now=now))
        )
        return sorted(stuck, key=lambda item: -item.seconds)[:limit]

    async def workers(self, batch: str | None = None) -> list[WorkerStatus]:
        """Return the workers that have not deregistered; with a ``batch``, only those that hold items of it."""
        batch_id = None if batch is None else (await self._file.row(batch)).batch_id
        now = self._clock.now()
        return await self._file.read(lambda reader: list(status.read_workers(reader, self._path, now, one=batch_id)))

    async def check(
        self, batch: str | None = None, *, max_failed: int | None = 0, max_pending_age: float | None = None
    ) -> list[Problem]:
        """Return the problems of all batches or of one that need an operator; the list is empty if there are none.

        Problems are: unfinished items without a live worker; a dead worker that holds items, or workers that cannot be proven
        alive, while no live worker can recover them; a batch with unfinished items that a guardrail stopped; more failed items
        than ``max_failed`` (None: any number); an item that is ready to run and was added more than ``max_pending_age`` seconds
        ago.
        """
        if max_failed is not None:
            checked_count("max_failed", max_failed, at_least=0)
        if max_pending_age is not None:
            checked_seconds("max_pending_age", max_pending_age)
        rows = await self._file.rows(batch)
        now = self._clock.now()
        return await self._file.read(
            lambda reader: list(
                health.problems(reader, self._path, rows, max_failed=max_failed, max_pending_age=max_pending_age, now=now)
            )
        )

    async def export(self, batch: str | None = None, *, status: Statuses | None = None) -> AsyncIterator[ItemRecord]:
        """Yield every item of a batch in input order, or those in the given states, with payload and result, in constant memory.

        Items are read in pages of 1,000, each in a short transaction, so that an export never delays workers. Items that change
        during the export are returned as they are when their page is read.
        """
        async for page in self.export_pages(batch, status=status):
            for record in page:
                yield record

    async def export_pages(
        self, batch: str | None = None, *, status: Statuses | None = None
    ) -> AsyncIterator[Sequence[ItemRecord]]:
        """Like ``export()``, but yield pages of up to 1,000 items."""
        statuses = None if status is None else statuses_of(status)
        row = await self._file.row(batch)
        after = 0
        while True:
            page, after = await self._file.read(
                partial(
                    admin_queries.export_page, batch_id=row.batch_id, batch=row.name, statuses=statuses, after=after, limit=_PAGE
                )
            )
            if not page:
                return
            yield page

    # --- changing ----------------------------------------------------------------------------------------------------

    async def pause(self, batch: str | None = None) -> bool:
        """Start no more items of the batch, in any process, until ``resume()``. Running handlers finish.

        Returns False if the batch was already paused.
        """
        row = await self._file.row(batch)
        return await self._file.write(lambda writer: changes.pause(writer, row.batch_id)) > 0

    async def resume(self, batch: str | None = None) -> bool:
        """End a pause, a stop by a guardrail and a cool-down. Returns False if there was none."""
        row = await self._file.row(batch)
        now = self._clock.now()
        return await self._file.write(lambda writer: changes.resume(writer, row.batch_id, now)) > 0

    async def set_concurrency(self, concurrency: int | None, batch: str | None = None) -> None:
        """Set how many handlers of the batch each worker runs concurrently, instead of its program's setting.

        ``None`` restores the program's setting. The value is stored in the file: it also applies to workers started later, until
        it is set again.
        """
        if concurrency is not None:
            checked_count("concurrency", concurrency, at_most=_MAX_CONCURRENCY)
        row = await self._file.row(batch)
        await self._file.write(lambda writer: changes.set_concurrency(writer, row.batch_id, concurrency))

    async def cancel(self, ids: Iterable[str] | None = None, batch: str | None = None, *, pending: bool = False) -> Changed:
        """Cancel the pending and processing items with the given ids, or, with ``pending``, every pending item.

        A running handler is cancelled within a second and its outcome is discarded. Finished items count as unchanged. Raises
        ItemNotFound if an id does not exist; then nothing was changed.
        """
        if (ids is not None) == pending:
            raise ConfigurationError("give either ids or pending=True (every pending item)")
        row = await self._file.row(batch)
        if ids is None:
            seqs = await self._file.read(partial(admin_queries.seqs_open, batch_id=row.batch_id, status=Status.PENDING))
        else:
            seqs = array("q", (item.seq for item in await self._file.found(row, ids)))
        changed = await self._file.in_chunks(seqs, partial(changes.cancel, now=self._clock.now(), pending_only=pending))
        return Changed(row.name, changed, len(seqs) - changed)

    async def retry(
        self, ids: Iterable[str] | None = None, batch: str | None = None, *, failed: bool = False, error: str | None = None,
        everything: bool = False,
    ) -> Changed:  # fmt: skip
        """Reset items to pending with all their attempts, due immediately. Payload and checkpoint are kept.

        Give exactly one selection: ``ids``; ``failed``, every failed item; ``error``, every failed item whose error contains this
        text (``*`` matches anything) or has this fingerprint; ``everything``, every failed or cancelled item. Pending items count
        as unchanged.

        Raises ConfigurationError if an id is of a processing or completed item, and ItemNotFound if an id does not exist or no
        item has such an error; then nothing was changed.
        """
        if [ids is not None, failed, error is not None, everything].count(True) != 1:
            raise ConfigurationError("give exactly one of ids, failed=True, error=..., everything=True")
        row = await self._file.row(batch)
        if ids is not None:
            seqs = retriable(await self._file.found(row, ids))
        elif error is not None:
            checked_pattern("error", error)
            seqs = await self._file.read(partial(admin_queries.seqs_failed_like, batch_id=row.batch_id, pattern=error))
            if not seqs:
                raise no_such_error(row.name, error, Status.FAILED)
        else:
            states = (Status.FAILED, Status.CANCELLED) if everything else (Status.FAILED,)
            seqs = array("q")
            for state in states:
                seqs.extend(await self._file.read(partial(admin_queries.seqs_open, batch_id=row.batch_id, status=state)))
        changed = await self._file.in_chunks(seqs, changes.retry)
        return Changed(row.name, changed, len(seqs) - changed)

    async def recover(self, worker_ids: Iterable[str] = (), batch: str | None = None) -> dict[str, int]:
        """Recover the items of dead workers now, as the next worker would. Returns the number of items by worker id.

        Orphaned items, which no registered worker holds, are counted under ``""``. With a ``batch``, only workers that hold items
        of it are recovered, including their items of other batches; orphaned items are recovered in all batches if the batch has
        any. If ``worker_ids`` are given, only these workers are recovered.

        A worker is dead when its lock is free. A worker whose lock file is missing is dead if its heartbeat does not change for
        5 seconds; this method waits that long. A live worker is recovered only if its id is given, for example when its event
        loop hangs: once its loop runs again, its handlers are cancelled and their outcomes discarded. Raises ConfigurationError
        for an unknown worker id.
        """
        named = frozenset(checked_ids("worker_ids", worker_ids))
        row = None if batch is None else await self._file.row(batch)
        return await recovery.recover(self._file, self._clock, named, row)

    # --- purging and copying -----------------------------------------------------------------------------------------

    async def purge(
        self, before: datetime | timedelta, batch: str | None = None, *, status: Statuses = (Status.COMPLETED,),
        dry_run: bool = False,
    ) -> Purged:  # fmt: skip
        """Delete items of a batch that ended before the given time, or longer ago than the given age, with their failures.

        ``status``: one or several of completed, failed and cancelled; other states raise ConfigurationError. With ``dry_run``
        the items are only counted. The file does not shrink: new items reuse the space; ``vacuum()`` returns it to the disk.
        """
        statuses = statuses_of(status)
        unfinished = [each.value for each in statuses if each not in TERMINAL]
        if unfinished:
            raise ConfigurationError(
                f"purge deletes only finished items, not {' and '.join(unfinished)} ones; cancel those first"
            )
        moment = to_text(checked_past("before", before, self._clock.now()))
        row = await self._file.row(batch)
        counted: dict[str, int] = {}
        after = 0
        while True:
            purgeable = await self._file.read(
                partial(
                    admin_queries.purgeable, batch_id=row.batch_id, statuses=statuses, before=moment, after=after, limit=CHUNK
                )
            )
            if not purgeable:
                break
            after = purgeable[-1][0]
            for _, state in purgeable:
                counted[state] = counted.get(state, 0) + 1
            if not dry_run:
                seqs = msgspec.json.encode([seq for seq, _ in purgeable]).decode()
                await self._file.write(partial(purge.purge, found=seqs, statuses=statuses, before=moment))
                self._file.progress(sum(counted.values()))
        while not dry_run and await self._file.write(sweep):
            pass
        free = await self._file.read(admin_queries.free_bytes)
        return Purged(row.name, moment, counted, dry_run, free)

    async def vacuum(self) -> int:
        """Rewrite the file without the free space that deleted items left, and return its new size in bytes.

        The file cannot be written meanwhile, about as long as a copy takes; so a live worker raises ConfigurationError. Needs
        free disk space of up to twice the size of the file. Once started it cannot be cancelled; after a crash the file is
        unchanged.
        """
        await self.check_unused()
        check_place(Path(self.db))
        await self._file.persist(lambda: anyio.to_thread.run_sync(backup.vacuum, self._path))
        return self._path.stat().st_size

    async def check_unused(self) -> None:
        """Raise ConfigurationError if there is a worker that is alive, or may be, and that ``vacuum()`` would block."""
        reason = recovery.why_in_use(await self.workers())
        if reason is not None:
            raise ConfigurationError(f"{reason}. Without it, new items reuse the space of deleted items")

    async def backup(self, target: str | os.PathLike[str], batch: str | None = None) -> int:
        """Copy the current state of the file to *target*, which must not exist, and return the size of the copy in bytes.

        With a ``batch``, the copy contains only this batch.

        Workers continue meanwhile; their later writes are not in the copy. The copy can be used like any other file: it has no
        workers, and the items that workers hold are pending in it, with the attempt refunded. *target* appears only when the
        copy is complete, also after a crash. Cancelling stops the copy and removes its temporary file. Raises ConfigurationError
        if *target* exists or cannot be written, and StoreError, for example if the disk is full.
        """
        self._file.check_open()
        checked_path("target", target)
        batch_id = None if batch is None else (await self._file.row(batch)).batch_id
        stopped = threading.Event()
        try:
            return await anyio.to_thread.run_sync(
                partial(backup.back_up, only=batch_id),
                self._path,
                Path(target),
                lambda: not stopped.is_set(),
                self._clock.now(),
                abandon_on_cancel=True,
            )
        except asyncio.CancelledError:
            stopped.set()
            raise
