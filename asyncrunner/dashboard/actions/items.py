"""Retry, rerun, cancel and purge items."""

from __future__ import annotations

from datetime import timedelta

from asyncrunner.admin.control import Control
from asyncrunner.admin.opened_file import OnProgress
from asyncrunner.admin.read_models import Changed
from asyncrunner.dashboard.actions.selection import Selection, Verb
from asyncrunner.dashboard.fields import Fields
from asyncrunner.domain.item import TERMINAL, Status
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.durations import age
from asyncrunner.text.escaping import counted, safe_text


async def change(db: str, chosen: Selection, on_progress: OnProgress) -> tuple[Changed, list[str]]:
    """Change the chosen items and return the numbers, also in words. Raises AsyncRunnerError."""
    async with Control(db) as control:
        changed = await _changed(control, chosen, on_progress)
    return changed, [changed_text(changed)]


async def _changed(control: Control, chosen: Selection, on_progress: OnProgress) -> Changed:
    ids = list(chosen.ids) or None
    if chosen.verb is Verb.RERUN:
        return await control.rerun(ids, chosen.batch, on_progress=on_progress)
    if chosen.verb is Verb.CANCEL:
        return await control.cancel(ids, chosen.batch, pending=chosen.is_all, on_progress=on_progress)
    return await control.retry(ids, chosen.batch, failed=chosen.is_all, error=chosen.error, on_progress=on_progress)


def changed_text(changed: Changed) -> str:
    """Return the outcome of a change in words."""
    others = f", {changed.unchanged:,} were not to be changed" if changed.unchanged else ""
    return f"{counted(changed.changed, 'item')} changed{others}."


async def purge(db: str, fields: Fields, on_progress: OnProgress | None, *, dry_run: bool) -> dict[str, int]:
    """Delete the finished items of a batch that ended long enough ago, or only count them. Returns the numbers by state.

    The field ``name`` must have the name of the batch, except in a dry run. Raises ConfigurationError.
    """
    batch, older_than = fields.required("batch"), fields.required("older_than")
    statuses = fields.texts("status") or [Status.COMPLETED.value]
    if not dry_run:
        require_name(fields, batch)
    seconds = age(older_than, option="older_than")
    async with Control(db) as control:
        purged = await control.purge(timedelta(seconds=seconds), batch, status=statuses, dry_run=dry_run, on_progress=on_progress)
    return purged.items


def purge_text(numbers: dict[str, int]) -> str:
    """Return the numbers of deleted items in words."""
    parts = [f"{numbers.get(status, 0):,} {status.value}" for status in Status if status in TERMINAL and numbers.get(status)]
    states = f" ({', '.join(parts)})" if parts else ""
    return f"{counted(sum(numbers.values()), 'item')}{states}"


def require_name(fields: Fields, name: str) -> None:
    """Raise ConfigurationError unless the visitor has typed the *name* of what the action destroys."""
    if fields.text("name") not in (name, safe_text(name)):  # an input takes no line breaks and control characters
        raise ConfigurationError(f"type the name {name!r} to confirm; nothing was changed")
