"""The part of ``Control`` that changes batches, items and workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, cast

from asyncrunner.admin.arguments import Statuses, rerun_statuses_of
from asyncrunner.admin.changes import items, recovery
from asyncrunner.admin.changes.items import change_items
from asyncrunner.admin.changes.stop import stop_workers
from asyncrunner.admin.inspection.named_items import select_ids
from asyncrunner.admin.opened_file import OnProgress, OpenedFile
from asyncrunner.admin.read_models import Changed, StopOutcome, StoppingWorker
from asyncrunner.backends import open_admin
from asyncrunner.domain.item import Status
from asyncrunner.errors import ConfigurationError
from asyncrunner.store.admin_protocol import AdminStore, Change, Selection
from asyncrunner.store.copying.incomplete import incomplete_copy
from asyncrunner.store.snapshot import BatchRow, WorkerRow
from asyncrunner.store.workers import Stop
from asyncrunner.text.durations import Duration, checked_age
from asyncrunner.text.validation import checked_count, checked_ids

_MAX_CONCURRENCY: Final = 100_000


class Changes(OpenedFile):
    """The methods of ``Control`` that change batches, items and workers."""

    def _new_store(self) -> AdminStore:
        return open_admin(self._location, self._clock)

    @property
    def _store(self) -> AdminStore:
        return cast("AdminStore", super()._store)

    async def _complete_batch(self, name: str | None) -> BatchRow:
        """Return the batch like ``_batch``. Raises ConfigurationError if it is the target of a copy that is not complete."""
        row = await self._batch(name)
        if row.copied_from is not None:
            raise incomplete_copy(self._shown_location, row.name, row.copied_from)
        return row

    async def pause(self, batch: str | None = None) -> bool:
        """Pause the batch: no process starts more of its items. Running handlers finish. Return False if it was paused."""
        row = await self._complete_batch(batch)
        return await self._store.set_controls(row.batch_id, paused=True)

    async def resume(self, batch: str | None = None) -> bool:
        """End a pause, a stop by a guardrail and a cool-down of the batch; return False if the batch had none of them."""
        row = await self._complete_batch(batch)
        return await self._store.set_controls(row.batch_id, paused=False)

    async def set_concurrency(self, concurrency: int | None, batch: str | None = None) -> None:
        """Set how many handlers of the batch each worker runs concurrently, instead of its program's setting.

        ``None`` restores the program's setting. The value is stored in the file: it also applies to workers started
        later, until it is set again.
        """
        if concurrency is not None:
            checked_count("concurrency", concurrency, at_most=_MAX_CONCURRENCY)
        row = await self._complete_batch(batch)
        await self._store.set_controls(row.batch_id, concurrency=concurrency)

    async def cancel(
        self, ids: Iterable[str] | None = None, batch: str | None = None, *, pending: bool = False,
        older_than: Duration | None = None, on_progress: OnProgress | None = None,
    ) -> Changed:  # fmt: skip
        """Cancel the pending and processing items with the given ids, or, with ``pending``, every pending item.

        ``older_than``: every pending item that was added longer ago than this (seconds, a timedelta
        or a text such as "7d"). A running handler is cancelled
        within a second and its outcome is discarded. Finished items count as unchanged. Raises ItemNotFound if an id does
        not exist; then nothing is changed.
        """
        if (ids is not None) == (pending or older_than is not None):
            raise ConfigurationError("give either ids or pending=True (every pending item), or older_than=AGE (the old ones)")
        seconds = None if older_than is None else checked_age("older_than", older_than)
        row = await self._complete_batch(batch)
        if ids is None:
            before = None if seconds is None else await self._store.now() - seconds
            items = await self._store.select(row.batch_id, Selection((Status.PENDING,), before=before))
        else:
            items = await select_ids(self._store, row, ids)
        return await change_items(self._store, row, items, Change.CANCEL, self._reporter(on_progress))

    async def retry(
        self, ids: Iterable[str] | None = None, batch: str | None = None, *, failed: bool = False, error: str | None = None,
        everything: bool = False, on_progress: OnProgress | None = None,
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
        return await items.retry(
            self._store, await self._complete_batch(batch), ids, statuses, error, self._reporter(on_progress)
        )

    async def rerun(
        self, ids: Iterable[str] | None = None, batch: str | None = None, *, status: Statuses | None = None,
        error: str | None = None, everything: bool = False, dry_run: bool = False,
        on_progress: OnProgress | None = None,
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
        statuses, row = rerun_statuses_of(status), await self._complete_batch(batch)
        return await items.rerun(self._store, row, ids, statuses, error, self._reporter(on_progress), dry_run=dry_run)

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
        return await recovery.recover_workers(self._store, self._clock, named, row)

    async def stop(self, batch: str | None = None, *, now: bool = False, wait: Duration = 60.0) -> StopOutcome:
        """Stop the runs and workers of the file, wherever they were started, and wait up to ``wait`` (60 s) for their end.

        Without a ``batch``, those of all batches are stopped. The effect is that of one Ctrl-C in each process: running
        handlers finish, and the other claimed items are released. With ``now`` it is that of two: the handlers are cancelled,
        and their items are released with the attempt refunded. A Runner inside a service is not stopped, and with a ``batch``
        a worker that also has other batches is not stopped; ``StopOutcome.left`` has them. A cancellation ends the waiting,
        not the stop.
        """
        seconds = checked_age("wait", wait)
        if batch is not None:
            await self._batch(batch)
        how = Stop.CANCEL if now else Stop.DRAIN
        outcome = await stop_workers(self._store, self._clock, batch, how, timeout=seconds)
        return StopOutcome(*(_stopping_workers(rows) for rows in outcome))


def _stopping_workers(rows: Sequence[WorkerRow]) -> list[StoppingWorker]:
    return [StoppingWorker(row.worker_id, row.host, row.pid, row.role, list(row.batches)) for row in rows]
