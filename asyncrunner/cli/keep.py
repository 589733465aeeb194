"""``export``, ``purge``, ``backup`` and ``check``: what is taken out of a file, what is taken away, and whether all is well."""

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
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to, a new file; - for stdout.")] = "-",
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    status: Annotated[
        list[str] | None, typer.Option(envvar=env("status"), help="Only items in this state; may be repeated. [default: all]")
    ] = None,
    item_format: Annotated[
        str | None,
        typer.Option(
            "--format", envvar=env("export_format"), help=f"{', '.join(FORMATS)}. [default: by the file's name, else jsonl]"
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", envvar=env("json"), help="Say how many it were as JSON, on stderr if the items go to stdout."),
    ] = False,
) -> None:
    """Export the items of a batch with payloads, results and errors, in input order.

    Streams, also while workers run: an item is as it stands when it is read. A file is made for its owner only, under its name
    only when it is whole, and never in place of another. In CSV a text that a spreadsheet would run as a formula gets an
    apostrophe in front. Parquet needs pip install 'asyncrunner[parquet]'.
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
        raise AsyncRunnerError(f"the export could not be written ({error.strerror}); nothing was changed") from error
    _tell_export(count, target, as_json=as_json)


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


def _tell_export(count: int, target: Path | None, *, as_json: bool) -> None:
    if not as_json:
        say(f"{counted(count, 'item')} exported" + ("" if target is None else f" to {safe_text(target)}"))
    elif target is None:
        say(f'{{"items":{count}}}')
    else:
        print_json({"file": str(target), "items": count})


def purge(
    before: Annotated[
        str | None,
        typer.Option(envvar=env("before"), help="Those that ended longer ago (30d, 12h), or before a date. Required."),
    ] = None,
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    status: Annotated[
        list[str] | None,
        typer.Option(envvar=env("purge_status"), help="completed, failed or cancelled; may be repeated. [default: completed]"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", envvar=env("dry_run"), help="Only count.")] = False,
    vacuum: Annotated[
        bool,
        typer.Option(
            "--vacuum", envvar=env("vacuum"), help="Then write the file anew, so that it is smaller; no worker may live."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete items that are done, with the records of their failures.

    In small transactions, between which workers go on. What was deleted is room that new items use; the file itself becomes
    smaller only with --vacuum. An item that is deleted and given again runs again.
    """
    if before is None:
        raise ConfigurationError("say how old: --before 30d deletes what ended longer ago")
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
    verb = "would be deleted" if dry_run else "deleted"
    print_lines([f"{safe_text(purged.batch)}: items that ended before {purged.before[:19]} UTC, {verb}: {counts}"])
    if size is not None:
        print_lines([f"the file has {size / 1e6:,.1f} MB now"])
    elif not dry_run and purged.items:
        say(f"the file has room of {purged.free_bytes / 1e6:,.1f} MB for new items; --vacuum returns it when nobody works")


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy, a new file.", show_default=False)],
    db: Db = Path(DEFAULT_DB),
    batch: Annotated[
        str | None,  # not ASYNCRUNNER_BATCH: what is set for run must not make a backup lack the rest
        typer.Option("--batch", "-b", envvar=env("backup_batch"), help="Only this batch. [default: all]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy a file as it is at this moment, while workers run.

    The copy is for its owner only and is under its name only when it is whole. It may be run on, anywhere: no worker is in it,
    and what they hold is pending there. With --batch, nothing of the others is in it.
    """
    size = ask(db, lambda control: control.backup(file, batch))
    if as_json:
        print_json({"file": str(file), "batch": batch, "bytes": size})
    else:
        what = "" if batch is None else f"{safe_text(batch)} alone, "
        print_lines([f"{safe_text(file)}: {what}{size / 1e6:,.1f} MB"])


def check(
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    max_failed: Annotated[int, typer.Option(envvar=env("max_failed"), help="So many failed items a batch are all right.")] = 0,
    max_pending_age: Annotated[
        str | None,
        typer.Option(envvar=env("max_pending_age"), help="So long may an item wait that may run (15m, 12h). [default: for ever]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether a batch needs a person; for monitoring and cron.

    It does if there is work and no live worker, if a guardrail stopped it, if more items have failed than --max-failed, or if the
    oldest item that may run has been waiting for longer than --max-pending-age. Only reads. Exit code 0: all is well, 1: a person
    is needed, 2: usage, or no file that could be looked at.
    """
    longest = None if max_pending_age is None else age(max_pending_age, option="--max-pending-age")
    problems = ask(db, lambda control: control.check(batch, max_failed=max_failed, max_pending_age=longest))
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
        print_lines(["nothing needs a person"])
    raise typer.Exit(1 if problems else 0)
