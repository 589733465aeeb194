"""The command ``status``."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer

from asyncrunner.admin.control import Control
from asyncrunner.cli.options import BatchOption, Db, Json, env
from asyncrunner.cli.render.status import (
    CLEAR_BELOW,
    CLEAR_LINE,
    CURSOR_HOME,
    ENTER_ALTERNATE_SCREEN,
    LEAVE_ALTERNATE_SCREEN,
    MIN_INTERVAL_SECONDS,
    picture,
    status_lines,
)
from asyncrunner.cli.session import ask, print_json
from asyncrunner.domain.options import DEFAULT_DB
from asyncrunner.errors import ConfigurationError
from asyncrunner.store.read_models import FileStatus


def show_status(
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    stuck_after: Annotated[
        float, typer.Option(envvar=env("stuck_after"), help="Seconds of processing after which an item is shown as stuck.")
    ] = 300.0,
    watch: Annotated[bool, typer.Option("--watch", "-w", envvar=env("watch"), help="Update the output until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(envvar=env("interval"), help="Seconds between updates of --watch.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Show the status of the batches of a file: counts, durations, rate, workers, stuck items, newest failures.

    Read-only; works while a run is active and takes as long for ten million items as for ten. With --watch on a terminal the
    display is redrawn in place; elsewhere, and if TERM is dumb, each update is a block of lines; with --json, one document per
    line.
    """
    if not MIN_INTERVAL_SECONDS <= interval <= 86400:
        raise ConfigurationError(f"--interval {interval:g}: give seconds, {MIN_INTERVAL_SECONDS:g} or more")

    is_redrawn = watch and not as_json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    async def show(control: Control) -> None:
        while True:
            status = await control.status(batch, stuck_after=stuck_after)
            if as_json:
                print_json(status)
            elif is_redrawn:
                _draw(status, interval, sys.stdout)
            else:
                sys.stdout.write("\n".join(status_lines(status)) + ("\n\n" if watch else "\n"))
            sys.stdout.flush()
            if not watch:
                return
            await asyncio.sleep(interval)

    try:
        if is_redrawn:
            sys.stdout.write(ENTER_ALTERNATE_SCREEN)
        ask(db, show)
    finally:
        if is_redrawn:
            sys.stdout.write(LEAVE_ALTERNATE_SCREEN)
            sys.stdout.flush()


# --- the display that is redrawn -----------------------------------------------------------------------------------------


def _draw(status: FileStatus, interval: float, screen: TextIO) -> None:
    width, height = shutil.get_terminal_size()
    lines = picture(status, interval, width, height)
    screen.write(CURSOR_HOME + "".join(f"{line}{CLEAR_LINE}\r\n" for line in lines[:-1]) + lines[-1] + CLEAR_LINE + CLEAR_BELOW)
