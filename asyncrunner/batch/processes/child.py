"""What a child process of a run does: ``python -m asyncrunner.batch.processes.child``, which only a parent process starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from asyncrunner.batch.processes.children import OUTCOMES
from asyncrunner.batch.processes.importing import importing
from asyncrunner.batch.processes.settings import ChildSettings
from asyncrunner.domain.outcome import Failed
from asyncrunner.errors import StoreClosed, StoreUnavailable
from asyncrunner.events import Settled
from asyncrunner.runner.internals import RunnerInternals
from asyncrunner.runner.processes.messages import MAX_REASON, ChildState, Request
from asyncrunner.runner.processes.parent_link import ParentLink, run_child
from asyncrunner.runner.runner import stop_retrying
from asyncrunner.store.retrying import every

if TYPE_CHECKING:
    from asyncrunner.submission.handler import Handler
    from asyncrunner.worker.batch_queue import BatchQueue

_REPORT_SECONDS: Final = 0.1  # between two reports of changes
_MAX_SILENCE_SECONDS: Final = 1.0  # between two reports without a change
_MAX_GIVEN: Final = 10_000  # items in one transaction


class _Child:
    """The runner of this child process, which runs the items of one batch until the batch is done or the parent stops it."""

    def __init__(self, settings: ChildSettings) -> None:
        with importing():
            function, runner, options = settings.load()
        self._settings = settings
        # A request to stop that is stored in the file is for the parent too, which passes it on.
        self._internals = RunnerInternals(runner, role="child", on_stop=lambda _: None)
        self._handler: Handler[Any, Any] = self._internals.register(function, options)
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._is_stopping = False
        self._is_input_read = asyncio.Event()

    async def run(self, link: ParentLink) -> None:
        """Run items until the parent requests a stop, or has ended. Raises the failure of the runner."""
        link.forward_log()
        link.listen(self._take, shutdown_timeout=self._settings.shutdown_timeout)
        await self._internals.start()
        queue = self._internals.queue(self._handler)
        queue.only_given = self._settings.only_given
        engine = self._internals.engine_task
        assert engine is not None, "the runner is started"
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._internals.wait_for_versions()
            self._internals.begin_claims()
            link.send(self._state(queue))
            if queue.failures.is_watching:
                self._internals.events.on(Settled, partial(self._report_failure, link, queue))
            reporting = every(_REPORT_SECONDS, partial(self._report, link, queue), clock=self._internals.clock)
            tasks = [asyncio.create_task(each) for each in (reporting, self._report_idle(link, queue), self._obey(queue))]
            await asyncio.wait({engine, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and not engine.done():
                    with suppress(StoreUnavailable):  # only during a stop; the next start recovers the items
                        task.result()  # raises
        finally:
            for task in tasks:
                task.cancel()
            await self._internals.stop(drain=True)
        self._internals.raise_lasting_failure()
        link.send_end(self._state(queue))

    async def _report_idle(self, link: ParentLink, queue: BatchQueue) -> None:
        await self._is_input_read.wait()
        while True:
            await queue.answer.idle.wait()
            link.send(self._state(queue))
            await self._internals.clock.sleep(_REPORT_SECONDS)

    # --- the parent ----------------------------------------------------------------------------------------------

    def _take(self, request: Request) -> None:
        if request.stop is not None:
            self._is_stopping = True
        if request.stop == "drain":
            self._internals.request_stop()
            stop_retrying(self._internals)
        elif request.stop == "cancel":
            self._internals.request_cancel()
            stop_retrying(self._internals, 0.0)
        self._requests.put_nowait(request)

    async def _obey(self, queue: BatchQueue) -> None:
        """Apply the requests that need the store, in their order."""
        if self._is_stopping:  # the request came before the start
            self._internals.request_stop()
        with suppress(StoreClosed):
            while True:
                request = await self._requests.get()
                await self._give(queue, [number for first, count in request.given for number in range(first, first + count)])
                if request.is_input_read:
                    self._internals.wake(self._handler)  # the newest answer may be older than the last item
                    self._is_input_read.set()

    async def _give(self, queue: BatchQueue, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), _MAX_GIVEN):
            chunk = numbers[start : start + _MAX_GIVEN]
            await self._internals.retrying_store.give(queue.batch_id, chunk, max_attempts=0)
            self._internals.wake(self._handler)

    async def _report(self, link: ParentLink, queue: BatchQueue) -> None:
        link.send(self._state(queue), every=_MAX_SILENCE_SECONDS)

    def _report_failure(self, link: ParentLink, queue: BatchQueue, settled: Settled) -> None:
        """Report a failed item immediately, because the parent counts the failures of all children."""
        if type(settled.outcome) is Failed:
            link.send(self._state(queue))

    def _state(self, queue: BatchQueue) -> ChildState:
        stopped = queue.answer.stop_reason
        return ChildState(
            tally={name: queue.tally[kind] for name, kind in OUTCOMES.items() if queue.tally[kind]},
            is_exhausted=queue.answer.exhausted,
            stopped=None if stopped is None else stopped[:MAX_REASON],
            is_idle=self._is_input_read.is_set() and queue.answer.idle.is_set(),
            is_stopping=self._is_stopping,
        )


def _prepare(settings: bytes) -> Callable[[ParentLink], Coroutine[Any, Any, None]]:
    return _Child(msgspec.json.decode(settings, type=ChildSettings)).run


if __name__ == "__main__":
    run_child(_prepare)
