"""The child processes of a run, as the run sees them: it passes items and requests on, and counts what the children settle."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from asyncrunner.batch.processes.settings import settings_of
from asyncrunner.batch.source.given import GivenItems
from asyncrunner.domain.outcome import Cancelled, Completed, ErrorInfo, Failed, Outcome, PutOff, Released, Retrying
from asyncrunner.runner.processes.messages import ChildState, Request
from asyncrunner.runner.processes.supervisor import Supervisor
from asyncrunner.store.batches import BatchState

if TYPE_CHECKING:
    from asyncrunner.batch.progress import Progress
    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.options import RunOptions
    from asyncrunner.runner.internals import RunnerInternals
    from asyncrunner.runner.processes.child_process import ChildProcess
    from asyncrunner.store.items import Numbers
    from asyncrunner.worker.batch_queue import BatchQueue

_MODULE: Final = "asyncrunner.batch.processes.child"
_MIN_DEATHS: Final = 20  # in succession; an item that kills its process does so at most ten times, or for each of its attempts

OUTCOMES: Final[dict[str, type[Outcome]]] = {
    kind.__name__: kind for kind in (Completed, Retrying, PutOff, Failed, Released, Cancelled)
}
"""The kinds of outcomes, by the names that the states of children have."""

_A_FAILURE: Final = Failed(ErrorInfo("", ""), permanent=False)


def children_of(
    runner: RunnerInternals, handler: Callable[..., Any], batch: str, options: RunOptions, other_option: str
) -> BatchChildren | None:
    """Return the child processes of a run and give them to its *runner*; None if this process runs the handlers.

    *other_option*: an option of the same run, as the caller writes it. Raises ConfigurationError if another process cannot run
    *handler*.
    """
    if options.processes == 1:
        return None
    option = f"--processes {options.processes}" if other_option.startswith("--") else f"processes={options.processes}"
    children = BatchChildren(settings_of(handler, batch, options, option), options, runner.clock)
    runner.children = children.supervisor
    return children


class BatchChildren:
    """The child processes of one run, one for each of *settings*.

    ``idle`` is set once a child reports that the input is read and no item is unfinished, in any process.
    """

    def __init__(self, settings: Sequence[bytes], options: RunOptions, clock: Clock) -> None:
        self._options = options
        self._queue: BatchQueue | None = None
        self._wake: Callable[[], object] = lambda: None
        self._given: GivenItems | None = None
        self._is_input_read = False
        self._progress: Progress | None = None
        self.idle = asyncio.Event()
        self.supervisor = Supervisor(
            _MODULE,
            settings,
            on_state=self._record_state,
            greeting=self._greeting,
            max_deaths=max(_MIN_DEATHS, 2 * options.handler.max_attempts + 1),
            clock=clock,
        )

    def begin(
        self,
        queue: BatchQueue,
        wake: Callable[[], object],
        *,
        given: GivenItems | None,
        is_input_read: bool,
        progress: Progress | None,
    ) -> None:
        """Start the children, which run the items of *queue*. *wake* makes the parent's worker look at the queue.

        *given*: with ``leftovers="leave"``, the items that the children may claim.
        """
        self._queue, self._wake, self._given, self._is_input_read = queue, wake, given, is_input_read
        self._progress = progress
        self.supervisor.begin()

    def give(self, numbers: Numbers) -> None:
        """Permit the children to claim the items with these numbers."""
        self.idle.clear()
        given = GivenItems()
        given.add(list(numbers))
        self.supervisor.send(Request(given=list(given.runs())))

    def record_input_read(self) -> None:
        """Let the children report when no item is unfinished."""
        self._is_input_read = True
        self.supervisor.send(Request(is_input_read=True))

    async def finish(self) -> None:
        """End the children after the last item, so that all that they settled is counted."""
        self.supervisor.drain()
        await self.supervisor.ended.wait()

    def _greeting(self) -> Sequence[Request]:
        return [Request(given=[] if self._given is None else list(self._given.runs()), is_input_read=self._is_input_read)]

    def _record_state(self, child: ChildProcess, before: ChildState, state: ChildState) -> None:
        del child
        queue = self._queue
        assert queue is not None, "no child starts before begin()"
        settled = Counter(state.tally)
        settled.subtract(before.tally)
        for name, count in settled.items():
            queue.tally[OUTCOMES[name]] += count
        if self._progress is not None:
            self._progress.add_attempts(settled[Retrying.__name__], settled[PutOff.__name__])
        self._count_failures(queue, settled[Failed.__name__])
        if state.is_exhausted and queue.answer.stop_reason is None:
            queue.answer.begin_turn()
            queue.answer.record(BatchState(True, None, None, None), is_complete=False, only_suspect=False)
        queue.notify_turn()
        if state.stopped is not None:
            queue.record_stop(state.stopped)
        if state.is_idle:
            self.idle.set()

    def _count_failures(self, queue: BatchQueue, failed: int) -> None:
        """Count items that failed for a limit that is a number of items; each child counts attempts for a share."""
        if not isinstance(self._options.handler.failure_limit, int) or queue.answer.stop_reason is not None:
            return
        for _ in range(failed):
            queue.failures.count(_A_FAILURE, math.inf)
        if queue.failures.reason is not None:
            self._wake()
