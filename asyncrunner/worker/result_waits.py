"""Count the handlers that wait for the result of another item, and refuse a wait that would never end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from asyncrunner.errors import ConfigurationError
from asyncrunner.execution.attempt import current_execution

if TYPE_CHECKING:
    from asyncrunner.execution.execution import Execution
    from asyncrunner.worker.batch_queue import BatchQueue
    from asyncrunner.worker.slots import Slots


class ResultWaits:
    """The running handlers of *queues* (by batch id) that wait for the result of an item in this or another batch.

    *on_wait* is called when a handler begins to wait: an isolated suspect may start then.
    """

    def __init__(self, queues: Mapping[int, BatchQueue], slots: Slots, *, on_wait: Callable[[], object]) -> None:
        self._queues = queues
        self._slots = slots
        self._on_wait = on_wait
        self._waiting: set[Execution] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def waiting(self, batch: str, key: str, *, is_running: bool = False) -> Generator[None, None, None]:
        """Count the calling handler as waiting for item *key* of *batch* inside the ``with`` block.

        *is_running*: according to the store, a worker runs the item. The caller may be in another thread than the worker.

        Raises ConfigurationError in a handler if the wait would never end: handlers that wait for results use every
        slot that could run the item, or the handler waits for its own item.
        """
        execution = current_execution.get(None)
        if execution is None or not self._runs_here(execution):
            yield
            return
        self._waiting.add(execution)
        try:
            is_own = (execution.batch, execution.key) == (batch, key)
            self._check_slots(batch, key, is_own=is_own, is_running=is_running)
            self._notify(execution)
            yield
        finally:
            self._waiting.discard(execution)

    def _runs_here(self, execution: Execution) -> bool:
        queue = self._queues.get(execution.claim.batch_id)
        return queue is not None and execution in queue.running

    def _notify(self, execution: Execution) -> None:
        task = execution.task
        if task is None:
            return
        try:
            is_here = asyncio.get_running_loop() is task.get_loop()
        except RuntimeError:
            is_here = False
        if is_here:
            self._on_wait()
        else:  # a `def` handler waits through a BlockingClient
            task.get_loop().call_soon_threadsafe(self._on_wait)

    def _check_slots(self, batch: str, key: str, *, is_own: bool, is_running: bool) -> None:
        queue = next((queue for queue in self._queues.values() if queue.name == batch), None)
        if queue is None or key in {execution.key for execution in queue.running - self._waiting}:
            return  # another runner runs the item, or a handler of this worker runs it now
        claimed_here = {execution.key for execution in tuple(queue.running)} | {claim.id for claim in tuple(queue.ready)}
        if is_running and key not in claimed_here:
            return  # another worker runs the item
        if is_own:
            raise ConfigurationError(
                f"item {key!r} of {batch!r} waits here for its own result, so the wait would never end; return the result instead"
            )
        waiting_in_batch = len(queue.running & self._waiting)
        if waiting_in_batch >= queue.base_limit or len(self._waiting) >= self._slots.concurrency:
            raise ConfigurationError(
                f"waiting here for item {key!r} of {batch!r} would never end: every slot that could run it is held by a handler "
                "that waits for a result. Raise concurrency=, or submit the item and return without waiting"
            )
