"""``asyncrunner doctor``: check a database file for problems and repair it where that is safe."""

from __future__ import annotations

import sqlite3
import sys
import time
from contextlib import suppress
from pathlib import Path

from asyncrunner.sqlite import queries
from asyncrunner.sqlite.admin.checks import CheckLevel, CheckResult, examine
from asyncrunner.sqlite.admin.repairs import make_private, repair
from asyncrunner.sqlite.admin.store import of_name
from asyncrunner.sqlite.file.errors import translated
from asyncrunner.sqlite.file.opening import connect_reader
from asyncrunner.text.escaping import json_text, safe_text


def run_doctor(db: Path, batch: str | None = None, *, fix: bool, full: bool, as_json: bool) -> int:
    """Print the diagnosis and return the exit code: 1 if something is wrong, else 0.

    Checks of batches cover *batch*, or all batches if it is None. *full* also checks every index entry. *fix* repairs problems
    that can be repaired without risk.

    Raises StoreNotFound, NotAStore, BatchNotFound, or StoreUnavailable while the file is locked.
    """
    findings = _diagnose(db, batch, full=full)
    fixed: list[str] = []
    if fix and any(finding.can_fix for finding in findings):
        is_sound = not any(finding.check == "integrity" and finding.level is CheckLevel.WRONG for finding in findings)
        # Do not repair a damaged file in place, because writing to it can make the damage worse.
        fixed = list(repair(db.resolve(), now=time.time(), batch=batch) if is_sound else make_private(db.resolve()))
        findings = _diagnose(db, batch, full=full)
    ok = all(finding.level is not CheckLevel.WRONG for finding in findings)
    if as_json:
        document = {"db": str(db), "ok": ok, "findings": [each._asdict() for each in findings], "fixed": fixed}
        sys.stdout.write(json_text(document) + "\n")
    else:
        sys.stdout.write("\n".join(_lines(db, findings, fixed, ok=ok)) + "\n")
    return 0 if ok else 1


def _diagnose(db: Path, batch: str | None, *, full: bool) -> list[CheckResult]:
    connection = connect_reader(db)
    try:
        with translated(str(db)):
            if batch is not None:
                with suppress(sqlite3.DatabaseError):  # the checks below describe a damaged file better than this error does
                    of_name(queries.batches(connection), batch, str(db))
            return list(examine(connection, db.resolve(), full=full, now=time.time(), batch=batch))
    finally:
        connection.close()


def _lines(db: Path, findings: list[CheckResult], fixed: list[str], *, ok: bool) -> list[str]:
    lines = [safe_text(db)]
    lines += [f"  fixed  {safe_text(each, limit=500)}" for each in fixed]
    for finding in findings:
        lines.append(f"  {finding.level.value:<5}  {finding.check}: {safe_text(finding.message, limit=1000)}")
    if ok:
        lines.append("nothing is wrong")
    elif any(finding.can_fix and finding.level is CheckLevel.WRONG for finding in findings):
        lines.append("something is wrong; `asyncrunner doctor --fix` repairs the problems that can be repaired without risk")
    else:
        lines.append("something is wrong, and doctor cannot repair it: follow the instructions above")
    return lines
