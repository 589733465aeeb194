"""The commands ``status``, for people, and ``check``, for monitoring."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import nullcontext
from typing import Annotated, Final

import typer

from asyncrunner.admin.control import Control
from asyncrunner.cli.command import EXIT_FAILED, BatchOption, Db, Json, command, env
from asyncrunner.cli.render.status import alternate_screen, redraw, status_lines
from asyncrunner.cli.render.tables import terminal_width
from asyncrunner.cli.session import print_json, print_lines, with_control
from asyncrunner.domain.options import DEFAULT_DB
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.durations import age
from asyncrunner.text.escaping import safe_text

_MIN_INTERVAL_SECONDS: Final = 0.1


@command("status", "Show the status of the batches of a file.", "status --db jobs.db --watch", "status --json")
def show_status(
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    stuck_after: Annotated[
        float, typer.Option(envvar=env("stuck_after"), help="Seconds of processing after which an item is shown as stuck.")
    ] = 300.0,
    watch: Annotated[bool, typer.Option("--watch", "-w", envvar=env("watch"), help="Update the output until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(envvar=env("interval"), help="Seconds between updates of --watch.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Show the status of the batches of a file: counts, durations, rate, workers, stuck items, newest failures.

    With several batches, they are a table with a line for each: how many items wait, run, are completed and failed, the
    age of the oldest item that is due, the live workers that serve the batch, and why it starts no items. Without a
    live worker there is no rate and no time left. Read-only; works while a run is active and takes as long for ten
    million items as for ten. With --watch on a terminal the display is redrawn in place; elsewhere, and if TERM is
    dumb, each update is a block of lines; with --json, one document per line.
    """
    if not _MIN_INTERVAL_SECONDS <= interval <= 86400:
        raise ConfigurationError(f"--interval {interval:g}: give seconds, {_MIN_INTERVAL_SECONDS:g} or more")

    is_redrawn = watch and not as_json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    async def show(control: Control) -> None:
        while True:
            status = await control.status(batch, stuck_after=stuck_after)
            if as_json:
                print_json(status)
            elif is_redrawn:
                redraw(status, interval, sys.stdout)
            else:
                sys.stdout.write("\n".join(status_lines(status, terminal_width())) + ("\n\n" if watch else "\n"))
            sys.stdout.flush()
            if not watch:
                return
            await asyncio.sleep(interval)

    with alternate_screen(sys.stdout) if is_redrawn else nullcontext():
        with_control(db, show)


@command(
    "check",
    "Health check for monitoring: exits 1 if a batch needs attention.",
    "check --max-failed 100 --max-pending-age 15m",
)
def check(
    db: Db = DEFAULT_DB,
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

    A batch needs attention if it has unfinished items and no worker is alive, if a guardrail stopped it, if more items
    have failed than --max-failed, if an item that is due to run was added longer ago than --max-pending-age, or if an
    item whose workers died has run in isolation for a minute. With several batches, all are checked. Read-only. Exit
    code 0: no problems, 1: a batch needs attention, 2: wrong usage, or the file cannot be read.
    """
    max_age = None if max_pending_age is None else age(max_pending_age, option="--max-pending-age")
    problems = with_control(db, lambda control: control.check(batch, max_failed=max_failed, max_pending_age=max_age))
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
    raise typer.Exit(EXIT_FAILED if problems else 0)
