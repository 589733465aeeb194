"""Control: sees, stops, retries, exports and clears what a file holds, while workers work on it or nobody does."""

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

import anyio
import anyio.to_thread
import msgspec

from asyncrunner import inspection, recovery
from asyncrunner.asking import (
    Statuses,
    checked_count,
    checked_ids,
    checked_path,
    checked_seconds,
    checked_text,
    like,
    past,
    status_of,
    statuses_of,
)
from asyncrunner.clock import Clock, SystemClock
from asyncrunner.errors import ConfigurationError, ItemNotFound
from asyncrunner.item import TERMINAL, Status
from asyncrunner.operated import CHUNK, OperatedFile, no_such_error, retriable
from asyncrunner.settings import DEFAULT_DB
from asyncrunner.sqlite import looking, operating, purging
from asyncrunner.sqlite.file import check_place
from asyncrunner.sqlite.pieces import sweep
from asyncrunner.text import safe_text
from asyncrunner.views import (
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

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Control"]

T = TypeVar("T")

_PAGE: Final = 1000
_MOST_CONCURRENCY: Final = 100_000


class Control:
    """A file's batches, as the person sees and changes them who operates it.

    ``async with Control("jobs.db") as control:``. The file must be there; nothing is ever created. Works beside running workers
    and without any: it speaks to the file alone, and workers obey within a second. ``batch`` may be left out where the file has
    one batch; where a method says "all batches", leaving it out means all.

    What reads takes no lock that anybody waits for. What changes many items does so in transactions of 2,000, between which the
    workers' turns come: if it is cancelled or killed midway, what is done is done, and doing it again does the rest. Every method
    raises BatchNotFound for a name that is not there (with the one that was meant), ConfigurationError for an argument that
    cannot work, StoreUnavailable if another program holds the file for half a minute; then nothing was changed.
    """

    def __init__(
        self, db: str | os.PathLike[str] = DEFAULT_DB, *, clock: Clock | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:  # fmt: skip
        """``progress`` is called after each transaction of what changes many items, with how many are changed by then."""
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
        """Open the file for reading. Raises StoreNotFound (and creates nothing), NotAStore, SchemaTooNew, StoreError."""
        await self._file.open()

    async def close(self) -> None:
        """Close the file. Closing twice is fine."""
        await self._file.close()

    # --- looking -----------------------------------------------------------------------------------------------------

    async def batches(self) -> list[str]:
        """The names of the file's batches, in the order in which they were made."""
        return [row.name for row in await self._file.rows(None)]

    async def status(self, batch: str | None = None, *, stuck_after: float = 300.0) -> FileStatus:
        """How the file stands: all batches or one, the workers, the newest failed attempts.

        ``stuck_after``: seconds in processing after which an item is named as stuck.
        """
        stuck_after = checked_seconds("stuck_after", stuck_after)
        rows = await self._file.rows(batch)
        one = rows[0].batch_id if batch is not None else None
        now = self._clock.now()
        return await self._file.read(
            lambda reader: inspection.read_status(
                reader, self._path, os.fspath(self.db), rows, one=one, stuck_after=stuck_after, now=now
            )
        )

    async def items(
        self, batch: str | None = None, *, status: Status | str | None = None, error: str | None = None,
        older_than: float | None = None, limit: int = 100, after: str | None = None,
    ) -> ItemPage:  # fmt: skip
        """A page of items in input order, without payloads and results.

        ``error``: a part of the error's text, in which ``*`` stands for anything, or a fingerprint; without a ``status`` it
        looks at failed items. ``older_than``: seconds since the item ended, or else started (in processing), or else came in;
        where the clock was set back by more than an hour while items came in, some of those may be passed over.
        ``after``: go on behind the item of that id, as ``ItemPage.after`` says. Raises ItemNotFound if that is not there.
        """
        limit = checked_count("limit", limit)
        if after is not None:
            checked_text("after", after)
        wanted = looking.Filter(
            status_of(status) if status is not None else Status.FAILED if error is not None else None,
            error,
            None if older_than is None else self._clock.now() - checked_seconds("older_than", older_than),
        )
        wanted.values(0)  # says what is wrong with the pattern
        row = await self._file.row(batch)
        found = await self._file.read(lambda reader: looking.listed(reader, row.batch_id, wanted, after=after, limit=limit + 1))
        if found is None:
            raise await self._file.no_item(row, [after or ""])
        if not found and error is not None and after is None:
            raise no_such_error(row.name, error, wanted.status)
        page = list(found[:limit])
        return ItemPage(row.name, page, page[-1].id if len(found) > limit else None)

    async def show(self, id: str, batch: str | None = None) -> ItemDetails:  # noqa: A002 - as in every table and option
        """Everything about an item: payload, result, every failed attempt with its traceback, what happened when.

        Without a ``batch`` it is looked for in all of them. Raises ItemNotFound, with ids that are nearly the same;
        ConfigurationError if several batches have it.
        """
        checked_text("id", id)
        if batch is None:
            names = await self._file.read(lambda reader: looking.batches_with(reader, id))
            if len(names) > 1:
                raise ConfigurationError(f"{id!r} is in several batches: {', '.join(map(repr, names))}; name one")
            batch = names[0] if names else None
            batches = await self._file.rows(None)
            if not names and len(batches) > 1:
                raise ItemNotFound(
                    f"there is no item {safe_text(id, limit=80)!r} in any of the {len(batches)} batches of the file"
                )
        row = await self._file.row(batch)
        found = await self._file.read(lambda reader: looking.details(reader, row.batch_id, row.name, id))
        if found is None:
            raise await self._file.no_item(row, [id])
        return found

    async def failures(self, batch: str | None = None, *, limit: int = 20) -> list[FailureCause]:
        """Why items fail, by cause, of all batches or of one: those of which most items have failed come first.

        ``limit`` is for each batch. Causes of attempts that were or will be retried are there too, with 0 items.
        """
        limit = checked_count("limit", limit)
        rows = await self._file.rows(batch)
        causes = [
            cause
            for row in rows
            for cause in await self._file.read(partial(looking.causes, batch_id=row.batch_id, batch=row.name, limit=limit))
        ]
        return sorted(causes, key=lambda cause: (-cause.items, -cause.attempts))

    async def stuck(self, batch: str | None = None, *, longer_than: float = 300.0, limit: int = 100) -> list[Stuck]:
        """Items of all batches or of one that are being processed for longer than that many seconds, the longest first."""
        longer_than, limit = checked_seconds("longer_than", longer_than), checked_count("limit", limit)
        rows = await self._file.rows(batch)
        now = self._clock.now()
        found = await self._file.read(
            lambda reader: list(inspection.read_stuck(reader, self._path, rows, longer_than=longer_than, limit=limit, now=now))
        )
        return sorted(found, key=lambda item: -item.seconds)[:limit]

    async def workers(self, batch: str | None = None) -> list[WorkerStatus]:
        """The workers that have not left; with a ``batch``, those that hold items of it."""
        one = None if batch is None else (await self._file.row(batch)).batch_id
        now = self._clock.now()
        return await self._file.read(lambda reader: list(inspection.read_workers(reader, self._path, now, one=one)))

    async def check(
        self, batch: str | None = None, *, max_failed: int | None = 0, max_pending_age: float | None = None
    ) -> list[Problem]:
        """What needs a person, of all batches or of one; empty if nothing does.

        That is: items to be done and no live worker; a batch that a guardrail stopped with items to be done; more failed items
        than ``max_failed`` (None: any number); an item that may run and has been waiting for longer than ``max_pending_age``
        seconds since it came in.
        """
        if max_failed is not None and (not isinstance(max_failed, int) or isinstance(max_failed, bool) or max_failed < 0):
            raise ConfigurationError(f"max_failed={max_failed!r}: give a whole number of items, 0 or more, or None")
        if max_pending_age is not None:
            checked_seconds("max_pending_age", max_pending_age)
        rows = await self._file.rows(batch)
        now = self._clock.now()
        return await self._file.read(
            lambda reader: list(
                inspection.problems(reader, self._path, rows, max_failed=max_failed, max_pending_age=max_pending_age, now=now)
            )
        )

    async def export(self, batch: str | None = None, *, status: Statuses | None = None) -> AsyncIterator[ItemRecord]:
        """Every item of a batch in input order, or those in some states, with payload and result; memory does not grow.

        Each item is as it stands when it is read: a page at a time, so that no reader holds anybody up.
        """
        async for page in self.export_pages(batch, status=status):
            for record in page:
                yield record

    async def export_pages(
        self, batch: str | None = None, *, status: Statuses | None = None
    ) -> AsyncIterator[Sequence[ItemRecord]]:
        """The same, a thousand items at a time."""
        statuses = None if status is None else statuses_of(status)
        row = await self._file.row(batch)
        after = 0
        while True:
            page, after = await self._file.read(
                partial(looking.export_page, batch_id=row.batch_id, batch=row.name, statuses=statuses, after=after, limit=_PAGE)
            )
            if not page:
                return
            yield page

    # --- stopping and going on ---------------------------------------------------------------------------------------

    async def pause(self, batch: str | None = None) -> bool:
        """Let nothing more of the batch start, in any process, until it is resumed; what runs ends. Whether that is new."""
        row = await self._file.row(batch)
        return await self._file.write(lambda writer: operating.pause(writer, row.batch_id)) > 0

    async def resume(self, batch: str | None = None) -> bool:
        """Lift a pause, a stop by a guardrail and a cool-down. Whether there was one."""
        row = await self._file.row(batch)
        now = self._clock.now()
        return await self._file.write(lambda writer: operating.resume(writer, row.batch_id, now)) > 0

    async def set_concurrency(self, concurrency: int | None, batch: str | None = None) -> None:
        """How many handlers of the batch run at once in each worker, more or less than its program says; None: as it says.

        Holds until it is set again, also for workers to come.
        """
        if concurrency is not None and not 1 <= checked_count("concurrency", concurrency) <= _MOST_CONCURRENCY:
            raise ConfigurationError(f"concurrency={concurrency}: give at most {_MOST_CONCURRENCY:,}")
        row = await self._file.row(batch)
        await self._file.write(lambda writer: operating.set_concurrency(writer, row.batch_id, concurrency))

    async def cancel(self, ids: Iterable[str] | None = None, batch: str | None = None, *, pending: bool = False) -> Changed:
        """Cancel the items of those ids that are pending or processing, or every pending one.

        A running handler is cancelled within a second and its outcome is not kept. Done items stay as they are and count as
        unchanged. Raises ItemNotFound if one is not there; then nothing was changed.
        """
        if (ids is not None) == pending:
            raise ConfigurationError("say what to cancel: ids, or pending=True for every pending item")
        row = await self._file.row(batch)
        if ids is None:
            seqs = await self._file.read(partial(looking.seqs_open, batch_id=row.batch_id, status=Status.PENDING))
        else:
            seqs = array("q", (found.seq for found in await self._file.found(row, ids)))
        changed = await self._file.in_chunks(seqs, partial(operating.cancel, now=self._clock.now(), pending_only=pending))
        return Changed(row.name, changed, len(seqs) - changed)

    async def retry(
        self, ids: Iterable[str] | None = None, batch: str | None = None, *, failed: bool = False, error: str | None = None,
        everything: bool = False,
    ) -> Changed:  # fmt: skip
        """Give items a fresh start: pending, with all their attempts, due at once; their payload and checkpoint stay.

        Those of the ``ids``; every ``failed`` one; every failed one whose ``error`` has that part (``*`` stands for anything) or
        that fingerprint; or ``everything`` that has failed or was cancelled. Ids of items that are processing or completed are
        refused, with their number, and nothing is changed; pending ones count as unchanged. Raises ItemNotFound.
        """
        if [ids is not None, failed, error is not None, everything].count(True) != 1:
            raise ConfigurationError("say what to retry: ids, failed=True, error= or everything=True, and only one of them")
        row = await self._file.row(batch)
        if ids is not None:
            seqs = retriable(await self._file.found(row, ids))
        elif error is not None:
            like(error, option="error")
            seqs = await self._file.read(partial(looking.seqs_failed_like, batch_id=row.batch_id, pattern=error))
            if not seqs:
                raise no_such_error(row.name, error, Status.FAILED)
        else:
            states = (Status.FAILED, Status.CANCELLED) if everything else (Status.FAILED,)
            seqs = array("q")
            for state in states:
                seqs.extend(await self._file.read(partial(looking.seqs_open, batch_id=row.batch_id, status=state)))
        changed = await self._file.in_chunks(seqs, operating.retry)
        return Changed(row.name, changed, len(seqs) - changed)

    async def recover(self, worker_ids: Iterable[str] = (), batch: str | None = None) -> dict[str, int]:
        """Take what dead workers held from them now, as the next worker would: worker -> items that go back.

        With a ``batch``, only workers that hold items of it; what else they held goes back with those.

        What no known worker holds is under ``""``. A worker without a lock file, as when those were deleted, is dead if its
        heartbeat stands still for 5 s, which are waited for. A live worker is taken for dead only if it is named, as one whose
        loop hangs: its handlers are cancelled when it comes to itself, and their outcomes are dropped.
        """
        named = frozenset(checked_ids("worker_ids", worker_ids))
        one = None if batch is None else await self._file.row(batch)
        return await recovery.recover(self._file, self._clock, named, one)

    # --- clearing and keeping ----------------------------------------------------------------------------------------

    async def purge(
        self, before: datetime | timedelta, batch: str | None = None, *, status: Statuses = (Status.COMPLETED,),
        dry_run: bool = False,
    ) -> Purged:  # fmt: skip
        """Delete items of a batch that ended before that moment, or longer ago than that, with the records of their failures.

        ``status``: completed ones, or also failed and cancelled ones; anything else is refused. The file does not become smaller:
        new items use the room, or see ``vacuum()``. With ``dry_run`` they are only counted.
        """
        statuses = statuses_of(status)
        unfinished = [each.value for each in statuses if each not in TERMINAL]
        if unfinished:
            raise ConfigurationError(
                f"purge would delete items that are {' and '.join(unfinished)}, which are not done; cancel them first if nobody "
                "needs them"
            )
        moment = past(before, self._clock.now())
        row = await self._file.row(batch)
        counted: dict[str, int] = {}
        after = 0
        while True:
            found = await self._file.read(
                partial(looking.purgeable, batch_id=row.batch_id, statuses=statuses, before=moment, after=after, limit=CHUNK)
            )
            if not found:
                break
            after = found[-1][0]
            for _, state in found:
                counted[state] = counted.get(state, 0) + 1
            if not dry_run:
                seqs = msgspec.json.encode([seq for seq, _ in found]).decode()
                await self._file.write(partial(purging.purge, found=seqs, statuses=statuses, before=moment))
                self._file.progress(sum(counted.values()))
        while not dry_run and await self._file.write(sweep):
            pass
        free = await self._file.read(looking.free_bytes)
        return Purged(row.name, moment, counted, dry_run, free)

    async def vacuum(self) -> int:
        """Write the file anew without the room that deleted items left, and return its size in bytes.

        Nobody can write meanwhile, which takes about as long as copying it; so it is refused while a worker lives. Needs as much
        room on the disk again, twice over while it works. Cannot be cancelled; after a crash the file is as it was.
        """
        await self.check_unused()
        check_place(Path(self.db))
        await self._file.persist(lambda: anyio.to_thread.run_sync(operating.vacuum, self._path))
        return self._path.stat().st_size

    async def check_unused(self) -> None:
        """Raises ConfigurationError while a worker lives, or may live, that ``vacuum()`` would hold up."""
        reason = recovery.why_in_use(await self.workers())
        if reason is not None:
            raise ConfigurationError(f"{reason}. What was deleted is room that new items use")

    async def backup(self, target: str | os.PathLike[str], batch: str | None = None) -> int:
        """Copy the file, as it is at this moment, to *target*, which must not exist; returns the bytes of the copy.

        With a ``batch`` nothing of the others is in the copy.

        Workers go on meanwhile; what they write is not in it. The copy is a file to run on, anywhere: no worker is in it, and
        what they hold is pending there, with the attempt refunded. Nothing is at *target* until the copy is whole, also after a
        crash; cancelling leaves nothing.
        """
        self._file.check_open()
        checked_path("target", target)
        only = None if batch is None else (await self._file.row(batch)).batch_id
        stopped = threading.Event()
        try:
            return await anyio.to_thread.run_sync(
                partial(operating.back_up, only=only),
                self._path,
                Path(target),
                lambda: not stopped.is_set(),
                self._clock.now(),
                abandon_on_cancel=True,
            )
        except asyncio.CancelledError:
            stopped.set()
            raise
