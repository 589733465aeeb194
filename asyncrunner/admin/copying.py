"""Copy batches from one store to another, whole or resumable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncrunner.admin.read_models import Copied, DeletedCopy, Progress
from asyncrunner.admin.status import FRESH_SECONDS, why_incomplete, workers_of
from asyncrunner.backends import full_location, open_copy_source, open_copy_target, shown_location
from asyncrunner.errors import ConfigurationError, StoreError
from asyncrunner.store.batches import LargeChange
from asyncrunner.store.copying.contract import RESTART, CopySource, CopyState, CopyTarget, TakenKey, check_begun_by, other_copy
from asyncrunner.store.copying.incomplete import CopyCommand
from asyncrunner.store.copying.rows import CopiedBatch, Totals
from asyncrunner.store.copying.walk import END, page_behind
from asyncrunner.text.escaping import counted, safe_text, shell_word

if TYPE_CHECKING:
    from asyncrunner.admin.opened_file import Reporter
    from asyncrunner.domain.clock import Clock

_STATES: Final = ("pending", "completed", "failed", "cancelled")
_DISCARDED: Final = 64  # items that the first transaction of a deletion deletes


class CopySteps(NamedTuple):
    """What a copy calls after each step and before a deletion, and whether it deletes incomplete copies first."""

    report: Reporter
    on_restart: Callable[[DeletedCopy], object] | None
    restart: bool


class _Copy(NamedTuple):
    source: CopySource
    target: CopyTarget
    command: CopyCommand
    steps: CopySteps


async def copy_batches(
    source_location: str, target_location: str, names: Sequence[str] | None, clock: Clock, steps: CopySteps
) -> list[Copied]:
    """Copy the batches with those names, or all, one after the other; see ``Control.copy``.

    Every batch is checked before the first one is copied.
    """
    if _resolved(source_location) == _resolved(target_location):
        raise ConfigurationError(f"{shown_location(target_location)} is both the source and the target; give another target")
    source, target = open_copy_source(source_location, clock), open_copy_target(target_location, clock)
    await source.open()
    try:
        rows = [row for row in await source.batches() if names is None or row.name in names]
        for row in rows:
            reason = why_incomplete(row, source.location)
            if reason is not None:
                raise ConfigurationError(
                    f"{source.location}: the batch {safe_text(row.name)!r} is itself a copy that is not complete: {reason}"
                )
            await _check_unserved(source, row.name)
        batches = [await _copied_batch(source, row.batch_id, row.name) for row in rows]
        await target.open()
        try:
            command = CopyCommand(shown_location(full_location(source_location)), target.location, names or ())
            return await _copy_all(_Copy(source, target, command, steps), batches)
        finally:
            await target.close()
    finally:
        await source.close()


async def _copy_all(copy: _Copy, batches: Sequence[CopiedBatch]) -> list[Copied]:
    for batch in batches:
        state = await copy.target.find_copy(batch.name)
        if state is not None:
            check_begun_by(state, batch, copy.command, restart=copy.steps.restart)
    return [await _copy_one(copy, batch) for batch in batches]


async def _copied_batch(source: CopySource, batch_id: int, name: str) -> CopiedBatch:
    batch = await source.copied_batch(batch_id)
    if batch is None:
        raise ConfigurationError(f"{source.location}: the batch {safe_text(name)!r} was deleted meanwhile")
    return batch


async def _check_unserved(source: CopySource, name: str) -> None:
    workers = workers_of(name, await source.workers(), await source.now())
    if not workers:
        return
    stop = f"`asyncrunner stop --db {shell_word(source.location)}`"
    alive = [worker for worker in workers if worker.alive is True]
    first = (alive or workers)[0]
    process = f"process {first.pid} on {safe_text(first.host, limit=80)}"
    if alive:
        raise ConfigurationError(
            f"{source.location}: {counted(len(alive), 'live worker')} may change the batch {safe_text(name)!r} meanwhile, "
            f"such as {process}; stop them first, for example with {stop}, then repeat the command"
        )
    seconds = math.ceil(max(FRESH_SECONDS - worker.heartbeat_age for worker in workers))
    raise ConfigurationError(
        f"{source.location}: {counted(len(workers), 'worker')} of the batch {safe_text(name)!r} may still be alive, such as "
        f"{process}: nothing holds its lock, but its newest heartbeat is younger than {FRESH_SECONDS:g} s. If it was killed, try "
        f"again in {counted(max(seconds, 1), 'second')}; if it runs, stop it first, for example with {stop}"
    )


async def _copy_one(copy: _Copy, batch: CopiedBatch) -> Copied:
    source, target, command = copy.source, copy.target, copy.command
    deleted = await _discard(copy, batch.name)
    state = await target.begin_copy(batch, command)
    check_begun_by(state, batch, command, restart=False)
    if state.reached == RESTART:  # another command has begun to delete the copy
        raise other_copy(target.location)
    if state.finished_at is not None:
        return _copied(batch.name, await target.copy_totals(state.batch_id), copied_before=state.finished_at)
    await _copy_pages(copy, batch, state)
    await _check_unserved(source, batch.name)
    newest = await _copied_batch(source, batch.batch_id, batch.name)
    totals, stored = await source.copy_totals(batch.batch_id), await target.copy_totals(state.batch_id)
    latest = await target.find_copy(batch.name)
    added = 0 if latest is None else latest.added
    problem = _difference(totals, stored, command)
    if problem is None:
        await target.finish_copy(state.batch_id, newest)
    else:
        totals = stored._replace(pending=max(stored.pending - added, 0))
    return _copied(batch.name, totals, problem=problem, added=added, deleted=deleted)


async def _copy_pages(copy: _Copy, batch: CopiedBatch, state: CopyState) -> None:
    reached, done = state.reached, state.copied
    (counts,) = [each.counts for each in (await copy.source.snapshot([batch.batch_id])).batches]
    while reached != END:
        page = await page_behind(copy.source, batch.batch_id, reached)
        try:
            await copy.target.store_page(state.batch_id, reached, page)
        except TakenKey as taken:
            raise StoreError(
                f"{copy.target.location}: another program added the item {safe_text(taken.key, limit=80)!r} to the batch before "
                f"its copy was complete. Stop that program; `{copy.command.text(restart=True)}` deletes the incomplete copy with "
                "that item, and copies again"
            ) from None
        reached = page.reached
        done += len(page.items)
        copy.steps.report(done, Progress(done, max(counts.total, done)))


async def _discard(copy: _Copy, name: str) -> int:
    """Delete an incomplete copy if a restart is requested or was interrupted; return how many items were deleted."""
    target, steps = copy.target, copy.steps
    state = await target.find_copy(name)
    if state is None or not state.is_incomplete or not (steps.restart or state.reached == RESTART):
        return 0
    if steps.on_restart is not None:
        steps.on_restart(DeletedCopy(name, state.source or "", state.items, state.added))
    await target.begin_restart(state.batch_id)
    large, done = LargeChange(_DISCARDED), 0
    while True:
        with large.measured():
            deleted = await target.discard_items(state.batch_id, large.step)
        if not deleted:
            break
        done += deleted
        steps.report(done, Progress(done, max(state.items, done)))
    await target.discard_batch(state.batch_id)
    return done


def _difference(source: Totals, target: Totals, command: CopyCommand) -> str | None:
    """Return how the totals differ; None if they agree. Items that clients have submitted to the target are no error."""
    if target.pending >= source.pending and target._replace(pending=source.pending) == source:
        return None
    differences = [
        f"{name}: {before:,.0f} in the source, {after:,.0f} in the target"
        for name, before, after in zip(Totals._fields, source, target, strict=True)
        if before != after
    ]
    return (
        f"{command.source} or {command.target} was changed during the copy ({'; '.join(differences)}). The batch stays paused "
        f"in the target; `{command.text(restart=True)}` deletes it there and copies it again"
    )


def _copied(
    name: str, totals: Totals, *, copied_before: str | None = None, problem: str | None = None, added: int = 0, deleted: int = 0
) -> Copied:
    items = {state: getattr(totals, state) for state in _STATES if getattr(totals, state)}
    return Copied(name, items, totals.failures, copied_before, problem, added, deleted)


def _resolved(location: str) -> str:
    full = full_location(location)
    return full if "://" in full else str(Path(full).resolve())
