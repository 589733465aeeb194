"""The page of the causes of failure: how many items each has, since when, and an example."""

from __future__ import annotations

from asyncrunner.dashboard.fields import Fields
from asyncrunner.dashboard.reads import Reads
from asyncrunner.dashboard.views.view import View


async def causes(reads: Reads, fields: Fields) -> View:
    """Return the causes of all batches, or of the one in the field ``batch``. Raises BatchNotFound."""
    name = fields.text("batch")
    status = await reads.status(name)
    found = await reads.failures(name)
    values = {
        "status": status,
        "batch_name": name,
        "causes": found,
        "failed": sum(batch.counts.failed for batch in status.batches),
    }
    return View("causes", "causes of failure" if name is None else f"causes of failure of {name}", status.at, values)
