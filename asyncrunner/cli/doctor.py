"""``asyncrunner doctor``: what may be wrong with a file, and what can be put right."""

from __future__ import annotations

import sqlite3
import sys
import time
from contextlib import suppress
from pathlib import Path

from asyncrunner.operated import of_name
from asyncrunner.sqlite import reading
from asyncrunner.sqlite.connection import translated
from asyncrunner.sqlite.examining import Finding, Level, examine
from asyncrunner.sqlite.file import connect_reader
from asyncrunner.sqlite.repairing import make_private, repair
from asyncrunner.text import json_text, safe_text

__all__ = ["run_doctor"]


def run_doctor(db: Path, batch: str | None = None, *, fix: bool, full: bool, as_json: bool) -> int:
    """Print the diagnosis; 1 if something is wrong. Of the batches, it is of that one, or of all.

    Raises StoreNotFound, NotAStore, BatchNotFound, or StoreUnavailable while it is locked.
    """
    findings = _examined(db, batch, full=full)
    fixed: list[str] = []
    if fix and any(finding.can_fix for finding in findings):
        is_sound = not any(finding.check == "integrity" and finding.level is Level.WRONG for finding in findings)
        # A damaged file is only ever copied and recovered: writing to it can make it worse.
        fixed = list(repair(db.resolve(), now=time.time(), batch=batch) if is_sound else make_private(db.resolve()))
        findings = _examined(db, batch, full=full)
    ok = all(finding.level is not Level.WRONG for finding in findings)
    if as_json:
        document = {"db": str(db), "ok": ok, "findings": [each._asdict() for each in findings], "fixed": fixed}
        sys.stdout.write(json_text(document) + "\n")
    else:
        sys.stdout.write("\n".join(_lines(db, findings, fixed, ok=ok)) + "\n")
    return 0 if ok else 1


def _examined(db: Path, batch: str | None, *, full: bool) -> list[Finding]:
    connection = connect_reader(db)
    try:
        with translated(str(db)):
            if batch is not None:
                with suppress(sqlite3.DatabaseError):  # of a damaged file the checks say more
                    of_name(reading.batches(connection), batch, str(db))
            return list(examine(connection, db.resolve(), full=full, now=time.time(), batch=batch))
    finally:
        connection.close()


def _lines(db: Path, findings: list[Finding], fixed: list[str], *, ok: bool) -> list[str]:
    lines = [safe_text(db)]
    lines += [f"  fixed  {safe_text(each, limit=500)}" for each in fixed]
    for finding in findings:
        lines.append(f"  {finding.level.value:<5}  {finding.check}: {safe_text(finding.message, limit=1000)}")
    if ok:
        lines.append("nothing is wrong")
    elif any(finding.can_fix and finding.level is Level.WRONG for finding in findings):
        lines.append("something is wrong; `asyncrunner doctor --fix` puts right what can be put right without risk")
    else:
        lines.append("something is wrong, and nothing of it can be put right by itself: see above what to do")
    return lines
