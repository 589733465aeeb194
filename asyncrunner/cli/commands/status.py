"""The command ``status``."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import nullcontext
from typing import Annotated, Final

import typer

from asyncrunner.admin.control import Control
from asyncrunner.cli.command import BatchOption, Db, Json, command, env
from asyncrunner.cli.render.status import alternate_screen, redraw, status_lines
from asyncrunner.cli.session import print_json, with_control
from asyncrunner.domain.options import DEFAULT_DB
from asyncrunner.errors import ConfigurationError

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

    Read-only; works while a run is active and takes as long for ten million items as for ten. With --watch on a
    terminal the display is redrawn in place; elsewhere, and if TERM is dumb, each update is a block of lines; with
    --json, one document per line.
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
                sys.stdout.write("\n".join(status_lines(status)) + ("\n\n" if watch else "\n"))
            sys.stdout.flush()
            if not watch:
                return
            await asyncio.sleep(interval)

    with alternate_screen(sys.stdout) if is_redrawn else nullcontext():
        with_control(db, show)
