"""Apply changes from outside to a worker: pauses, numbers of slots, and claims that are lost or cancelled."""

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
    """The controls of one worker: they read an operator's changes from the store and apply them.

    *queues* (by batch id) and *slots* are what the controls change. *wake* makes the worker look for items of a batch.
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

        The turns of a busy worker do not report these changes: a turn reports a batch only if it returns fewer items of
        the batch than requested.
        """
        requested = await self._store.controls(list(self._queues))
        for batch_id, controls in requested.items():
            queue = self._queues[batch_id]
            self.set_paused(queue, controls.blocked)
            if queue.set_limit(controls.concurrency):
                log.info("batch %r: concurrency is now %d", queue.name, queue.limit, extra={"batch": queue.name})
                self._slots.fit_limits()
                self._wake(queue)

    def set_paused(self, queue: BatchQueue, paused: bool) -> None:
        """Pause or resume the starts of a batch, and log the change."""
        if not queue.set_paused(paused):
            return
        if not paused:
            log.info("batch %r is resumed", queue.name, extra={"batch": queue.name})
        elif queue.answer.stop_reason is None:  # the worker that stopped the batch has logged the reason
            log.warning(
                "batch %r is paused: no more of its items start until the batch is resumed",
                queue.name,
                extra={"batch": queue.name},
            )
        self._wake(queue)

    async def interrupt_lost_claims(self) -> None:
        """Interrupt each handler whose claim is lost or whose item is cancelled; drop such claims that have no slot."""
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
    # The handler may have ended while the store was read.
    if execution in queue.running and execution.interruption is None:
        log.warning("item %r of %r: %s", execution.key, queue.name, reason.value, extra=fields(queue.name, execution.claim))
        queue.executor.interrupt(execution, reason)
