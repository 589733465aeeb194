"""Run claims in the slots, from the claim to the settlement that waits for the next turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from asyncrunner.domain.outcome import LARGE_RESULT, RESULT_PIECE, Completed, Settlement
from asyncrunner.events import Events, Started
from asyncrunner.execution.coroutine_driver import absorb_cancellation
from asyncrunner.execution.execution import Interruption
from asyncrunner.execution.item_log import fields, item_log

if TYPE_CHECKING:
    from asyncrunner.domain.item import Claim
    from asyncrunner.execution.execution import Save
    from asyncrunner.store.protocols import EngineStore
    from asyncrunner.worker.batch_queue import BatchQueue
    from asyncrunner.worker.publisher import OutcomePublisher


class ClaimRunner:
    """Runs the claims of *queues* (by batch id), and collects their settlements until the pump takes them.

    *save* makes a checkpoint durable; *on_news* is called when the pump has something to do. ``is_draining``: the worker
    claims nothing more and ends once nothing is in hand. ``starts_no_more``: free slots do not start the remaining claims
    either. ``failure`` is an error of the engine in a slot, which the pump raises.
    """

    def __init__(
        self,
        store: EngineStore,
        queues: Mapping[int, BatchQueue],
        *,
        events: Events,
        publisher: OutcomePublisher,
        save: Save,
        on_news: Callable[[], object],
    ) -> None:
        self.is_draining = False
        self.starts_no_more = False
        self.failure: Exception | None = None
        self.finished: list[Settlement] = []
        self._store = store
        self._queues = queues
        self._events = events
        self._started_observers = events.observers_of(Started)
        self._publisher = publisher
        self._save = save
        self._on_news = on_news
        self._pump: asyncio.Task[Any] | None = None

    # --- called by the pump --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Remember the calling task as the pump's."""
        self._pump = asyncio.current_task()

    def take_finished(self) -> list[Settlement]:
        """Remove and return the settlements that wait for a turn."""
        finished, self.finished = self.finished, []
        return finished

    def drain(self) -> None:
        """Let the running handlers end; the pump claims nothing more."""
        self.is_draining = True
        self._on_news()

    def interrupt(self, reason: Interruption) -> None:
        """Interrupt every running handler; abandon those that have not ended after the grace."""
        if reason is Interruption.SHUTDOWN:
            self.starts_no_more = True
            self.drain()
        for queue in self._queues.values():
            for execution in queue.running:
                queue.executor.interrupt(execution, reason)

    # --- called by the slots -------------------------------------------------------------------------------------

    async def run(self, queue: BatchQueue, claim: Claim, task: asyncio.Task[Any], wake_next: Callable[[], object]) -> None:
        """Run *claim* to its end in *task*, the slot's; *wake_next* is called when the handler first waits.

        An exception is an error of the engine: an error of the handler is an outcome.
        """
        execution = queue.executor.start(claim, task, self._save)
        queue.running.add(execution)
        if self._started_observers:
            self._events.publish(Started(queue.name, claim.id, claim.attempt))
        if self._publisher.log_attempts:
            item_log.debug("attempt %d begins", claim.attempt, extra=fields(queue.name, claim))
        settled = await queue.executor.run(execution, is_closing=self._is_closing, on_wait=wake_next)
        if settled is not None and isinstance(settled.outcome, Completed) and len(settled.outcome.result) > LARGE_RESULT:
            settled = await self._store_large_result(settled, settled.outcome.result, task)
        queue.running.discard(execution)
        if execution.interruption is Interruption.CANCELLED:
            self._publisher.publish_cancelled(queue, settled)
        elif settled is not None:
            self.finished.append(settled)
        self._on_news()

    def fail(self, error: Exception) -> None:
        """Record an error of the engine, which ended a slot. The pump raises the first one."""
        self.failure = self.failure or error
        self._on_news()

    async def absorb_cancelled_wait(self, task: asyncio.Task[Any]) -> None:
        """Handle a cancellation of a slot's own wait."""
        if self._is_torn_down():
            self.interrupt(Interruption.SHUTDOWN)
        else:
            # A handler that has ended requested it, with its own timer on the task that it shares with the slot.
            await absorb_cancellation(task)

    # --- private -------------------------------------------------------------------------------------------------

    async def _store_large_result(self, settled: Settlement, result: str, task: asyncio.Task[Any]) -> Settlement:
        """Store a large result in pieces while its slot waits, so that few large results are in memory at the same time.

        Return *settled* unchanged if the claim was lost or the wait was cancelled. After a cancellation the turn stores
        the result in its own transaction, however long that delays the other items.
        """
        try:
            for piece, first in enumerate(range(0, len(result), RESULT_PIECE)):
                text = result[first : first + RESULT_PIECE]
                if not await self._store.stage_result(settled.claim, piece, text):
                    return settled  # the claim was lost: the turn will report it
        except asyncio.CancelledError:
            await self.absorb_cancelled_wait(task)
            return settled
        return settled._replace(outcome=Completed(result, kept=True))

    def _is_torn_down(self) -> bool:
        """Return whether the loop is being closed without stop(): asyncio.run() cancels every task once."""
        return self._pump is not None and self._pump.cancelling() > 0

    def _is_closing(self) -> bool:
        return self.is_draining or self._is_torn_down()
