"""Format the plan that ``asyncrunner run --dry-run`` prints."""

from __future__ import annotations

import dataclasses

from asyncrunner.batch.plan import Plan
from asyncrunner.domain.options import RunOptions
from asyncrunner.text.durations import duration_text
from asyncrunner.text.escaping import json_text, safe_text


def plan_json(plan: Plan) -> str:
    """Return the plan as one JSON object; times are in seconds."""
    return json_text(dataclasses.asdict(plan))


def plan_text(plan: Plan, options: RunOptions, *, has_input: bool) -> str:
    """Return a few lines: the items of the input by state, the number of items to run, and the estimated duration."""
    lines = [f"{safe_text(plan.batch)} on {safe_text(plan.db)}: dry run, no item is run or changed"]
    if has_input:
        lines += [_counted(plan.given, "in the input"), *_input_lines(plan, options)]
        lines += [_counted(plan.missing, "stored and not in the input")] if plan.missing else []
        effect = "stay pending" if options.leftovers == "leave" else "run too; --leftovers leave runs only the input"
        lines += [f"  {_counted(plan.leftovers, f'of these to be done: they {effect}')}"] if plan.leftovers else []
    else:
        lines.append(_counted(plan.missing, "stored"))
    if plan.retried:
        left = "" if options.retry_failed else " with attempts left"
        lines.append(_counted(plan.retried, f"failed{left}, to be retried"))
    if plan.other_version:
        lines.append(_counted(plan.other_version, "completed by another version, in the input or not: would run again"))
    lines.append(_counted(plan.to_run, f"to run{_time(plan, options)}"))
    if plan.conflict:
        lines.append("The run would stop with an error at the first changed item; give --on-change keep or rerun.")
    return "\n".join(lines)


def _input_lines(plan: Plan, options: RunOptions) -> list[str]:
    failed = "failed" if options.retry_failed else "failed; add --retry-failed to run them again"
    changes = {"error": "an error", "keep": "keep the stored payload", "rerun": "run with the new payload"}
    rows = (
        (plan.new, "new"),
        (plan.completed, "completed" if plan.other_version else "completed, skipped"),
        (plan.failed, failed),
        (plan.cancelled, "cancelled, skipped"),
        (plan.pending, "pending"),
        (plan.processing, "being processed"),
        (plan.duplicates, "given more than once"),
        (plan.changed, f"changed (same key, other payload): {changes[options.handler.on_change]}"),
    )
    return [f"  {_counted(count, what)}" for count, what in rows if count]


def _counted(count: int, what: str) -> str:
    return f"{count:>12,}  {what}"


def _time(plan: Plan, options: RunOptions) -> str:
    if plan.to_run == 0:
        return ""
    if plan.seconds is None or plan.seconds_per_attempt is None:
        return "; the duration is not known until the first items are finished"
    each = "less than 1 ms" if plan.seconds_per_attempt < 0.001 else duration_text(plan.seconds_per_attempt)
    return (
        f", about {duration_text(plan.seconds)} with a concurrency of {options.runner.concurrency:,} ({each} per attempt so far)"
    )
