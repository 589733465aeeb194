"""Changes from outside to what a worker runs: pauses, numbers of slots, and claims that are lost or cancelled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from asyncrunner.execution.execution import Execution, Interruption
from asyncrunner.execution.item_log import fields

if TYPE_CHECKING:
    from asyncrunner.store.protocols import EngineStore
    from asyncrunner.worker.batch_queue import BatchQueue
    from asyncrunner.worker.slots import Slots


log = logging.getLogger("asyncrunner")


class WorkerControls:
    """Reads the changes for the batches of *queues* (by batch id) from the store, and applies them to the queues and *slots*.

    *wake* makes the worker look for items of a batch.
    """

    def __init__(
        self,
        store: EngineStore,
        queues: Mapping[int, BatchQueue],
        slots: Slots,
        *,
        wake: Callable[[BatchQueue], object],
    ) -> None:
        self._store = store
        self._queues = queues
        self._slots = slots
        self._wake = wake

    async def apply_changes(self) -> None:
        """Apply the pauses, resumptions and concurrency changes that an operator requested.

        A busy worker does not learn of them from its turns, which report a batch only when they bring too few items.
        """
        requested = await self._store.controls(list(self._queues))
        for batch_id, controls in requested.items():
            queue = self._queues[batch_id]
            self.set_paused(queue, controls.held)
            if queue.set_limit(controls.concurrency):
                log.info("batch %r: concurrency is now %d", queue.name, queue.limit, extra={"batch": queue.name})
                self._slots.fit_limits()
                self._wake(queue)

    def set_paused(self, queue: BatchQueue, paused: bool) -> None:
        """Pause or resume the starts of a batch, and log it."""
        if not queue.set_paused(paused):
            return
        if not paused:
            log.info("batch %r is resumed", queue.name, extra={"batch": queue.name})
        elif queue.stop_reason is None:  # a stopped batch was logged with its reason
            log.warning(
                "batch %r is paused: no more of its items start until it is resumed", queue.name, extra={"batch": queue.name}
            )
        self._wake(queue)

    async def interrupt_lost_claims(self) -> None:
        """Interrupt the handlers, and drop the unstarted claims, of claims that are lost or whose item was cancelled."""
        running = {
            (execution.claim.seq, execution.claim.number): execution
            for queue in self._queues.values()
            for execution in queue.running
        }
        claims = [execution.claim for execution in running.values()]
        claims += [claim for queue in self._queues.values() for claim in queue.ready]
        if not claims:
            return
        for lost in await self._store.lost_claims(claims):
            queue = self._queues[lost.claim.batch_id]
            execution = running.get((lost.claim.seq, lost.claim.number))
            if execution is not None:
                _interrupt(queue, execution, Interruption.CANCELLED if lost.cancelled else Interruption.LOST)
            elif lost.claim in queue.ready:
                queue.ready.remove(lost.claim)


def _interrupt(queue: BatchQueue, execution: Execution, reason: Interruption) -> None:
    if execution in queue.running and execution.interruption is None:  # it may have ended while the store was read
        log.warning("item %r: %s", execution.key, reason.value, extra=fields(queue.name, execution.claim))
        queue.executor.interrupt(execution, reason)
