"""Operator API: inspect, pause, retry, export and purge batches, with or without running workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from asyncrunner.admin import health
from asyncrunner.admin.arguments import Statuses, finished_statuses_of
from asyncrunner.admin.changes.changes import Changes
from asyncrunner.admin.changes.items import change_items
from asyncrunner.admin.copying import CopySteps, copy_batches
from asyncrunner.admin.inspection.inspection import Inspection
from asyncrunner.admin.opened_file import OnProgress
from asyncrunner.admin.read_models import Copied, DeletedCopy, Purged
from asyncrunner.backends import open_maintenance
from asyncrunner.domain.item import Status
from asyncrunner.errors import ConfigurationError
from asyncrunner.store.admin_protocol import Change, Selection
from asyncrunner.text.timestamps import to_text
from asyncrunner.text.validation import checked_past, checked_path


class Control(Inspection, Changes):
    """An operator's view of a file: inspects its batches, items and workers, and changes them.

    ``async with Control("jobs.db") as control:``. The file must exist; ``Control`` never creates one. It works with or
    without running workers: it only reads and writes the file, and workers apply a change within a second. ``batch``
    may be omitted if the file has one batch; where a method mentions "all batches", omitting it means all of them.

    Reads take no lock that blocks a writer. A method that changes many items commits 2,000 of them per transaction, and
    workers commit in between: after a cancellation or a crash midway, the committed transactions remain, and a second
    call does the rest. ``on_progress`` of such a method, and of an export, is a function that is called after each step with
    a ``Progress``: ``done``, the number of items that are done, and ``of``, the number of all selected items. An exception
    that it raises ends the call like a cancellation.

    Every method raises BatchNotFound for an unknown batch name (the message suggests a similar one), ConfigurationError
    for an invalid argument, and StoreUnavailable if another program locks the file for 30 seconds. The failed
    transaction changed nothing; earlier transactions of the same call remain.
    """

    async def purge(
        self, before: datetime | timedelta, batch: str | None = None, *, status: Statuses = (Status.COMPLETED,),
        dry_run: bool = False, on_progress: OnProgress | None = None,
    ) -> Purged:  # fmt: skip
        """Delete items of a batch that ended before a time, or longer ago than an age, with their failure records.

        ``status``: one or several of completed, failed and cancelled; other states raise ConfigurationError. With
        ``dry_run`` the items are only counted. The file does not shrink: new items reuse the space; ``vacuum()``
        returns it to the disk.
        """
        statuses = finished_statuses_of(status)
        moment = checked_past("before", before, await self._store.now())
        row = await self._complete_batch(batch)
        items = await self._store.select(row.batch_id, Selection(statuses, before=moment))
        if not dry_run:
            await change_items(self._store, row, items, Change.PURGE, self._reporter(on_progress))
        free = await open_maintenance(self._location, self._clock).free_bytes()
        return Purged(row.name, to_text(moment), dict(items.counts), dry_run, free)

    async def vacuum(self) -> int:
        """Rewrite the file without the free space that deleted items left, and return its new size in bytes.

        Meanwhile no process can write the file; the rewrite takes about as long as a copy of the file. Raises
        ConfigurationError if a worker is alive, or cannot be proven dead. Needs free disk space of up to twice the size
        of the file. The rewrite cannot be cancelled after it has started; after a crash the file is unchanged. On a server it
        raises ConfigurationError: the server reuses the space by its own VACUUM.
        """
        maintenance = open_maintenance(self._location, self._clock)
        await self.check_unused()
        return await maintenance.vacuum()

    async def check_unused(self) -> None:
        """Raise ConfigurationError if ``vacuum()`` would block a worker that is alive or cannot be proven dead.

        Also on a server, where ``vacuum()`` is refused.
        """
        open_maintenance(self._location, self._clock).check_vacuum()
        reason = health.why_in_use(await self.workers())
        if reason is not None:
            raise ConfigurationError(f"{reason}. Without a vacuum, new items reuse the space of deleted items")

    async def backup(self, target: str | os.PathLike[str], batch: str | None = None) -> int:
        """Copy the current state of the file to *target*, a new file, and return the size of the copy in bytes.

        With a ``batch``, the copy contains only this batch. Workers continue during the copy; their later writes are
        not in it. The copy can be used like any other file: it has no workers, and the items that workers hold are
        pending in it, with the attempt refunded. *target* appears only when the copy is complete, also after a crash.
        Cancelling stops the copy and removes its temporary file. Raises ConfigurationError if *target* exists or cannot
        be written, and StoreError, for example if the disk is full. On a server it raises ConfigurationError: use pg_dump.
        """
        maintenance = open_maintenance(self._location, self._clock)
        checked_path("target", target)
        batch_id = None if batch is None else (await self._batch(batch)).batch_id
        return await maintenance.backup(target, batch_id=batch_id)

    async def copy(
        self, target: str | os.PathLike[str], batches: Sequence[str] | None = None, *, restart: bool = False,
        on_restart: Callable[[DeletedCopy], object] | None = None, on_progress: OnProgress | None = None,
    ) -> list[Copied]:  # fmt: skip
        """Copy batches, by default all, with their items to another file or server, which is created if it does not exist.

        The state of every item is kept: results, attempts, failures, checkpoints, times and order; workers and the history are
        not copied. Items that dead workers hold are pending there, with the attempt refunded. This file is not changed. Until
        the copy of a batch is complete, it is paused there. After a crash or a cancellation, a second call continues.
        Raises ConfigurationError if a live worker serves a batch, or if *target* has a batch of that name that no copy from
        this one began. ``Copied.problem`` is set if the batch was changed while it was copied.

        ``restart``: delete the incomplete copies of these batches in *target*, in short transactions, and begin again; a
        complete copy, or a batch that no copy began, is never deleted. ``on_restart`` is called with a ``DeletedCopy`` before
        a deletion; an exception that it raises ends the call, and nothing is deleted. After a crash or a cancellation during
        the deletion, a second call continues it, also without ``restart``.
        """
        checked_path("target", target)
        names = None if batches is None else [(await self._batch(name)).name for name in batches]
        steps = CopySteps(self._reporter(on_progress), on_restart, restart=restart)
        return await copy_batches(self._location, os.fspath(target), names, self._clock, steps)
