"""Give batches the version of their handlers, and make the items pending that another version completed.

A worker claims no items of such a batch before these items are pending, and a run claims none before it has counted the items:
what it then finds completed, this version completed before.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from typing import TYPE_CHECKING

from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import counted

if TYPE_CHECKING:
    from asyncrunner.store.batches import Rival
    from asyncrunner.store.protocols import EngineStore
    from asyncrunner.worker.batch_queue import BatchQueue
    from asyncrunner.worker.worker import Worker

log = logging.getLogger("asyncrunner")


class Versions:
    """The versions of a worker's batches.

    With *hold*, the worker claims no items before ``begin`` is set.
    """

    def __init__(self, store: EngineStore, worker: Worker, *, hold: bool) -> None:
        self._store = store
        self._worker = worker
        self._waiting: list[tuple[BatchQueue, str | None]] = []
        self.begin = asyncio.Event()
        if not hold:
            self.begin.set()
        self._applied = asyncio.Event()
        self._reopened = 0  # items that another version completed

    async def add_queue(self, queue: BatchQueue, version: str | None) -> None:
        """Add a batch queue to the worker: now, or once the worker may claim items of its batch.

        Raises ConfigurationError if a live worker runs another version of the batch.
        """
        is_applied = True
        if version is not None:
            answer = await self._store.adopt_version(self._worker.id, queue.batch_id, version)
            if answer.rivals:
                raise _refusal(queue.name, version, answer.rivals[0], self._store.location)
            queue.version, is_applied = answer.number, answer.is_applied
        if is_applied and self.begin.is_set():
            self._worker.add_queue(queue)
        else:
            self._waiting.append((queue, None if is_applied else version))

    async def run(self) -> None:
        """Make the items pending that another version completed, batch after batch; then let the worker claim items."""
        for queue, version in self._waiting:
            if version is not None:
                await self._apply(queue, version)
            if self.begin.is_set():
                self._worker.add_queue(queue)
        self._applied.set()
        if not self.begin.is_set():
            await self.begin.wait()
            for queue, _ in self._waiting:
                self._worker.add_queue(queue)

    async def wait_until_applied(self, engine: asyncio.Task[None]) -> int:
        """Wait until the items that another version completed are pending, or *engine* has ended; return their number."""
        applied = asyncio.ensure_future(self._applied.wait())
        try:
            await asyncio.wait({applied, engine}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            applied.cancel()
        return self._reopened

    async def _apply(self, queue: BatchQueue, version: str) -> None:
        assert queue.version is not None
        items = await self._store.apply_version(queue.batch_id, queue.version)
        self._reopened += items
        if items:
            message = "version %r of %r: pending again: %s that another version completed"
            log.info(message, version, queue.name, counted(items, "item"), extra={"batch": queue.name})


def _refusal(batch: str, version: str, rival: Rival, location: str) -> ConfigurationError:
    worker = f"worker {rival.worker_id} (pid {rival.pid} on {rival.host})"
    stop = "its program" if rival.role == "service" else f"it with `asyncrunner stop --db {shlex.quote(location)}`"
    return ConfigurationError(
        f"version {version!r} of the batch {batch!r} cannot start: {worker} runs version {rival.version!r} of it, and each "
        f"version would run the items of the other again. Stop {stop} first, or give version={rival.version!r}"
    )
