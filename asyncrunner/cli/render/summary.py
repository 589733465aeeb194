"""Format the summary that ``asyncrunner run`` prints at its end."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, Final

from asyncrunner.batch.progress import put_off_text
from asyncrunner.batch.report import BatchReport, is_input_read
from asyncrunner.domain.error_names import looks_like_a_bug
from asyncrunner.text.durations import duration_text, rate_text
from asyncrunner.text.escaping import counted, safe_text

_MAX_GROUPS: Final = 5
_MAX_BUGS: Final = 2
_MAX_PATTERN: Final = 80  # characters of an error in a command


def summary_text(report: BatchReport[Any, Any], target: str, batch: str | None, options: Sequence[str] = ()) -> str:
    """Return a few lines: the counts, the most frequent errors, and the commands to continue with.

    *options*: those of the run without which a command to continue would do something else.
    """
    lines = _count_lines(report)
    groups = report.failures[:_MAX_GROUPS]
    lines += [
        f"  {group.items:,} x {safe_text(group.error)}   (for example, item {safe_text(group.example, limit=80)})"
        for group in groups
    ]
    others = report.failed - sum(group.items for group in groups)
    if others > 0:
        lines.append(f"  {others:,} with other causes; `asyncrunner failures` shows all")
    return "\n".join(lines + _next_steps(report, target, batch, options))


def _count_lines(report: BatchReport[Any, Any]) -> list[str]:
    """Return a line with the counts of what was given, and with leftovers a line for these and one for the attempts of both."""
    name, duration = safe_text(report.batch), f"in {duration_text(report.duration)}{_rate(report)}"
    leftovers = report.leftovers
    if not leftovers.total:
        return [f"{name}: {', '.join(_counts(report) + _attempts(report))} {duration}"]
    parts = [f"{leftovers.completed:,} completed"] if leftovers.completed else []
    parts += [f"{leftovers.failed:,} failed"] if leftovers.failed else []
    parts += [f"{leftovers.cancelled:,} cancelled"] if leftovers.cancelled else []
    parts += [f"{leftovers.unfinished:,} pending"] if leftovers.unfinished else []
    lines = [f"{name}: of what was given: {', '.join(_counts(report))}", f"  of earlier runs: {', '.join(parts)}"]
    attempts = ", ".join([counted(report.attempts, "attempt"), *_attempts(report)])
    return [*lines, f"  together: {attempts} {duration}"]


def _counts(report: BatchReport[Any, Any]) -> list[str]:
    parts = [f"{report.completed:,} completed"]
    parts += [f"{report.failed:,} failed"] if report.failed else []
    parts += [f"{report.cancelled:,} cancelled"] if report.cancelled else []
    parts += [f"{report.pending:,} pending"] if report.pending else []
    parts += [f"{report.skipped:,} skipped (completed before)"] if report.skipped else []
    return parts + ([f"{report.duplicates:,} given more than once"] if report.duplicates else [])


def _attempts(report: BatchReport[Any, Any]) -> list[str]:
    parts = [counted(report.retried, "retry")] if report.retried else []
    return parts + ([put_off_text(report.put_offs)] if report.put_offs else [])


def _rate(report: BatchReport[Any, Any]) -> str:
    completed = report.completed + report.leftovers.completed
    if not completed or report.duration <= 0:
        return ""
    return f" ({rate_text(completed / report.duration).replace('/', ' completed/')})"


def _next_steps(report: BatchReport[Any, Any], target: str, batch: str | None, options: Sequence[str]) -> list[str]:
    command = f"asyncrunner run {shlex.quote(target)} --db {shlex.quote(report.db)}"
    if batch is not None:
        command += f" --batch {shlex.quote(safe_text(batch))}"
    command += "".join(f" {shlex.quote(safe_text(each))}" for each in options)
    lines: list[str] = []
    # Each command has its own line, so that a user can copy it completely from a narrow terminal.
    if report.stopped is not None:
        lines.append(f"Stopped early: {safe_text(report.stopped)}. No item is lost; run the same command again to continue.")
        if not is_input_read(report):
            lines.append("The input was not read to its end: the counts include only the items that were read.")
        lines += ["To run the items that are stored:", f"  {command}"]
    if report.failed:
        lines += ["After you fix the cause, run the failed items again:", f"  {command} --retry-failed"]
        lines += _bug_lines(report, command)
    if report.leftovers.failed:
        lines += [
            f"Of the items of earlier runs, {report.leftovers.failed:,} failed. To see why:",
            f"  asyncrunner failures --db {shlex.quote(report.db)} --batch {shlex.quote(safe_text(report.batch))}",
        ]
    if lines:
        lines += ["To see the status:", f"  asyncrunner status --db {shlex.quote(report.db)}"]
    return lines


def _bug_lines(report: BatchReport[Any, Any], command: str) -> list[str]:
    """Return the causes that look like a bug in the handler, with the commands that run their items again."""
    bugs = [group for group in report.failures if looks_like_a_bug(group.error)]
    if not bugs or len(report.failures) == 1:  # with one cause, --retry-failed runs the same items
        return [f"{_type_of(bugs[0].error)} looks like a bug in the handler."] if bugs else []
    options = f"--db {shlex.quote(report.db)} --batch {shlex.quote(report.batch)}"
    lines: list[str] = []
    for group in bugs[:_MAX_BUGS]:
        error = group.error if len(group.error) <= _MAX_PATTERN and group.error.isprintable() else _type_of(group.error)
        lines += [
            f"{_type_of(group.error)} looks like a bug in the handler. After you fix it, run only the items of this cause again:",
            f"  asyncrunner retry --error {shlex.quote(error)} {options}",
            f"  {command}",
        ]
    return lines


def _type_of(error: str) -> str:
    return error.partition(":")[0]


def report_document(report: BatchReport[Any, Any], bad_lines: int) -> dict[str, Any]:
    """Return the report as a JSON object; ``duration`` is in seconds. *bad_lines*: skipped lines of the input."""
    return {
        "batch": report.batch,
        "db": report.db,
        "total": report.total,
        "completed": report.completed,
        "skipped": report.skipped,
        "failed": report.failed,
        "cancelled": report.cancelled,
        "pending": report.pending,
        "leftovers": {
            "completed": report.leftovers.completed,
            "failed": report.leftovers.failed,
            "cancelled": report.leftovers.cancelled,
            "pending": report.leftovers.unfinished,
        },
        "attempts": report.attempts,
        "retried": report.retried,
        "put_offs": report.put_offs,
        "duplicates": report.duplicates,
        "duration": round(report.duration, 3),
        "stopped": report.stopped,
        "bad_lines": bad_lines,
        "failures": [{"error": group.error, "items": group.items, "example": group.example} for group in report.failures],
        "other_failures": report.other_failures,
    }
