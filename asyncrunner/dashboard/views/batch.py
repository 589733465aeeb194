"""The page of a batch: its counts and charts, its controls, why it does not move, and which items take long."""

from __future__ import annotations

from typing import Final

from asyncrunner.dashboard.fields import Fields
from asyncrunner.dashboard.reads import Reads
from asyncrunner.dashboard.rendering import share
from asyncrunner.dashboard.views.charts import DEFAULT_SPAN, SPANS, chart_rows
from asyncrunner.dashboard.views.view import View
from asyncrunner.domain.item import Status

_MAX_CAUSES: Final = 5
_MAX_STUCK: Final = 20


async def batch(reads: Reads, fields: Fields) -> View:
    """Return the page of the batch in the field ``batch``, with charts of the ``span``. Raises BatchNotFound."""
    name = fields.required("batch")
    span_name = fields.choice("span", list(SPANS), DEFAULT_SPAN)
    span = SPANS[span_name]
    status = await reads.status(name)
    (shown,) = status.batches
    causes = await reads.failures(name)
    history = await reads.history(name, span.minutes, span.step)
    counts = shown.counts
    done = counts.completed + counts.failed + counts.cancelled
    values = {
        "status": status,
        "batch": shown,
        "counts": [(each.value, getattr(counts, each.value)) for each in Status],
        "done": done,
        "causes": causes[:_MAX_CAUSES],
        "more_causes": len(causes) - len(causes[:_MAX_CAUSES]) + causes.more_causes,
        "rows": chart_rows([history]),
        "span": span,
        "span_name": span_name,
        "spans": list(SPANS),
        "stuck": shown.stuck[:_MAX_STUCK],
        "workers": [worker for worker in status.workers if worker.alive is not False],
    }
    return View("batch", f"{share(done, shown.total)} of {shown.name}", status.at, values)
