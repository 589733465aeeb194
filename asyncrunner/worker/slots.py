"""The slots: coroutines that each run one handler at a time. A slot is created only when a claim needs it.

While handlers never wait, a slot runs claim after claim without returning to the event loop. A slot therefore yields to
the loop's other tasks every few milliseconds, and during a call of the store it releases the interpreter to the store's
thread, if the store has one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, MutableSequence
from functools import partial
from sys import getrefcount
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import getweakrefcount

import anyio

from asyncrunner.execution.coroutine_driver import absorb_cancellation, yield_to_loop

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from asyncrunner.domain.clock import Clock
    from asyncrunner.worker.batch_queue import BatchQueue
    from asyncrunner.worker.claim_runner import ClaimRunner

_MAX_BURST_SECONDS: Final = 0.005
"""The time for which a slot may run handlers that never wait before it yields to the loop's other tasks."""

_FEW_CLAIMS: Final = 20
"""The number of claims whose handlers start without waiting for the request of the next turn."""

_THREAD_YIELD_SECONDS: Final = 0.0003
"""The interval at which slots release the interpreter to the store's thread during a call of the store."""


class Slots:
    """Up to ``concurrency`` slots for the claims of the batch queues; *claims* runs each claim.

    *notes* takes a number of slots and returns a sequence with at least one place for each of them: a slot writes the
    number of the item that it runs to its place. *busy_until* returns ``EngineStore.busy_until``.

    ``concurrency`` is the program's number, or more while an operator has set a higher limit for a batch.
    """

    def __init__(
        self,
        clock: Clock,
        concurrency: int,
        claims: ClaimRunner,
        notes: Callable[[int], MutableSequence[int]],
        busy_until: Callable[[], float],
    ) -> None:
        self.concurrency = concurrency
        self._own_concurrency = concurrency  # from the program
        self._clock = clock
        self._claims = claims
        self._queues: deque[BatchQueue] = deque()  # the first queue gets the next free slot
        self._idle: deque[asyncio.Future[None]] = deque()
        self._count = 0
        self._woken = 0  # slots that were woken or created, and have not looked for a claim since then
        self._extend_notes = notes
        self._busy_until = busy_until
        self._notes: MutableSequence[int] = []
        self._tasks: TaskGroup | None = None
        self._ended = False
        self._calls = 0  # of the store's thread, in progress
        self._thread_yield_at = math.inf  # on the monotonic clock

    def add_queue(self, queue: BatchQueue) -> None:
        """Run the claims of *queue* too; the batch queues get free slots round-robin."""
        self._queues.append(queue)

    def fit_limits(self) -> None:
        """Set ``concurrency`` after the limit of a batch queue has changed; it may exceed the program's number."""
        self.concurrency = max(self._own_concurrency, *(queue.base_limit for queue in self._queues))

    def begin(self, tasks: TaskGroup) -> None:
        """Create the slots in *tasks* from now on.

        The notes begin before the first claim: if the process dies before a handler starts, no item has been running.
        """
        self._notes = self._extend_notes(1)
        self._tasks = tasks

    @property
    def has_begun(self) -> bool:
        """Whether claims can start: only then do the notes tell which claimed items were running."""
        return self._tasks is not None

    def wake(self) -> None:
        """Wake or create one slot if a claim can start.

        One slot is enough: it wakes the next ones when its handler waits.
        """
        if self._can_start and not self._wake_idle() and self._count < self.concurrency and self._tasks is not None:
            self._count += 1
            self._woken += 1
            if self._count > len(self._notes):
                self._notes = self._extend_notes(2 * self._count)
            self._tasks.start_soon(self._slot, self._count - 1, name=f"asyncrunner slot {self._count} (waits for its task)")

    def _wake_two(self) -> None:
        """Wake or create up to two slots: while handlers wait and claims are ready, the number of busy slots doubles."""
        for _ in range(2):
            if self._woken < sum([len(queue.ready) for queue in self._queues]):
                self.wake()

    def wake_soon(self) -> None:
        """Wake or create one slot if a claim can start; for many claims, only after the tasks that the caller starts now.

        A task that sends the next turn to a server then precedes the handlers, which may run for milliseconds.
        """
        if self._idle and self._can_start and sum([len(queue.ready) for queue in self._queues]) > _FEW_CLAIMS:
            asyncio.get_running_loop().call_soon(self._wake_idle)
        else:
            self.wake()

    @property
    def _can_start(self) -> bool:
        if self._claims.starts_no_more:
            return False
        for queue in self._queues:  # noqa: SIM110 - faster than any(); each handler that waits calls this
            if queue.has_work:
                return True
        return False

    def wake_idle(self) -> bool:
        """Wake an idle slot if a claim can start; return whether one was woken. Unlike ``wake()``, call it in any context."""
        return self._can_start and self._wake_idle()

    def _wake_idle(self) -> bool:
        while self._idle:
            if _resolve(self._idle.popleft()):
                self._woken += 1
                return True
        return False

    def end(self) -> None:
        """End every slot after its current handler."""
        self._ended = True
        while self._idle:
            _resolve(self._idle.popleft())

    def begin_call(self) -> None:
        """Record that a call of the store begins: slots regularly release the interpreter to the store's thread."""
        self._calls += 1
        if self._calls == 1:
            self._thread_yield_at = self._clock.monotonic()

    def end_call(self) -> None:
        """Record that a call of the store has ended."""
        self._calls -= 1
        if self._calls == 0:
            self._thread_yield_at = math.inf

    def let_threads_in(self) -> None:
        """Release the interpreter to the store's thread if a call of the store is in progress, and not too often."""
        if self._clock.monotonic() >= self._thread_yield_at:
            self._release()

    def _release(self) -> None:
        now = self._clock.monotonic()
        busy_until = self._busy_until()
        if busy_until <= now:
            _yield_to_threads()
            now = self._clock.monotonic()
        self._thread_yield_at = max(busy_until, now + _THREAD_YIELD_SECONDS)

    async def _slot(self, index: int) -> None:
        # The worker cancels each handler once. Without the shield, anyio's task group would repeat a cancellation.
        self._woken -= 1
        with anyio.CancelScope(shield=True):
            task = cast("asyncio.Task[Any]", asyncio.current_task())
            is_retired = True
            while is_retired and not self._ended:
                running = asyncio.create_task(self._run_claims(index), name=f"asyncrunner slot {index + 1}")
                while not running.done():
                    try:
                        await asyncio.wait({running})
                    except asyncio.CancelledError:  # asyncio.run() cancels every task; the task of the claims ends in order
                        await absorb_cancellation(task)
                try:
                    is_retired = running.result()
                except Exception as error:  # noqa: BLE001 - an error of the engine; the pump raises it
                    self._claims.fail(error)
                    return

    async def _run_claims(self, index: int) -> bool:
        """Run claim after claim; return True if a handler has left something behind in this task.

        A task costs half as much as an item that does nothing. The next handler therefore runs in the same task, but
        only if nothing else refers to the task: no open cancel scope, no timer that would cancel the task, no object that
        a library keeps for the task.
        """
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        with anyio.CancelScope():  # noqa: ASYNC100 - anyio makes a record of the task here, which stays
            pass
        # Since Python 3.14 a call counts its argument or not, depending on the code around it; a partial always counts once.
        count_references = partial(getrefcount, task)
        name, references, weak_references = task.get_name(), count_references(), getweakrefcount(task)
        now = self._clock.monotonic()
        loop_yield_at = now + _MAX_BURST_SECONDS
        while not self._ended:
            queue = self._next_queue()
            if queue is None:
                await self._wait_for_wake(task)
                now = self._clock.monotonic()
                loop_yield_at = now + _MAX_BURST_SECONDS
                continue
            began = now
            claim = queue.ready.popleft()
            self._notes[index] = claim.seq
            try:
                await self._claims.run(queue, claim, task, self._wake_two)
            except Exception as error:  # noqa: BLE001 - an error of the engine; the pump raises it
                self._claims.fail(error)
                return False
            if count_references() != references or getweakrefcount(task) != weak_references or task.get_name() != name:
                return True
            now = self._clock.monotonic()
            # A handler that took longer is assumed to have waited, which let other threads run.
            if now >= self._thread_yield_at and now - began < _THREAD_YIELD_SECONDS:
                self._release()
            if now >= loop_yield_at:
                await yield_to_loop(task)
                now = self._clock.monotonic()
                loop_yield_at = now + _MAX_BURST_SECONDS
        return False

    def _next_queue(self) -> BatchQueue | None:
        if self._claims.starts_no_more:
            return None
        if len(self._queues) == 1:
            queue = self._queues[0]
            return queue if queue.has_work else None
        for _ in range(len(self._queues)):
            queue = self._queues[0]
            self._queues.rotate(-1)
            if queue.has_work:
                return queue
        return None

    async def _wait_for_wake(self, task: asyncio.Task[Any]) -> None:
        wake_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(wake_up)
        try:
            await wake_up
        except asyncio.CancelledError:
            await self._claims.absorb_cancelled_wait(task)
        finally:
            self._woken -= wake_up.done() and not wake_up.cancelled()


def _resolve(future: asyncio.Future[None]) -> bool:
    if future.done():
        return False  # a cancellation has ended the wait
    future.set_result(None)
    return True


def _yield_to_threads() -> None:
    """Release the interpreter for long enough that a waiting thread acquires it.

    The store's thread needs the interpreter after each step of SQLite. A loop that never waits releases the interpreter
    only after a whole switch interval, 5 ms, and each short release restarts the interval. Without this function the
    store makes no progress while the loop is busy. A sleep of one microsecond takes the kernel long enough that the
    other thread acquires the interpreter. The switch interval stays unchanged, because it belongs to the whole program.
    """
    time.sleep(1e-6)
