"""One run of a simulated program: a runner, its handler, and its callers."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from asyncrunner import Fail, Retry, RetryPolicy, Runner, current_attempt
from asyncrunner.domain.outcome import Completed
from asyncrunner.errors import ItemCancelled, ItemFailed, ItemNotFound, KeyConflict, StoreError, StoreUnavailable
from asyncrunner.events import Settled
from asyncrunner.runner.runner import internals_of
from tests.simulation.disk import Raw, SimulatedStore
from tests.simulation.ledger import result_of
from tests.simulation.loop import Actor
from tests.simulation.scenario import Act

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["CAP", "LONGEST_AFTER", "Process"]

_BOOT: Final = 1000.0
_LONG_GAP: Final = 3.0
CAP: Final = 6.0
"""The longest backoff, in natural seconds."""
LONGEST_AFTER: Final = 8.0
"""The longest time that a handler asks for, in natural seconds."""


class _Clock:
    """The clock of a process; all processes are on one machine."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> float:
        return self._world.wall()

    def monotonic(self) -> float:
        return _BOOT + self._world.loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        timer: asyncio.TimerHandle = self._world.loop.call_later(seconds, callback)
        return timer


class Process:
    """One run of a program with a runner, from its start to its end or death."""

    def __init__(self, world: World, pid: int) -> None:
        self.world = world
        self.pid = pid
        self.disk = world.disk
        self.loop = Actor(f"p{pid}", self)
        self.thread = Actor(f"p{pid}'s thread", self)
        self.raw: Raw | None = None
        self.kill_at_commit = ""
        self.breaks = False
        self.is_broken = False
        self.is_over = False
        self.is_ending = False
        self.was_disturbed = -math.inf  # the end of its last standstill, and the beginning
        self.disturbed_from = -math.inf
        self.woke_at = -math.inf  # it stood still so long that its earlier evidence about other workers is too old
        clock = _Clock(world)
        self.runner = Runner(
            "/simulated/jobs.db",
            concurrency=world.scenario.concurrency,
            stale_after=world.seconds(world.scenario.stale_after),
            shutdown_timeout=world.seconds(5.0),
            clock=clock,
            store=SimulatedStore(self, clock),
        )
        self.handler = self.runner.handler(
            batch="work",
            key="n",
            max_attempts=world.scenario.max_attempts,
            timeout=world.seconds(world.scenario.timeout),
            retry=RetryPolicy(initial=world.seconds(1.0), cap=world.seconds(CAP)),
        )(self.work)
        internals_of(self.runner).events.on(Settled, self._heard)

    def __repr__(self) -> str:
        return self.loop.name

    @property
    def worker_id(self) -> str:
        worker = internals_of(self.runner).worker
        return "" if worker is None else worker.id

    @property
    def is_well(self) -> bool:
        """Return whether the process is started, is not stopping, and does not stand still."""
        running = internals_of(self.runner).engine_task is not None and not (
            self.is_over or self.is_ending or self.is_broken or self.breaks
        )
        return running and self.was_disturbed <= self.world.loop.time()

    def holds_lock(self, worker_id: str) -> bool:
        return not self.loop.is_dead and self.disk.held.get(worker_id, False)

    # --- its life ----------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Start the runner and wait for its end; only known errors may end it."""
        try:
            await self.runner.start()
            self.world.ledger.note(f"{self} is worker {self.worker_id}")
            engine = internals_of(self.runner).engine_task
            assert engine is not None
            await asyncio.wait({engine})
            await self.runner.stop()
            internals_of(self.runner).raise_failure()
        except StoreError as error:
            self.world.ledger.note(f"{self} ended: {type(error).__name__}: {error}")
            if not self.is_broken and not self.is_ending:
                self.world.ledger.wrong("stop", f"{self} ended though nothing was broken: {error!r}")
        self._check_clean()
        self.is_over = True

    def _check_clean(self) -> None:
        """Check invariant 18: no task of the runner remains; tasks of the user may."""
        names = [task.get_name() for task in self.world.loop.tasks_of(self.loop)]
        left = [name for name in names if name.startswith("asyncrunner") or "Engine" in name or "Worker" in name]
        if left:
            self.world.ledger.wrong(18, f"{self} has ended and left {left}")
        held = [worker_id for worker_id in self.world.workers.get(self.pid, ()) if self.disk.held.get(worker_id)]
        if held:
            self.world.ledger.wrong(18, f"{self} has ended and holds the locks of {held}")

    async def stop(self, *, drain: bool) -> None:
        self.is_ending = True
        while internals_of(self.runner).engine_task is None and not self.is_over:  # a stop during the start has no effect
            await asyncio.sleep(self.world.seconds(0.1))
        await self.runner.stop(drain=drain)

    def die(self) -> None:
        """Die as by SIGKILL: no callback runs again, and the locks are free."""
        if self.loop.is_dead or self.is_over:
            return
        self.world.ledger.note(f"{self} dies")
        self.world.counted("deaths")
        self.world.ledger.died(self)
        self.loop.kill()
        self.thread.kill()
        self.is_over = True
        for worker_id in self.world.workers.get(self.pid, ()):
            if worker_id in self.disk.held:
                self.disk.held[worker_id] = False
        self.world.check_recovered_soon(self)

    def hold(self, seconds: float, *, whole: bool) -> None:
        """Stop the loop alone, as a blocking handler does, or the whole process, as SIGSTOP does."""
        until = self.world.loop.time() + seconds
        if self.was_disturbed < self.world.loop.time():
            self.disturbed_from = self.world.loop.time()
        self.was_disturbed = max(self.was_disturbed, until)
        if self.was_disturbed - self.disturbed_from > self.world.seconds(_LONG_GAP):
            self.woke_at = self.was_disturbed
        self.loop.held_until = max(self.loop.held_until, until)
        if whole:
            self.thread.held_until = max(self.thread.held_until, until)

    def go_on(self) -> None:
        """Continue after a standstill."""
        now = self.world.loop.time()
        self.loop.held_until = self.thread.held_until = now
        self.was_disturbed, self.woke_at = min(self.was_disturbed, now), min(self.woke_at, now)

    async def wait_for_commit(self, mark: int | None) -> int:
        """Wait for a commit of another connection and return the new mark. Raises StoreClosed."""
        while True:
            internals_of(self.runner).store._connection.check_open()  # type: ignore[attr-defined]
            if self.world.commits != mark:
                return self.world.commits
            await self.world.changed.wait()
            await asyncio.sleep(self.world.seconds(random.random() * 0.05))

    # --- its handler -------------------------------------------------------------------------------------------------

    async def work(self, item: dict[str, Any]) -> dict[str, Any]:
        attempt = current_attempt()
        claim = attempt._execution.claim
        self.world.ledger.started(self, claim)
        acts = item["acts"]
        how = "returns"
        try:
            await self._act(Act(*acts[min(attempt.number, len(acts)) - 1]), f"claim {claim.number}")
        except BaseException as error:
            how = f"raises {type(error).__name__}"
            raise
        finally:
            self.world.ledger.ended(self, claim, how)
        return result_of(claim.id, claim.number)

    async def _act(self, act: Act, mark: str) -> None:
        seconds = self.world.seconds(act.seconds)
        match act.what:
            case "quick":
                return
            case "hang":
                await asyncio.Event().wait()
            case "swallow" | "stubborn":
                for _ in range(1 if act.what == "swallow" else 1000):
                    with suppress(asyncio.CancelledError):
                        await asyncio.Event().wait()
            case "cancelled":
                raise asyncio.CancelledError
            case "block":
                self.hold(seconds, whole=False)
                await asyncio.sleep(0)
            case "save":
                await current_attempt().save(mark)
        await asyncio.sleep(seconds)
        match act.what:
            case "raise":
                raise ValueError(mark)
            case "fail":
                raise Fail(mark)
            case "retry" | "pause":
                raise Retry(mark, after=min(seconds, self.world.seconds(LONGEST_AFTER)), pause=act.what == "pause")
            case "kill":
                self.die()
                await asyncio.Event().wait()

    # --- its callers -------------------------------------------------------------------------------------------------

    def _heard(self, event: Settled) -> None:
        if isinstance(event.outcome, Completed):
            self.world.ledger.acknowledged(event.id, event.claim.number)

    async def submit(self, call: str, items: list[dict[str, Any]], delay: float | None) -> None:
        ledger = self.world.ledger
        keys = [str(item["n"]) for item in items]
        ledger.submitting(self, call, keys)
        try:
            handles = await self.handler.submit_many(items, delay=delay)
        except (KeyConflict, StoreUnavailable) as error:
            ledger.refused(call, type(error).__name__)
            return
        except (StoreError, asyncio.CancelledError) as error:
            ledger.abandoned(call, type(error).__name__)
            return
        ledger.submitted(call, keys)
        for key, handle in zip(keys, handles, strict=True):
            try:
                result = await handle.result()
            except (ItemFailed, ItemCancelled, StoreError) as error:
                ledger.note(f"{call} gets for {key}: {type(error).__name__}")
            else:
                ledger.acknowledged(key, None, result)

    async def cancel(self, key: str) -> None:
        with suppress(StoreError, ItemNotFound):
            handle = await self.handler.handle(key)
            await handle.cancel()
