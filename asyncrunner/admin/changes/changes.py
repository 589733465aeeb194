"""The part of ``Control`` that changes batches, items and workers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from asyncrunner.admin.arguments import Statuses, rerun_statuses_of
from asyncrunner.admin.changes import items, recovery
from asyncrunner.admin.changes.items import change_items, select_ids
from asyncrunner.admin.opened_file import OpenedFile
from asyncrunner.admin.read_models import Changed
from asyncrunner.domain.item import Status
from asyncrunner.errors import ConfigurationError
from asyncrunner.store.admin_protocol import Change, Selection
from asyncrunner.text.validation import checked_count, checked_ids

_MAX_CONCURRENCY: Final = 100_000


class Changes(OpenedFile):
    """The methods of ``Control`` that change batches, items and workers."""

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
        return await items.retry(self._store, await self._batch(batch), ids, statuses, error, self._progress)

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
        return await items.rerun(self._store, row, ids, statuses, error, self._progress, dry_run=dry_run)

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
