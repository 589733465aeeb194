"""The command ``doctor``: check a database file for problems and repair it where that is safe."""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from asyncrunner.cli.command import command
from asyncrunner.cli.options import BatchOption, Db, Json, env
from asyncrunner.cli.render.doctor import doctor_lines
from asyncrunner.cli.session import print_json, print_lines
from asyncrunner.domain.options import DEFAULT_DB
from asyncrunner.sqlite import queries
from asyncrunner.sqlite.admin.checks import CheckLevel, CheckResult, examine
from asyncrunner.sqlite.admin.repairs import make_private, repair
from asyncrunner.sqlite.admin.store import of_name
from asyncrunner.sqlite.file.errors import translated
from asyncrunner.sqlite.file.opening import connect_reader


@command("doctor", "Check a database file for problems.", "doctor --db jobs.db --fix")
def doctor(
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    fix: Annotated[
        bool, typer.Option("--fix", envvar=env("fix"), help="Repair problems that can be repaired without risk.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", envvar=env("full"), help="Also check every index entry; takes minutes for a large file.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a database file for problems: SQLite version, file system, permissions, schema, integrity, counts, workers, clock.

    Read-only without --fix; works while a run is active. --fix never changes a finished item. With --batch, the checks of
    counts and controls cover only that batch; all other checks cover the file. Exit code 0: nothing is wrong, 1: something
    is wrong, 2: wrong usage, or the file cannot be read.
    """
    path = Path(db)
    findings = _diagnose(path, batch, full=full)
    fixed: list[str] = []
    if fix and any(finding.can_fix for finding in findings):
        is_sound = not any(finding.check == "integrity" and finding.level is CheckLevel.WRONG for finding in findings)
        # Do not repair a damaged file in place, because writing to it can make the damage worse.
        fixed = list(repair(path.resolve(), now=time.time(), batch=batch) if is_sound else make_private(path.resolve()))
        findings = _diagnose(path, batch, full=full)
    ok = all(finding.level is not CheckLevel.WRONG for finding in findings)
    if as_json:
        print_json({"db": db, "ok": ok, "findings": [each._asdict() for each in findings], "fixed": fixed})
    else:
        print_lines(doctor_lines(db, findings, fixed, ok=ok))
    raise typer.Exit(0 if ok else 1)


def _diagnose(path: Path, batch: str | None, *, full: bool) -> list[CheckResult]:
    connection = connect_reader(path)
    try:
        with translated(str(path)):
            if batch is not None:
                with suppress(sqlite3.DatabaseError):  # the checks below describe a damaged file better than this error does
                    of_name(queries.batches(connection), batch, str(path))
            return list(examine(connection, path.resolve(), full=full, now=time.time(), batch=batch))
    finally:
        connection.close()
