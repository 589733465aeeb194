"""Give batches the version of their handlers, and make the items pending that another version completed.

Such a batch claims no items in this worker before these items are pending. So the counts at the begin of a run are exact: they
include no item of another version as completed.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from typing import TYPE_CHECKING

from asyncrunner.errors import ConfigurationError

if TYPE_CHECKING:
    from asyncrunner.store.batches import Rival
    from asyncrunner.store.protocols import EngineStore
    from asyncrunner.worker.batch_queue import BatchQueue
    from asyncrunner.worker.worker import Worker

log = logging.getLogger("asyncrunner")


class Versions:
    """The versions of a worker's batches. ``applied`` is set once the worker may claim items of all of them."""

    def __init__(self, store: EngineStore, worker: Worker) -> None:
        self._store = store
        self._worker = worker
        self._waiting: list[tuple[BatchQueue, str]] = []
        self.applied = asyncio.Event()
        self.reopened = 0  # items that another version completed

    async def add_queue(self, queue: BatchQueue, version: str | None) -> None:
        """Add a batch queue to the worker: now, or once the items that another version completed are pending.

        Raises ConfigurationError if a live worker runs another version of the batch.
        """
        if version is not None:
            answer = await self._store.adopt_version(self._worker.id, queue.batch_id, version)
            if answer.rivals:
                raise _refusal(queue.name, version, answer.rivals[0], self._store.location)
            queue.version = answer.number
            if not answer.is_applied:
                self._waiting.append((queue, version))
                return
        self._worker.add_queue(queue)

    async def run(self) -> None:
        """Make the items pending that another version completed, batch after batch."""
        for queue, version in self._waiting:
            assert queue.version is not None
            items = await self._store.apply_version(queue.batch_id, queue.version)
            self.reopened += items
            if items:
                extra = {"batch": queue.name}
                log.info(
                    "version %r of %r: %d items that another version completed run again", version, queue.name, items, extra=extra
                )
            self._worker.add_queue(queue)
        self.applied.set()


def _refusal(batch: str, version: str, rival: Rival, location: str) -> ConfigurationError:
    worker = f"worker {rival.worker_id} (pid {rival.pid} on {rival.host})"
    stop = "its program" if rival.role == "service" else f"it with `asyncrunner stop --db {shlex.quote(location)}`"
    return ConfigurationError(
        f"version {version!r} of the batch {batch!r} cannot start: {worker} runs version {rival.version!r} of it, and each "
        f"version would run the items of the other again. Stop {stop} first, or give version={rival.version!r}"
    )
