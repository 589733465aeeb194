"""Format the diagnosis that ``asyncrunner doctor`` prints."""

from __future__ import annotations

from collections.abc import Sequence

from asyncrunner.cli.command import command_text
from asyncrunner.store.maintenance import CheckLevel, CheckResult
from asyncrunner.text.escaping import safe_text


def doctor_lines(db: str, findings: Sequence[CheckResult], fixed: Sequence[str], *, ok: bool) -> list[str]:
    """Return the name of the file, one line per repair and per check, and a conclusion."""
    lines = [safe_text(db)]
    lines += [f"  fixed  {safe_text(each, limit=500)}" for each in fixed]
    for finding in findings:
        lines.append(f"  {finding.level.value:<5}  {finding.check}: {safe_text(finding.message, limit=1000)}")
    if ok:
        lines.append("nothing is wrong")
    elif any(finding.can_fix and finding.level is CheckLevel.WRONG for finding in findings):
        fix = command_text("doctor --fix", db)
        lines.append(f"something is wrong; `{fix}` repairs the problems that can be repaired without risk")
    else:
        lines.append("something is wrong, and doctor cannot repair it: follow the instructions above")
    return lines
