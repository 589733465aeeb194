"""The command ``check``."""

from __future__ import annotations

from typing import Annotated

import typer

from asyncrunner.cli.command import EXIT_FAILED, BatchOption, Db, Json, command, env
from asyncrunner.cli.session import print_json, print_lines, with_control
from asyncrunner.domain.options import DEFAULT_DB
from asyncrunner.text.durations import age
from asyncrunner.text.escaping import safe_text


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
    item that workers died with has run in isolation for a minute. Read-only. Exit code 0: no problems, 1: a batch needs
    attention, 2: wrong usage, or the file cannot be read.
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
