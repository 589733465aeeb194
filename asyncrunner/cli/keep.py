"""``export``, ``purge``, ``backup`` and ``check``: export or delete items, copy a file, check the health of its batches."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from asyncrunner.asking import age, moment_before, statuses_of
from asyncrunner.cli.calling import ask, print_json, print_lines, say
from asyncrunner.cli.options import BatchOption, Db, Json, env
from asyncrunner.control import Control
from asyncrunner.errors import AsyncRunnerError, ConfigurationError
from asyncrunner.exporting import FORMATS, ItemWriter, format_of, writer_of
from asyncrunner.item import Status
from asyncrunner.settings import DEFAULT_DB
from asyncrunner.sqlite.operating import draft_of, publish
from asyncrunner.text import counted, safe_text
from asyncrunner.views import Purged

__all__ = ["backup", "check", "export", "purge"]


def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Path of a new file, or - for stdout.")] = "-",
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    status: Annotated[
        list[str] | None, typer.Option(envvar=env("status"), help="Only items with this status; may be repeated. [default: all]")
    ] = None,
    item_format: Annotated[
        str | None,
        typer.Option(
            "--format", envvar=env("export_format"), help=f"{', '.join(FORMATS)}. [default: by the file name, else jsonl]"
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", envvar=env("json"), help="Print the number of items as JSON, on stderr if the items go to stdout."
        ),
    ] = False,
) -> None:
    """Export the items of a batch with payloads, results and errors, in input order.

    Streams, also while workers run: each item is exported as it is when it is read. The new file is readable only by its owner,
    gets its name only when it is complete, and never replaces a file. In CSV, text that a spreadsheet would run as a formula
    gets an apostrophe in front. Parquet needs pip install 'asyncrunner[parquet]'.
    """
    target = None if file == "-" else Path(file)
    statuses = None if not status else statuses_of(status)

    async def write(control: Control, writer: ItemWriter) -> int:
        count = 0
        async for page in control.export_pages(batch, status=statuses):
            writer.write(page)
            count += len(page)
        writer.close()
        return count

    try:
        if target is None:
            sys.stdout.flush()
            writer = writer_of(format_of(item_format, None), sys.stdout.buffer, is_terminal=sys.stdout.isatty())
            count = ask(db, lambda control: write(control, writer))
            sys.stdout.buffer.flush()
        else:
            count = _export_to(target, item_format, lambda writer: ask(db, lambda control: write(control, writer)))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise AsyncRunnerError(f"the export could not be written ({error.strerror}); the items are unchanged") from error
    _report_export(count, target, as_json=as_json)


def _export_to(target: Path, item_format: str | None, write: Callable[[ItemWriter], int]) -> int:
    draft = draft_of(target)
    try:
        with draft.open("wb") as out:
            count = write(writer_of(format_of(item_format, target), out))
            out.flush()
            os.fsync(out.fileno())
        publish(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return count


def _report_export(count: int, target: Path | None, *, as_json: bool) -> None:
    if not as_json:
        say(f"{counted(count, 'item')} exported" + ("" if target is None else f" to {safe_text(target)}"))
    elif target is None:
        say(f'{{"items":{count}}}')
    else:
        print_json({"file": str(target), "items": count})


def purge(
    before: Annotated[
        str | None,
        typer.Option(
            envvar=env("before"), help="Only items that ended longer ago than this (30d, 12h), or before this date. Required."
        ),
    ] = None,
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    status: Annotated[
        list[str] | None,
        typer.Option(envvar=env("purge_status"), help="completed, failed or cancelled; may be repeated. [default: completed]"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", envvar=env("dry_run"), help="Only count the items.")] = False,
    vacuum: Annotated[
        bool,
        typer.Option("--vacuum", envvar=env("vacuum"), help="Then rewrite the file to make it smaller; no worker may be alive."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete finished items and their failure records.

    Deletes in small transactions, so that workers continue. New items reuse the freed space; the file itself becomes smaller
    only with --vacuum. A deleted item that is added again runs again.
    """
    if before is None:
        raise ConfigurationError("--before is missing; for example, --before 30d deletes items that ended more than 30 days ago")
    now = time.time()
    moment = datetime.fromtimestamp(moment_before(before, option="--before", now=now), UTC)
    statuses = statuses_of(status or [Status.COMPLETED])

    async def clear(control: Control) -> tuple[Purged, int | None]:
        if vacuum and not dry_run:
            await control.check_unused()
        purged = await control.purge(moment, batch, status=statuses, dry_run=dry_run)
        return purged, await control.vacuum() if vacuum and not dry_run else None

    purged, size = ask(db, clear)
    if as_json:
        print_json({"purged": purged, "file_bytes": size})
        return
    counts = ", ".join(f"{count:,} {state}" for state, count in sorted(purged.items.items())) or "none"
    verb = "would delete" if dry_run else "deleted"
    print_lines([f"{safe_text(purged.batch)}: {verb} items that ended before {purged.before[:19]} UTC: {counts}"])
    if size is not None:
        print_lines([f"the file now has {size / 1e6:,.1f} MB"])
    elif not dry_run and purged.items:
        say(
            f"{purged.free_bytes / 1e6:,.1f} MB of the file are free for new items; --vacuum returns them when no worker is alive"
        )


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Path of the copy, a new file.", show_default=False)],
    db: Db = Path(DEFAULT_DB),
    batch: Annotated[
        str | None,  # not ASYNCRUNNER_BATCH: a variable that is set for run must not limit the backup to one batch
        typer.Option("--batch", "-b", envvar=env("backup_batch"), help="Only this batch. [default: all]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy a file as it is at this moment, while workers run.

    The copy is readable only by its owner and gets its name only when it is complete. It can be run anywhere: it contains no
    workers, and items that workers hold are pending in it. With --batch, the copy contains only that batch.
    """
    size = ask(db, lambda control: control.backup(file, batch))
    if as_json:
        print_json({"file": str(file), "batch": batch, "bytes": size})
    else:
        scope = "" if batch is None else f"only {safe_text(batch)}, "
        print_lines([f"{safe_text(file)}: {scope}{size / 1e6:,.1f} MB"])


def check(
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    max_failed: Annotated[int, typer.Option(envvar=env("max_failed"), help="Acceptable number of failed items per batch.")] = 0,
    max_pending_age: Annotated[
        str | None,
        typer.Option(
            envvar=env("max_pending_age"), help="Acceptable age of an item that is due to run (15m, 12h). [default: any]"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check whether a batch needs attention; for monitoring and cron.

    A batch needs attention if it has unfinished items and no worker is alive, if a guardrail stopped it, if more items have
    failed than --max-failed, or if an item that is due to run was added longer ago than --max-pending-age. Read-only. Exit code
    0: no problems, 1: a batch needs attention, 2: wrong usage, or the file cannot be read.
    """
    max_age = None if max_pending_age is None else age(max_pending_age, option="--max-pending-age")
    problems = ask(db, lambda control: control.check(batch, max_failed=max_failed, max_pending_age=max_age))
    if as_json:
        print_json({"ok": not problems, "problems": problems})
    elif problems:
        print_lines(
            [
                f"{each.check}: {'' if each.batch is None else f'{safe_text(each.batch)}: '}{safe_text(each.message, limit=500)}"
                for each in problems
            ]
        )
    else:
        print_lines(["no batch needs attention"])
    raise typer.Exit(1 if problems else 0)
