"""The first page: what needs a person, the batches, the workers, and why items fail."""

from __future__ import annotations

from typing import Final

from asyncrunner.dashboard.fields import Fields
from asyncrunner.dashboard.reads import Reads
from asyncrunner.dashboard.views.charts import DEFAULT_SPAN, SPANS, chart_rows
from asyncrunner.dashboard.views.view import View
from asyncrunner.text.escaping import counted

_MAX_BATCHES: Final = 200
_MAX_CAUSES: Final = 5
_MAX_CHARTED: Final = 50


async def overview(reads: Reads, fields: Fields) -> View:
    """Return the overview; it depends on no fields."""
    del fields
    status = await reads.status()
    problems = await reads.check()
    causes = await reads.failures()
    unfinished = sum(batch.counts.unfinished for batch in status.batches)
    charted = [batch.name for batch in status.batches[-_MAX_CHARTED:]]
    histories = [await reads.history(name, SPANS[DEFAULT_SPAN].minutes, SPANS[DEFAULT_SPAN].step) for name in charted]
    values = {
        "charted": len(charted),
        "rows": chart_rows(histories),
        "status": status,
        "batches": status.batches[::-1][:_MAX_BATCHES],  # the newest first
        "more_batches": max(0, len(status.batches) - _MAX_BATCHES),
        "problems": problems[:_MAX_BATCHES],
        "more_problems": max(0, len(problems) - _MAX_BATCHES),
        "causes": causes[:_MAX_CAUSES],
        "more_causes": len(causes) - len(causes[:_MAX_CAUSES]) + causes.more_causes,
        "living": [worker for worker in status.workers if worker.alive is not False],
    }
    return View("overview", f"{counted(unfinished, 'unfinished item')}", status.at, values)
