"""The page of the causes of failure: how many items each has, since when, and an example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from asyncrunner.dashboard.fields import Fields
from asyncrunner.dashboard.reads import Reads
from asyncrunner.dashboard.views.view import View
from asyncrunner.store.snapshot import FailureCause

_MAX_CHARTED: Final = 20  # causes with a drawing of the last hour


async def causes(reads: Reads, fields: Fields) -> View:
    """Return the causes of all batches, or of the one in the field ``batch``. Raises BatchNotFound."""
    name = fields.text("batch")
    status = await reads.status(name)
    found = await reads.failures(name)
    values = {
        "minutes": await _minutes(reads, found[:_MAX_CHARTED]),
        "status": status,
        "batch_name": name,
        "causes": found,
        "failed": sum(batch.counts.failed for batch in status.batches),
    }
    return View("causes", "causes of failure" if name is None else f"causes of failure of {name}", status.at, values)


async def _minutes(reads: Reads, causes: Sequence[FailureCause]) -> dict[tuple[str, str], list[int]]:
    """Return the failed attempts in each of the last 60 minutes, by batch and fingerprint."""
    minutes: dict[tuple[str, str], list[int]] = {}
    for batch in dict.fromkeys(cause.batch for cause in causes):
        fingerprints = tuple(cause.fingerprint for cause in causes if cause.batch == batch and cause.fingerprint is not None)
        history = await reads.cause_history(batch, fingerprints)
        minutes |= {(batch, fingerprint): values for fingerprint, values in history.items()}
    return minutes
