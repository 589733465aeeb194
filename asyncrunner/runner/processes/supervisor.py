"""Keep child processes running: start them, replace those that die, pass requests on, and end them."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import anyio

from asyncrunner.errors import AsyncRunnerError, ConfigurationError, ProcessesFailed, SetupFailed
from asyncrunner.execution.coroutine_driver import absorb_cancellation
from asyncrunner.runner.processes.child_process import ChildProcess, StateObserver
from asyncrunner.runner.processes.messages import ChildState, Request

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock, Timer

log = logging.getLogger("asyncrunner")

_MAX_FAILED_STARTS: Final = 5  # in succession, in one place: children that ended before they were ready
_MIN_PAUSE_SECONDS: Final = 0.1  # before the second replacement in succession; the first one starts immediately
_MAX_PAUSE_SECONDS: Final = 5.0
_STEADY_SECONDS: Final = 60.0  # a child that ran for this long is replaced immediately
_CANCEL_SECONDS: Final = 10.0  # for a cancelled child to end: the grace of handlers, and the retries of the store
_BLOCKED_SECONDS: Final = 1.0  # for a child to confirm a cancellation that is requested again; then a handler blocks it


class Supervisor:
    """The child processes of this process: one for each of *settings*, which all run *module*.

    *on_state* is called with each child, its previous and its new state. *greeting* returns the requests with which a new child
    begins. *max_deaths*: how many children may die in succession while no child settles an attempt; then ``run()`` raises
    ProcessesFailed. It does so too if five children in one place end before they are ready, or if a child reports an error:
    SetupFailed and ConfigurationError are raised as they are.
    ``deaths`` counts the children that died, and ``ended`` is set once all have ended.
    """

    def __init__(
        self,
        module: str,
        settings: Sequence[bytes],
        *,
        on_state: StateObserver,
        greeting: Callable[[], Sequence[Request]],
        max_deaths: int,
        clock: Clock,
    ) -> None:
        self._module = module
        self._settings = settings
        self._on_state = on_state
        self._greeting = greeting
        self._max_deaths = max_deaths
        self._clock = clock
        self._children: set[ChildProcess] = set()
        self._may_begin = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stop: Request | None = None
        self._cancels = 0
        self._timers: list[Timer] = []
        self._deaths_without_progress = 0
        self.deaths = 0
        self.ended = asyncio.Event()

    def begin(self) -> None:
        """Let ``run()`` start the children."""
        self._may_begin.set()

    async def run(self) -> None:
        """Start the children and wait until all have ended in order, which are done or were stopped.

        A cancellation cancels the children; it is not raised. Raises ProcessesFailed, SetupFailed or
        ConfigurationError after the end of all children.
        """
        seats = [asyncio.create_task(self._keep(settings), name="asyncrunner child") for settings in self._settings]
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        try:
            while not all(seat.done() for seat in seats):
                try:
                    await asyncio.wait([seat for seat in seats if not seat.done()], return_when=asyncio.FIRST_EXCEPTION)
                except asyncio.CancelledError:
                    await absorb_cancellation(task)
                    self.cancel()
                if any(_error_of(seat) for seat in seats):
                    self.cancel()
        finally:
            for timer in self._timers:
                timer.cancel()
            self.ended.set()
        for error in [_error_of(seat) for seat in seats]:
            if error is not None:
                raise error

    def send(self, request: Request) -> None:
        """Send *request* to each child that runs; the greeting must include it for later ones."""
        for child in self._children:
            child.send(request)

    def drain(self) -> None:
        """Let the children end after their running handlers; a child that dies is not replaced from now on."""
        if self._stop is None:
            self._request_stop(Request(stop="drain"))

    def cancel(self) -> None:
        """Let the children cancel their handlers, and kill those that have not ended after 10 s.

        The second call kills, after a second, the children whose event loop does not answer.
        """
        self._cancels += 1
        self._request_stop(Request(stop="cancel"))
        if self._cancels == 1:
            self._timers.append(self._clock.call_later(_CANCEL_SECONDS, self._kill))
        elif self._cancels == 2:
            self._timers.append(self._clock.call_later(_BLOCKED_SECONDS, self._kill_blocked))

    def _request_stop(self, request: Request) -> None:
        self._stop = request
        self._stopping.set()
        self._may_begin.set()
        self.send(request)

    def _kill(self) -> None:
        for child in self._children:
            log.warning("a child process (pid %d) has not ended after its cancellation and is killed", child.pid)
            child.kill()

    def _kill_blocked(self) -> None:
        for child in self._children:
            if child.state is None or not child.state.is_stopping:
                log.warning("a handler blocks the event loop of a child process (pid %d), which is killed", child.pid)
                child.kill()

    # --- one seat ------------------------------------------------------------------------------------------------

    async def _keep(self, settings: bytes) -> None:
        """Start a child, and another one whenever it dies, until one ends in order or all children are stopped."""
        deaths = failed_starts = 0
        await self._may_begin.wait()
        while self._stop is None:
            began = self._clock.monotonic()
            child = await self._run_child(settings)
            state = child.state
            if state is not None and state.error is not None:
                raise _failure_of(child, state, state.error)
            if state is not None and state.has_ended:
                return
            if self._stop is not None:
                self.deaths += 1
                return
            failed_starts = failed_starts + 1 if state is None else 0
            self._record_death(child, failed_starts)
            deaths = 1 if self._clock.monotonic() - began >= _STEADY_SECONDS else deaths + 1
            if deaths > 1:
                pause = min(_MIN_PAUSE_SECONDS * 2 ** (deaths - 2), _MAX_PAUSE_SECONDS)
                with anyio.move_on_after(pause):
                    await self._stopping.wait()

    async def _run_child(self, settings: bytes) -> ChildProcess:
        child = ChildProcess(self._module, settings, self._record_state)
        self._children.add(child)
        try:
            for request in self._greeting():
                child.send(request)
            ending = asyncio.ensure_future(child.wait())
            task = asyncio.current_task()
            assert task is not None, "a coroutine runs in a task"
            while not ending.done():
                try:
                    await asyncio.wait({ending})
                except asyncio.CancelledError:  # asyncio.run() cancels every task
                    await absorb_cancellation(task)
                    self.cancel()
                if ending.cancelled():
                    ending = asyncio.ensure_future(child.wait())
        finally:
            self._children.discard(child)
        return child

    def _record_state(self, child: ChildProcess, before: ChildState, state: ChildState) -> None:
        if state.tally != before.tally:
            self._deaths_without_progress = 0
        self._on_state(child, before, state)

    def _record_death(self, child: ChildProcess, failed_starts: int) -> None:
        """Count the death of a child. Raises ProcessesFailed after too many."""
        self.deaths += 1
        self._deaths_without_progress += 1
        code = child.return_code or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        if failed_starts >= _MAX_FAILED_STARTS:
            raise ProcessesFailed(
                f"{failed_starts} child processes in succession ended before they could run a handler, the last one {how}; "
                "see what they wrote to stderr"
            )
        if self._deaths_without_progress >= self._max_deaths:
            raise ProcessesFailed(
                f"{self._deaths_without_progress} child processes in succession died before they finished an item, the last one "
                f"{how}; run again to continue"
            )
        log.warning("a child process (pid %d) ended %s; another one takes its place", child.pid, how)


def _failure_of(child: ChildProcess, state: ChildState, error: str) -> AsyncRunnerError:
    """Return the error of a child that cannot run: the one that its run would raise in this process, if its type is known."""
    if state.setup_error is not None:
        return SetupFailed(error, error=state.setup_error)
    if state.is_configuration:
        return ConfigurationError(error)
    return ProcessesFailed(f"a child process (pid {child.pid}) failed: {error}")


def _error_of(seat: asyncio.Task[None]) -> BaseException | None:
    return seat.exception() if seat.done() and not seat.cancelled() else None
