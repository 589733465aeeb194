"""The commands ``status``, for people, and ``check`` and ``metrics``, for monitoring."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import nullcontext
from typing import Annotated, Final

from asyncrunner.admin.inspection.inspection import Inspection
from asyncrunner.cli.command import EXIT_FAILED, BatchOption, Db, Exit, Json, MaxProcessingAge, Option, command, env
from asyncrunner.cli.completers import one_of
from asyncrunner.cli.render.sparkline import is_plain
from asyncrunner.cli.render.status import alternate_screen, redraw, status_lines
from asyncrunner.cli.render.tables import terminal_width
from asyncrunner.cli.session import print_json, print_lines, with_inspection
from asyncrunner.domain import DEFAULT_DB
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.cells import wrapped
from asyncrunner.text.durations import age
from asyncrunner.text.escaping import safe_text

_MIN_INTERVAL_SECONDS: Final = 0.1


@command(examples=["status --db jobs.db --watch", "status --json"])
def show_status(
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    stuck_after: Annotated[
        float, Option(envvar=env("stuck_after"), help="Seconds of processing after which an item is shown as stuck.")
    ] = 300.0,
    watch: Annotated[bool, Option("--watch", "-w", envvar=env("watch"), help="Update the output until Ctrl-C.")] = False,
    interval: Annotated[float, Option(envvar=env("interval"), help="Seconds between updates of --watch.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Show the status of the batches: counts, durations, rate, workers, stuck items, newest failures.

    With several batches, they are a table with a line for each: how many items wait, run, are completed and failed, the
    age of the oldest item that is due, the live workers that serve the batch, and why it starts no items. Of one batch,
    a line of bars shows the items that were completed in each of the last 60 minutes, the newest on the right. Without
    a live worker there is no rate and no time left. Read-only; works while a run is active and takes as long for ten
    million items as for ten. With --watch on a terminal the display is redrawn in place; elsewhere, and if TERM is
    dumb, each update is a block of lines; with --json, one document per line.
    """
    if not _MIN_INTERVAL_SECONDS <= interval <= 86400:
        raise ConfigurationError(f"--interval {interval:g}: give seconds, {_MIN_INTERVAL_SECONDS:g} or more")

    is_redrawn = watch and not as_json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    async def show(inspection: Inspection) -> None:
        while True:
            status = await inspection.status(batch, stuck_after=stuck_after)
            if as_json:
                print_json(status)
            elif is_redrawn:
                redraw(status, interval, sys.stdout)
            else:
                lines = status_lines(status, terminal_width(), plain=is_plain(sys.stdout))
                sys.stdout.write("\n".join(lines) + ("\n\n" if watch else "\n"))
            sys.stdout.flush()
            if not watch:
                return
            await asyncio.sleep(interval)

    with alternate_screen(sys.stdout) if is_redrawn else nullcontext():
        with_inspection(db, show)


@command(examples=["check --max-failed any --max-pending-age 15m --max-processing-age 1h", "check --probe liveness"])
def check(
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    max_failed: Annotated[
        str, Option(envvar=env("max_failed"), help="Acceptable number of failed items per batch, or any.")
    ] = "0",
    max_pending_age: Annotated[
        str | None,
        Option(envvar=env("max_pending_age"), help="Acceptable age of an item that is due to run (15m, 12h). [default: any]"),
    ] = None,
    max_processing_age: MaxProcessingAge = None,
    probe: Annotated[
        str | None,
        Option(
            envvar=env("probe"),
            help="Check only what a probe asks: liveness or readiness. [default: everything]",
            complete=one_of(("liveness", "readiness")),
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check whether a batch needs attention; for monitoring and cron.

    A batch needs attention if it has unfinished items and no live worker serves it, if a guardrail stopped it or lets it
    rest, if more items have failed than --max-failed, if an item that is due to run was added longer ago than
    --max-pending-age, if an item has been processing for longer than --max-processing-age, or if an item whose workers
    died has run in isolation for a minute. With several batches, all are checked.

    For probes of a container: --probe liveness finds only what a restart solves, that no worker of this host is alive or
    that one has not written a heartbeat for a minute. --probe readiness finds only why an item that is added now would
    not start: no live worker serves a batch, or the batch is paused, stopped or rests. A batch whose items are all finished
    needs no worker.

    Read-only. Exit code 0: no problems, 1: a batch needs attention, 2: wrong usage, or the store cannot be read.
    """
    accepted = _number_or_any(max_failed)
    pending_age = None if max_pending_age is None else age(max_pending_age, option="--max-pending-age")
    processing_age = None if max_processing_age is None else age(max_processing_age, option="--max-processing-age")
    problems = with_inspection(
        db,
        lambda inspection: inspection.check(
            batch, max_failed=accepted, max_pending_age=pending_age, max_processing_age=processing_age, probe=probe
        ),
    )
    if as_json:
        print_json({"ok": not problems, "problems": problems})
    elif problems:
        print_lines(
            [
                line
                for each in problems
                for line in wrapped(
                    f"{each.check}: {'' if each.batch is None else f'{safe_text(each.batch)}: '}"
                    f"{safe_text(each.message, limit=500)}",
                    terminal_width(),
                )
            ]
        )
    else:
        print_lines(["no batch needs attention" if probe is None else f"{probe}: ok"])
    raise Exit(EXIT_FAILED if problems else 0)


@command(examples=["metrics --db jobs.db > /var/lib/node_exporter/jobs.prom"])
def metrics(db: Db = DEFAULT_DB, batch: BatchOption = None, as_json: Json = False) -> None:
    """Print the state of the batches in Prometheus' text format.

    Metrics, each with the label batch: items by status, waiting items, seconds since the oldest item that is due was
    added, live workers, finished items per second, suspects, paused, stopped, put-offs. With several batches, all are
    printed. Read-only. For the textfile collector of node_exporter, write to another file name first and rename the file.
    """
    from asyncrunner.prometheus import metric_values, metrics_text

    status = with_inspection(db, lambda inspection: inspection.status(batch))
    if as_json:
        print_json({"metrics": metric_values(status)})
    else:
        sys.stdout.write(metrics_text(status))


def _number_or_any(text: str) -> int | None:
    if text == "any":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ConfigurationError(f"--max-failed {text!r}: give a number, 0 or more, or any")
    return int(text)
