"""The command ``purge``."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

from asyncrunner.admin.arguments import statuses_of
from asyncrunner.admin.control import Control
from asyncrunner.admin.opened_file import OnProgress
from asyncrunner.admin.read_models import Purged
from asyncrunner.cli.command import BatchOption, Db, Json, Option, command, env
from asyncrunner.cli.completers import one_of
from asyncrunner.cli.session import print_json, print_lines, print_note, with_progress
from asyncrunner.domain import DEFAULT_DB
from asyncrunner.domain.item import TERMINAL, Status
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.durations import moment_before
from asyncrunner.text.escaping import safe_text


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
