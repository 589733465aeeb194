"""Run claims in the slots, and collect their settlements for the next turn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from asyncrunner.domain.outcome import LARGE_RESULT, RESULT_PIECE, Completed, PutOff, Settlement
from asyncrunner.events import Events, Started
from asyncrunner.execution.coroutine_driver import absorb_cancellation
from asyncrunner.execution.execution import Interruption
from asyncrunner.execution.item_log import fields, item_log
from asyncrunner.text.escaping import counted

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import Claim
    from asyncrunner.execution.execution import Save
    from asyncrunner.store.protocols import EngineStore
    from asyncrunner.worker.batch_queue import BatchQueue
    from asyncrunner.worker.publisher import OutcomePublisher


log = logging.getLogger("asyncrunner")


class ClaimRunner:
    """A runner for the claims of *queues* (by batch id). It collects their settlements until the pump takes them.

    *save* makes a checkpoint durable. The runner calls *on_news* when the pump has work. ``is_draining``: the worker
    claims no more items, and ends when it has no claims left. ``starts_no_more``: in addition, free slots start none of
    the remaining claims. ``failure`` is an error of the engine in a slot; the pump raises it.
    """

    def __init__(
        self,
        store: EngineStore,
        queues: Mapping[int, BatchQueue],
        *,
        events: Events,
        clock: Clock,
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
        self._clock = clock
        self._started_observers = events.observers_of(Started)
        self._publisher = publisher
        self._save = save
        self._on_news = on_news
        self._pump: asyncio.Task[Any] | None = None

    # --- called by the pump --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Record that the calling task runs the pump."""
        self._pump = asyncio.current_task()

    def take_finished(self) -> list[Settlement]:
        """Remove and return the settlements that wait for a turn."""
        finished, self.finished = self.finished, []
        return finished

    def drain(self) -> None:
        """Stop claiming, and let the running handlers end."""
        self.is_draining = True
        self._on_news()

    def interrupt(self, reason: Interruption) -> None:
        """Interrupt every running handler, and abandon the handlers that have not ended after the grace period.

        A shutdown also drains the worker.
        """
        if reason is Interruption.SHUTDOWN:
            self.starts_no_more = True
            self.drain()
        for queue in self._queues.values():
            for execution in queue.running:
                queue.executor.interrupt(execution, reason)

    # --- called by the slots -------------------------------------------------------------------------------------

    async def run(self, queue: BatchQueue, claim: Claim, task: asyncio.Task[Any], wake_next: Callable[[], object]) -> None:
        """Run *claim* to its end in *task*, the task of the slot; call *wake_next* when the handler first waits.

        Raises only errors of the engine, because an error of the handler is an outcome.
        """
        execution = queue.executor.start(claim, task, self._save)
        queue.running.add(execution)
        if self._started_observers:
            self._events.publish(Started(queue.name, claim.id, claim.attempt))
        if self._publisher.log_attempts:
            item_log.debug(
                "item %r of %r, attempt %d: started", claim.id, queue.name, claim.attempt, extra=fields(queue.name, claim)
            )
        settled = await queue.executor.run(execution, is_closing=self._is_closing, on_wait=wake_next)
        if settled is not None and isinstance(settled.outcome, Completed) and len(settled.outcome.result) > LARGE_RESULT:
            settled = await self._store_large_result(settled, settled.outcome.result, task)
        queue.running.discard(execution)
        if execution.interruption is Interruption.CANCELLED:
            self._publisher.publish_cancelled(queue, settled)
        elif settled is not None:
            if queue.failures.is_watching:
                self._count_outcome(queue, settled)
            if queue.throttle.is_active or type(settled.outcome) is PutOff:
                self._adapt_limit(queue, settled)
            self.finished.append(settled)
        self._on_news()

    def fail(self, error: Exception) -> None:
        """Record an error of the engine that ended a slot. The pump raises the first such error."""
        self.failure = self.failure or error
        self._on_news()

    async def absorb_cancelled_wait(self, task: asyncio.Task[Any]) -> None:
        """Handle a cancellation of a slot's own wait."""
        if self._is_torn_down():
            self.interrupt(Interruption.SHUTDOWN)
        else:
            # A timer of a handler that has ended cancelled the task, which the slot still uses.
            await absorb_cancellation(task)

    # --- private -------------------------------------------------------------------------------------------------

    def _count_outcome(self, queue: BatchQueue, settled: Settlement) -> None:
        if queue.count_outcome(settled, self._clock.monotonic()):
            log.info("batch %r continues: an item completed after the rest", queue.name, extra={"batch": queue.name})

    def _adapt_limit(self, queue: BatchQueue, settled: Settlement) -> None:
        decreased_at = queue.throttle.decreased_at
        begins_rest = queue.adapt_limit(settled, self._clock.monotonic())
        if queue.throttle.decreased_at != decreased_at or begins_rest:
            log.info(
                "batch %r: a service puts items off; at most %s of the batch run at the same time%s",
                queue.name,
                counted(queue.throttle.target, "item"),
                ", and none starts before the time that the service requests" if begins_rest else "",
                extra={"batch": queue.name},
            )

    async def _store_large_result(self, settled: Settlement, result: str, task: asyncio.Task[Any]) -> Settlement:
        """Store a large result in pieces while its slot waits, to limit how many large results are in memory.

        Return *settled* unchanged if the claim was lost or the wait was cancelled. After a cancellation the turn stores
        the whole result in its transaction, which delays the other items of that turn.
        """
        try:
            for piece, first in enumerate(range(0, len(result), RESULT_PIECE)):
                text = result[first : first + RESULT_PIECE]
                if not await self._store.stage_result(settled.claim, piece, text):
                    return settled  # the claim was lost; the turn reports it
        except asyncio.CancelledError:
            await self.absorb_cancelled_wait(task)
            return settled
        return Settlement(settled.claim, Completed(result, kept=True), settled.started_at, settled.finished_at)

    def _is_torn_down(self) -> bool:
        """Return whether the loop is being closed without stop(): asyncio.run() cancels every task once."""
        return self._pump is not None and self._pump.cancelling() > 0

    def _is_closing(self) -> bool:
        return self.is_draining or self._is_torn_down()
