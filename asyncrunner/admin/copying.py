"""Copy batches from one store to another, whole or resumable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asyncrunner.admin.read_models import Copied, Progress
from asyncrunner.admin.status import workers_of
from asyncrunner.backends import full_location, open_copy_source, open_copy_target, shown_location
from asyncrunner.errors import ConfigurationError
from asyncrunner.store.copying.contract import CopySource, CopyTarget, check_begun_by
from asyncrunner.store.copying.incomplete import CopyCommand
from asyncrunner.store.copying.rows import CopiedBatch, Totals
from asyncrunner.store.copying.walk import END, page_behind
from asyncrunner.text.escaping import counted, safe_text

if TYPE_CHECKING:
    from asyncrunner.admin.opened_file import Reporter
    from asyncrunner.domain.clock import Clock

_STATES: Final = ("pending", "completed", "failed", "cancelled")


async def copy_batches(
    source_location: str, target_location: str, names: Sequence[str] | None, clock: Clock, report: Reporter
) -> list[Copied]:
    """Copy the batches with those names, or all, one after the other; see ``Control.copy``.

    Every batch is checked before the first one is copied.
    """
    if _resolved(source_location) == _resolved(target_location):
        raise ConfigurationError(f"{shown_location(target_location)} is both the source and the target; give another target")
    source, target = open_copy_source(source_location, clock), open_copy_target(target_location, clock)
    await source.open()
    try:
        batches = [
            await _copied_batch(source, row.batch_id, row.name)
            for row in await source.batches()
            if names is None or row.name in names
        ]
        for batch in batches:
            await _check_unserved(source, batch.name)
        await target.open()
        try:
            command = CopyCommand(shown_location(full_location(source_location)), target.location, names or ())
            return await _copy_all(source, target, command, batches, report)
        finally:
            await target.close()
    finally:
        await source.close()


async def _copy_all(
    source: CopySource, target: CopyTarget, command: CopyCommand, batches: Sequence[CopiedBatch], report: Reporter
) -> list[Copied]:
    for batch in batches:
        state = await target.find_copy(batch.name)
        if state is not None:
            check_begun_by(state, batch.name, batch.identity, command.source, target.location)
    return [await _copy_one(source, target, command, batch, report) for batch in batches]


async def _copied_batch(source: CopySource, batch_id: int, name: str) -> CopiedBatch:
    batch = await source.copied_batch(batch_id)
    if batch is None:
        raise ConfigurationError(f"{source.location}: the batch {safe_text(name)!r} was deleted meanwhile")
    if await source.is_incomplete_copy(batch_id):
        raise ConfigurationError(
            f"{source.location}: the batch {safe_text(name)!r} is itself a copy that is not complete: {batch.stopped or 'paused'}"
        )
    return batch


async def _check_unserved(source: CopySource, name: str) -> None:
    workers = workers_of(name, await source.workers(), await source.now())
    if workers:
        first = workers[0]
        raise ConfigurationError(
            f"{source.location}: {counted(len(workers), 'live worker')} may change the batch {safe_text(name)!r} meanwhile, "
            f"such as process {first.pid} on {safe_text(first.host, limit=80)}; stop them first, for example with `asyncrunner "
            f"stop --db {source.location}`, then repeat the command"
        )


async def _copy_one(source: CopySource, target: CopyTarget, command: CopyCommand, batch: CopiedBatch, report: Reporter) -> Copied:
    state = await target.begin_copy(batch, command)
    check_begun_by(state, batch.name, batch.identity, command.source, target.location)
    if state.finished_at is not None:
        return _copied(batch.name, await target.copy_totals(state.batch_id), copied_before=state.finished_at)
    reached, done = state.reached, state.items
    (counts,) = [each.counts for each in (await source.snapshot([batch.batch_id])).batches]
    while reached != END:
        page = await page_behind(source, batch.batch_id, reached)
        await target.store_page(state.batch_id, reached, page)
        reached = page.reached
        done += len(page.items)
        report(done, Progress(done, max(counts.total, done)))
    await _check_unserved(source, batch.name)
    newest = await _copied_batch(source, batch.batch_id, batch.name)
    totals = await target.copy_totals(state.batch_id)
    problem = _difference(await source.copy_totals(batch.batch_id), totals, source.location, target.location)
    if problem is None:
        await target.finish_copy(state.batch_id, newest)
    return _copied(batch.name, totals, problem=problem)


def _difference(source: Totals, target: Totals, source_location: str, target_location: str) -> str | None:
    """Return how the totals differ; None if they agree. Items that clients have submitted to the target are no error."""
    if target.pending >= source.pending and target._replace(pending=source.pending) == source:
        return None
    differences = [
        f"{name}: {before:,.0f} in the source, {after:,.0f} in the target"
        for name, before, after in zip(Totals._fields, source, target, strict=True)
        if before != after
    ]
    return (
        f"{source_location} or {target_location} was changed during the copy ({'; '.join(differences)}). The batch stays paused "
        "in the target; delete its items, its failures and the batch there, and copy it again"
    )


def _copied(name: str, totals: Totals, *, copied_before: str | None = None, problem: str | None = None) -> Copied:
    items = {state: getattr(totals, state) for state in _STATES if getattr(totals, state)}
    return Copied(name, items, totals.failures, copied_before, problem)


def _resolved(location: str) -> str:
    full = full_location(location)
    return full if "://" in full else str(Path(full).resolve())
