"""The command ``doctor``: check a database file for problems and repair it where that is safe."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer

from asyncrunner.backends import open_maintenance
from asyncrunner.cli.command import EXIT_FAILED, BatchOption, Db, Json, command, env
from asyncrunner.cli.render.doctor import doctor_lines
from asyncrunner.cli.session import print_json, print_lines
from asyncrunner.domain.options import DEFAULT_DB
from asyncrunner.store.maintenance import CheckLevel, CheckResult


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
    """Check a file for problems: SQLite version, file system, permissions, schema, integrity, counts, workers, clock.

    Without --fix, the file is only read; the command works while a run is active. --fix never changes a finished item.
    With several batches, all are checked. With --batch, the checks of counts and controls cover only that batch; all
    other checks cover the file. Exit code 0: nothing is wrong, 1: something is wrong, 2: wrong usage, or the file
    cannot be read.
    """
    findings, fixed = asyncio.run(_diagnose(db, batch, fix=fix, full=full))
    ok = all(finding.level is not CheckLevel.WRONG for finding in findings)
    if as_json:
        print_json({"db": db, "ok": ok, "findings": [each._asdict() for each in findings], "fixed": fixed})
    else:
        print_lines(doctor_lines(db, findings, fixed, ok=ok))
    raise typer.Exit(0 if ok else EXIT_FAILED)


async def _diagnose(db: str, batch: str | None, *, fix: bool, full: bool) -> tuple[Sequence[CheckResult], Sequence[str]]:
    maintenance = open_maintenance(db)
    findings = await maintenance.check(full=full, batch=batch)
    if not (fix and any(finding.can_fix for finding in findings)):
        return findings, []
    # Do not repair the contents of a damaged file in place, because writing to it can make the damage worse.
    is_sound = not any(finding.check == "integrity" and finding.level is CheckLevel.WRONG for finding in findings)
    fixed = await maintenance.repair(contents=is_sound, batch=batch)
    return await maintenance.check(full=full, batch=batch), fixed
