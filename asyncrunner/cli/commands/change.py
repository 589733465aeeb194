"""``retry``, ``rerun``, ``cancel``, ``purge``, ``pause``, ``resume``, ``set``, ``recover``: change a batch and its workers."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

from asyncrunner.admin.arguments import statuses_of
from asyncrunner.admin.control import Control
from asyncrunner.admin.opened_file import OnProgress
from asyncrunner.admin.read_models import Changed, Purged
from asyncrunner.admin.status import lives
from asyncrunner.cli.command import Argument, BatchOption, Db, Json, Option, command, command_text, env
from asyncrunner.cli.completers import item_ids, one_of
from asyncrunner.cli.session import end_without_ids, print_json, print_lines, print_note, read_ids, with_control, with_progress
from asyncrunner.domain import DEFAULT_DB
from asyncrunner.domain.item import TERMINAL, Status
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.durations import age, moment_before
from asyncrunner.text.escaping import counted, safe_text, shell_word


@command(examples=["retry welcome-42 welcome-43", "retry --error 'ConnectionError'", "retry --failed --batch shop.jobs:welcome"])
def retry(
    ids: Annotated[
        list[str] | None,
        Argument("ID", help="Item ids, or - to read one id per line from stdin; no line is no error.", complete=item_ids),
    ] = None,
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    failed: Annotated[bool, Option("--failed", envvar=env("failed"), help="All failed items.")] = False,
    error: Annotated[
        str | None,
        Option(envvar=env("error"), help="Failed items whose error contains this text (* matches anything) or fingerprint."),
    ] = None,
    everything: Annotated[bool, Option("--all", envvar=env("all"), help="All failed and cancelled items.")] = False,
    as_json: Json = False,
) -> None:
    """Make failed or cancelled items pending again, with all their attempts, due immediately.

    Give ids, --failed, --error or --all. Running workers claim the items immediately. If one of the ids is of an item
    that is processing or completed, the command is refused and nothing is changed; --all leaves such items as they are.
    To run completed items once more, use `rerun`.
    With several batches, --batch is required.
    """
    named = read_ids(ids)
    if [named is not None, failed, error is not None, everything].count(True) != 1:
        raise ConfigurationError("give exactly one of ids, --failed, --error PATTERN, --all")

    end_without_ids(named, {"batch": batch, "changed": 0, "unchanged": 0} if as_json else None)

    async def change(control: Control, on_progress: OnProgress) -> tuple[Changed, bool]:
        changed = await control.retry(named, batch, failed=failed, error=error, everything=everything, on_progress=on_progress)
        return changed, any(lives(worker) for worker in await control.workers())

    changed, has_worker = with_progress(db, change)
    if as_json:
        print_json(changed)
    else:
        rest = f", {changed.unchanged:,} already pending or changed concurrently" if changed.unchanged else ""
        print_lines([f"{safe_text(changed.batch)}: {counted(changed.changed, 'item')} pending again{rest}"])
    _note_without_worker(changed, has_worker)


@command(examples=["rerun welcome-42", "rerun --status completed --batch shop.jobs:welcome --dry-run"])
def rerun(
    ids: Annotated[
        list[str] | None,
        Argument("ID", help="Item ids, or - to read one id per line from stdin; no line is no error.", complete=item_ids),
    ] = None,
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    status: Annotated[
        list[str] | None,
        Option(
            envvar=env("rerun_status"),
            help="completed, failed, cancelled or processing; may be repeated.",
            complete=one_of(each for each in Status if each is not Status.PENDING),
        ),
    ] = None,
    error: Annotated[
        str | None,
        Option(envvar=env("error"), help="Failed items whose error contains this text (* matches anything) or fingerprint."),
    ] = None,
    everything: Annotated[bool, Option("--all", envvar=env("all"), help="All items that are not pending.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", envvar=env("dry_run"), help="Only count the items.")] = False,
    as_json: Json = False,
) -> None:
    """Run items that are done once more, with the payload that they have and all their attempts, due immediately.

    Give ids, --status, --error or --all. Each item keeps its result until the new one is committed, also if the new
    attempt fails. A running item runs once more after its attempt. `retry` is for failed and cancelled items only: it
    keeps what the handler saved with current_attempt().save(), and rerun starts without it. To run a batch again because
    the handler has changed, give `run` a new --batch-version instead: it continues after a crash.
    With several batches, --batch is required.
    """
    named = read_ids(ids)
    if [named is not None, bool(status), error is not None, everything].count(True) != 1:
        raise ConfigurationError("give exactly one of ids, --status STATUS, --error PATTERN, --all")

    end_without_ids(named, {"batch": batch, "changed": 0, "unchanged": 0, "dry_run": dry_run} if as_json else None)

    async def change(control: Control, on_progress: OnProgress) -> tuple[Changed, bool]:
        changed = await control.rerun(
            named, batch, status=status, error=error, everything=everything, dry_run=dry_run, on_progress=on_progress
        )
        return changed, any(lives(worker) for worker in await control.workers())

    changed, has_worker = with_progress(db, change)
    if as_json:
        print_json({"batch": changed.batch, "changed": changed.changed, "unchanged": changed.unchanged, "dry_run": dry_run})
    else:
        rest = f", {changed.unchanged:,} already pending or changed concurrently" if changed.unchanged else ""
        verb = "would run" if dry_run else "run"
        print_lines([f"{safe_text(changed.batch)}: {counted(changed.changed, 'item')} {verb} again{rest}"])
    _note_without_worker(changed, has_worker or dry_run)


def _note_without_worker(changed: Changed, has_worker: bool) -> None:
    if changed.changed and not has_worker:
        print_note("no worker is alive: start `asyncrunner run` or `asyncrunner work` to process the items")


@command(examples=["cancel welcome-42", "cancel --pending", "cancel --older-than 7d"])
def cancel(
    ids: Annotated[
        list[str] | None,
        Argument("ID", help="Item ids, or - to read one id per line from stdin; no line is no error.", complete=item_ids),
    ] = None,
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    pending: Annotated[bool, Option("--pending", envvar=env("pending"), help="All pending items.")] = False,
    older_than: Annotated[
        str | None,
        Option(envvar=env("older_than"), help="All pending items that were added longer ago than this (90s, 15m, 12h, 30d)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Cancel items that are pending or processing; `retry` makes them pending again.

    Give ids, --pending or --older-than; `stuck --older-than 1h --ids | asyncrunner cancel -` cancels items that have been
    processing for a long time. A running handler is cancelled within a second and its outcome is discarded. Finished items
    stay as they are. With several batches, --batch is required.
    """
    named = read_ids(ids)
    if (named is not None) == (pending or older_than is not None):
        raise ConfigurationError(
            "give either ids, or --pending to cancel all pending items, or --older-than AGE for the old ones"
        )
    end_without_ids(named, {"batch": batch, "changed": 0, "unchanged": 0} if as_json else None)
    seconds = None if older_than is None else age(older_than, option="--older-than")
    changed = with_progress(
        db,
        lambda control, on_progress: control.cancel(named, batch, pending=pending, older_than=seconds, on_progress=on_progress),
    )
    if as_json:
        print_json(changed)
    else:
        rest = f", {changed.unchanged:,} already finished" if changed.unchanged else ""
        print_lines([f"{safe_text(changed.batch)}: {counted(changed.changed, 'item')} cancelled{rest}"])


@command(examples=["purge --before 30d --dry-run", "purge --before 30d --status completed --status cancelled"])
def purge(
    before: Annotated[
        str | None,
        Option(
            envvar=env("before"), help="Only items that ended longer ago than this (30d, 12h), or before this date. Required."
        ),
    ] = None,
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    status: Annotated[
        list[str] | None,
        Option(
            envvar=env("purge_status"),
            help="completed, failed or cancelled; may be repeated. [default: completed]",
            complete=one_of(sorted(TERMINAL)),
        ),
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", envvar=env("dry_run"), help="Only count the items.")] = False,
    vacuum: Annotated[
        bool,
        Option("--vacuum", envvar=env("vacuum"), help="Then rewrite the file to make it smaller; no worker may be alive."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete finished items and their failure records.

    Deletes in small transactions, so that workers continue. New items reuse the freed space; the file itself becomes
    smaller only with --vacuum. A deleted item that is added again runs again. With several batches, --batch is
    required.
    """
    if before is None:
        raise ConfigurationError("--before is missing; for example, --before 30d deletes items that ended more than 30 days ago")
    now = time.time()
    moment = datetime.fromtimestamp(moment_before(before, option="--before", now=now), UTC)
    statuses = statuses_of(status or [Status.COMPLETED])

    async def clear(control: Control, on_progress: OnProgress) -> tuple[Purged, int | None]:
        if vacuum and not dry_run:
            await control.check_unused()
        purged = await control.purge(moment, batch, status=statuses, dry_run=dry_run, on_progress=on_progress)
        return purged, await control.vacuum() if vacuum and not dry_run else None

    purged, size = with_progress(db, clear)
    if as_json:
        print_json({"purged": purged, "file_bytes": size})
        return
    counts = ", ".join(f"{count:,} {state}" for state, count in sorted(purged.items.items())) or "none"
    verb = "would delete" if dry_run else "deleted"
    print_lines([f"{safe_text(purged.batch)}: {verb} items that ended before {purged.before[:19]} UTC: {counts}"])
    if size is not None:
        print_lines([f"the file now has {size / 1e6:,.1f} MB"])
    elif not dry_run and purged.items and purged.free_bytes:
        print_note(
            f"{purged.free_bytes / 1e6:,.1f} MB of the file are free for new items; --vacuum returns them when no worker is alive"
        )


@command(examples=["pause --batch shop.jobs:welcome"])
def pause(db: Db = DEFAULT_DB, batch: BatchOption = None, as_json: Json = False) -> None:
    """Pause a batch in all processes until `resume`: no more items start.

    Workers react within a second: running handlers finish, and claimed items that have not started are released. A
    pause survives restarts. With several batches, --batch is required.
    """
    is_changed = with_control(db, lambda control: control.pause(batch))
    if as_json:
        print_json({"paused": True, "changed": is_changed})
    else:
        words = "resume" if batch is None else f"resume --batch {shell_word(batch)}"
        print_lines([f"paused; continue with `{command_text(words, db)}`" if is_changed else "batch was already paused"])


@command(examples=["resume --batch shop.jobs:welcome"])
def resume(db: Db = DEFAULT_DB, batch: BatchOption = None, as_json: Json = False) -> None:
    """Resume a batch: end a pause, a stop by --max-failures or --deadline, and a cool-down.

    Running workers continue immediately. With several batches, --batch is required.
    """
    is_changed = with_control(db, lambda control: control.resume(batch))
    if as_json:
        print_json({"paused": False, "changed": is_changed})
    else:
        print_lines(["resumed" if is_changed else "batch was not paused or stopped"])


@command(examples=["set concurrency 5", "set concurrency default"])
def set_concurrency(
    number: Annotated[
        str,
        Argument("N", help="Number of concurrent handlers in each worker, or default for the program's own value."),
    ],
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    as_json: Json = False,
) -> None:
    """Set how many handlers of a batch run concurrently in each worker.

    Running workers react within a second; if the number gets smaller, running handlers finish. The number also applies
    to workers that start later and overrides their --concurrency, until it is set to default. With several batches,
    --batch is required.
    """
    if number != "default" and not (number.isascii() and number.isdigit() and int(number[:9]) > 0):
        raise ConfigurationError(f"concurrency {number!r}: give a whole number of at least 1, or default")
    concurrency = None if number == "default" else int(number)
    with_control(db, lambda control: control.set_concurrency(concurrency, batch))
    if as_json:
        print_json({"concurrency": concurrency})
    else:
        print_lines(
            ["concurrency is set to default" if concurrency is None else f"concurrency is set to {concurrency:,} in each worker"]
        )


@command(examples=["recover --db jobs.db"])
def recover(
    workers: Annotated[
        list[str] | None,
        Argument("WORKER", help="Live but hung workers to recover from. [default: dead workers]"),
    ] = None,
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    as_json: Json = False,
) -> None:
    """Recover the items of dead workers: they become pending, and the attempt counts as a crash.

    A running worker recovers such items automatically, so use this command if no worker runs. A worker
    without a lock file, for example because the lock files were deleted, is watched for 5 s: it is dead if its
    heartbeat does not change. So is a worker of a server whose session has ended. A worker that you name is treated as
    dead: when it responds again, its handlers are cancelled and their outcomes are discarded. With several batches, the
    items of all are recovered. With --batch, only workers that hold items of that batch are recovered, with all their
    items, also those of other batches, and only the orphaned items of that batch.
    """
    recovered = with_control(db, lambda control: control.recover(workers or (), batch))
    if as_json:
        print_json({"recovered": recovered})
    elif recovered:
        print_lines(
            [
                f"recovered {counted(items, 'item')} of worker {safe_text(worker, limit=64)}"
                if worker
                else f"recovered {counted(items, 'orphaned item')}"
                for worker, items in recovered.items()
            ]
        )
    else:
        print_lines(
            [f"{'' if batch is None else f'{safe_text(batch)}: '}nothing to recover: no worker is dead, and no item is orphaned"]
        )
