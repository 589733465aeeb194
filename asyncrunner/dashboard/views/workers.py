"""The page of the workers: whether each is alive and how that is known, and what it runs."""

from __future__ import annotations

from typing import Final

from asyncrunner.dashboard.fields import Fields
from asyncrunner.dashboard.reads import Reads
from asyncrunner.dashboard.views.view import View
from asyncrunner.text.escaping import counted

_MAX_WORKERS: Final = 200


async def workers(reads: Reads, fields: Fields) -> View:
    """Return the workers; the page depends on no fields."""
    del fields
    status = await reads.status()
    running = await reads.read(lambda store: store.stuck(older_than=0, limit=_MAX_WORKERS))
    values = {
        "status": status,
        "workers": status.workers[:_MAX_WORKERS],
        "more_workers": max(0, len(status.workers) - _MAX_WORKERS),
        "held": {worker.worker_id: [each for each in running if each.worker_id == worker.worker_id] for worker in status.workers},
        "batches": [batch.name for batch in status.batches],
        "dead": sum(worker.alive is False for worker in status.workers),
    }
    return View("workers", counted(len(status.workers), "worker"), status.at, values)
