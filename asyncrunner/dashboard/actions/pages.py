"""The pages of actions: what an action would change, before it does, and the progress of one that takes long."""

from __future__ import annotations

from asyncrunner.admin.status import lives
from asyncrunner.dashboard.actions.items import purge, purge_text
from asyncrunner.dashboard.actions.jobs import LARGE, Jobs, JobState
from asyncrunner.dashboard.actions.selection import Selection, Verb
from asyncrunner.dashboard.fields import Fields
from asyncrunner.dashboard.reads import Reads
from asyncrunner.dashboard.rendering import now_text
from asyncrunner.dashboard.views.items import kept_fields
from asyncrunner.dashboard.views.view import View
from asyncrunner.text.escaping import counted


async def confirm(reads: Reads, fields: Fields) -> View:
    """Return the page with the number of items that an action would change. Raises AsyncRunnerError."""
    chosen = Selection.of(Verb(fields.choice("verb", [each.value for each in Verb], Verb.RETRY.value)), fields)
    number = await reads.read(chosen.number_in)
    values = {
        "chosen": chosen,
        "number": number,
        "from_page": fields.text("page") or "batch",
        "job_size": LARGE,
        "kept": kept_fields(fields),
    }
    return View("confirm", f"{chosen.verb.value} {counted(number, 'item')}?", now_text(), values)


async def confirm_stop(reads: Reads, fields: Fields) -> View:
    """Return the page with the number of live workers of a batch, or of all. Raises BatchNotFound."""
    batch = fields.text("batch")
    status = await reads.status(batch)
    living = sum(lives(worker) for worker in status.workers) if batch is None else status.batches[0].workers
    values = {"batch_name": batch, "number": living, "now_too": fields.flag("now"), "from_page": fields.text("page") or "workers"}
    return View("confirm_stop", "stop the workers?", status.at, values)


async def confirm_purge(reads: Reads, fields: Fields) -> View:
    """Return the page with the number of items that a purge would delete. Raises AsyncRunnerError."""
    numbers = await purge(reads.db, fields, None, dry_run=True)
    values = {
        "batch_name": fields.required("batch"),
        "older_than": fields.required("older_than"),
        "statuses": fields.texts("status") or ["completed"],
        "number": sum(numbers.values()),
        "numbers": purge_text(numbers),
    }
    return View("confirm_purge", "delete items?", now_text(), values)


async def job(jobs: Jobs, fields: Fields) -> View:
    """Return the page of a job. Raises ConfigurationError for an unknown one."""
    shown = jobs.get(fields.number("job"))
    values = {"job": shown, "is_running": shown.state is JobState.RUNNING}
    return View("job", f"{shown.state.value}: {shown.title}", now_text(), values)
