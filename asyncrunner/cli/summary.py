"""What ``asyncrunner run`` says at its end."""

from __future__ import annotations

import shlex
from typing import Any, Final

from asyncrunner.progress import rate_text
from asyncrunner.report import BatchReport
from asyncrunner.text import duration_text, json_text, safe_text

__all__ = ["as_json", "summary"]

_MOST_GROUPS: Final = 5


def summary(report: BatchReport[Any, Any], target: str, batch: str | None) -> str:
    """A few lines: what was done, what failed and why, and how to go on."""
    lines = [f"{safe_text(report.batch)}: {_counts(report)} in {duration_text(report.duration)}{_rate(report)}"]
    groups = report.failures[:_MOST_GROUPS]
    lines += [
        f"  {group.items:,} x {safe_text(group.error)}   (as item {safe_text(group.example, limit=80)})" for group in groups
    ]
    others = report.failed - sum(group.items for group in groups)
    if others > 0:
        lines.append(f"  {others:,} of other causes")
    return "\n".join(lines + _how_to_go_on(report, target, batch))


def _counts(report: BatchReport[Any, Any]) -> str:
    parts = [f"{report.completed:,} completed"]
    parts += [f"{report.failed:,} failed"] if report.failed else []
    parts += [f"{report.cancelled:,} cancelled"] if report.cancelled else []
    parts += [f"{report.pending:,} still to do"] if report.pending else []
    parts += [f"{report.skipped:,} skipped (done before)"] if report.skipped else []
    parts += [f"{report.retried:,} retries"] if report.retried else []
    return ", ".join(parts)


def _rate(report: BatchReport[Any, Any]) -> str:
    return f" ({rate_text(report.attempts / report.duration)})" if report.attempts and report.duration > 0 else ""


def _how_to_go_on(report: BatchReport[Any, Any], target: str, batch: str | None) -> list[str]:
    again = f"asyncrunner run {shlex.quote(target)} --db {shlex.quote(report.db)}"
    if batch is not None:
        again += f" --batch {shlex.quote(safe_text(batch))}"
    lines: list[str] = []
    # Commands have lines of their own, so that they can be taken over whole from a narrow terminal.
    if report.stopped is not None:
        lines.append(f"Stopped early: {safe_text(report.stopped)}. Nothing is lost; the same command goes on.")
        lines += ["What the file holds goes on with:", f"  {again}"]
    if report.failed:
        lines += ["When the cause is mended, run the failed ones again:", f"  {again} --retry-failed"]
    if lines:
        lines += ["How it stands:", f"  asyncrunner status --db {shlex.quote(report.db)}"]
    return lines


def as_json(report: BatchReport[Any, Any]) -> str:
    """The report as one JSON object; ``duration`` in seconds."""
    document = {
        "batch": report.batch,
        "db": report.db,
        "total": report.total,
        "completed": report.completed,
        "skipped": report.skipped,
        "failed": report.failed,
        "cancelled": report.cancelled,
        "pending": report.pending,
        "attempts": report.attempts,
        "retried": report.retried,
        "duration": round(report.duration, 3),
        "stopped": report.stopped,
        "failures": [{"error": group.error, "items": group.items, "example": group.example} for group in report.failures],
    }
    return json_text(document)
