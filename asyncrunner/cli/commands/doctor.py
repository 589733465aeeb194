"""The commands ``doctor`` and ``schema``: check and repair a store, and print the SQL that creates one on a server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from asyncrunner.admin.control import Control
from asyncrunner.backends import creation_script, open_maintenance, shown_location
from asyncrunner.cli.command import EXIT_FAILED, BatchOption, Db, Exit, Json, MaxProcessingAge, Option, command, env
from asyncrunner.cli.render.doctor import doctor_lines
from asyncrunner.cli.render.tables import terminal_width
from asyncrunner.cli.session import print_json, print_lines
from asyncrunner.domain import DEFAULT_DB
from asyncrunner.errors import ConfigurationError, StoreError
from asyncrunner.store.maintenance import CheckLevel, CheckResult
from asyncrunner.text.cells import wrapped
from asyncrunner.text.durations import age


@command(examples=["doctor --db jobs.db --fix"])
def doctor(
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    fix: Annotated[bool, Option("--fix", envvar=env("fix"), help="Repair problems that can be repaired without risk.")] = False,
    full: Annotated[
        bool, Option("--full", envvar=env("full"), help="Also check every index entry; takes minutes for a large file.")
    ] = False,
    max_processing_age: MaxProcessingAge = None,
    as_json: Json = False,
) -> None:
    """Check a file or server for problems.

    On a file, check the SQLite version, file system, permissions, schema, integrity, counts, workers and clock.

    On a server, check its version, durability, replicas and connections, a pooler, rights, the schema, and whether the
    store's own tables agree with items; --fix rebuilds them.
    Notes name the batches that have work but no live worker, that a guardrail lets rest, or whose items run in
    isolation or longer than --max-processing-age. Without --fix, the file is only read; the command works while a run
    is active. --fix never changes a finished item. With several batches, all are checked. With --batch, the checks of
    counts and controls cover only that batch; all other checks cover the file. Exit code 0: nothing is wrong, 1:
    something is wrong, 2: wrong usage, or the store cannot be read.
    """
    max_age = None if max_processing_age is None else age(max_processing_age, option="--max-processing-age")
    findings, fixed = asyncio.run(_diagnose(db, batch, fix=fix, full=full, max_processing_age=max_age))
    ok = all(finding.level is not CheckLevel.WRONG for finding in findings)
    if as_json:
        print_json({"db": shown_location(db), "ok": ok, "findings": [each._asdict() for each in findings], "fixed": fixed})
    else:
        width = terminal_width()
        print_lines([line for each in doctor_lines(shown_location(db), findings, fixed, ok=ok) for line in wrapped(each, width)])
    raise Exit(0 if ok else EXIT_FAILED)


@command(examples=["schema --db postgresql://dba@host/jobs --role worker=shop | psql postgresql://dba@host/jobs"])
def schema(
    db: Db = DEFAULT_DB,
    role: Annotated[
        list[str] | None,
        Option(
            "--role",
            envvar=env("role"),
            help="Grant the least rights to a role, which must exist: worker=NAME (runs, submits and operates) or reader=NAME "
            "(only reads). May be repeated.",
        ),
    ] = None,
) -> None:
    """Print the SQL with which the owner of a PostgreSQL database creates or migrates the schema, for psql.

    No server is contacted. The workers then need no right to create anything. The script may run again, after an upgrade or
    with more roles. Exit code 0: printed, 2: wrong usage.
    """
    names: dict[str, list[str]] = {"worker": [], "reader": []}
    for each in role or ():
        kind, separator, name = each.partition("=")
        if kind not in names or not separator:
            raise ConfigurationError(f"--role {each}: write worker=NAME or reader=NAME")
        names[kind].append(name)
    print_lines([creation_script(db, workers=names["worker"], readers=names["reader"])])


async def _diagnose(
    db: str, batch: str | None, *, fix: bool, full: bool, max_processing_age: float | None
) -> tuple[Sequence[CheckResult], Sequence[str]]:
    """Check, repair if requested, and return the findings after the repair and the repairs."""
    findings, fixed = await _check_and_fix(db, batch, fix=fix, full=full)
    notes = await _attention_notes(db, batch, max_processing_age)
    others = [each for each in findings if not (notes and each.check == "batches" and each.level is CheckLevel.OK)]
    return [*others, *notes], fixed


async def _attention_notes(db: str, batch: str | None, max_processing_age: float | None) -> list[CheckResult]:
    """Return the problems of ``asyncrunner check`` that are about a batch and that doctor does not find itself.

    They are notes: the file is intact. Damage that prevents the read is already a finding.
    """
    try:
        async with Control(db) as control:
            problems = await control.check(batch, max_failed=None, max_processing_age=max_processing_age)
    except StoreError:
        return []
    return [
        CheckResult("batches", CheckLevel.NOTE, f"{each.batch!r}: {each.message}")
        for each in problems
        if each.batch is not None and each.check != "stopped"
    ]


async def _check_and_fix(db: str, batch: str | None, *, fix: bool, full: bool) -> tuple[Sequence[CheckResult], Sequence[str]]:
    maintenance = open_maintenance(db)
    findings = await maintenance.check(full=full, batch=batch)
    if not (fix and any(finding.can_fix for finding in findings)):
        return findings, []
    # Do not repair the contents of a damaged file in place, because writing to it can make the damage worse.
    is_sound = not any(finding.check == "integrity" and finding.level is CheckLevel.WRONG for finding in findings)
    fixed = await maintenance.repair(contents=is_sound, batch=batch)
    return await maintenance.check(full=full, batch=batch), fixed
