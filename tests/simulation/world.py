"""Run a scenario: processes start and die on one store, and their changes are checked against the invariants."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from asyncrunner.domain.item import Status
from asyncrunner.runner.runner import internals_of
from asyncrunner.text.timestamps import from_text
from tests.simulation.disk import Disk
from tests.simulation.ledger import Ledger
from tests.simulation.loop import WORLD, Loop, Stuck
from tests.simulation.process import CAP, LONGEST_AFTER, Process
from tests.simulation.scenario import Act, Move, Scenario
from tests.simulation.stretch import engine_in

__all__ = ["Report", "World", "simulate"]

_EPOCH: Final = 1_800_000_000.0
_RESTART: Final = 3.0
_LOOK: Final = 0.4
_LONGEST_BACKOFF: Final = 6.0  # of a store call
_LONGEST_NOTICE: Final = 30.0  # a runner whose disk is broken ends within this time
_JUMPS: Final = (-300.0, -100.0, -30.0, -4.0, 30.0, 300.0)
_CLOCK_SLACK: Final = 5.0  # of the heartbeat: a smaller jump is ignored
_CLOCK_IS_FOLLOWED: Final = 30.0  # after that long
_SLACK: Final = 1.5  # the time of a few store calls and late timers
_GRACE_AND_PATIENCE: Final = 12.0

_BY_HAND: Final = (
    "UPDATE items SET status = 'pending', worker_id = NULL WHERE status = 'processing'",
    "UPDATE items SET status = 'pending', worker_id = NULL WHERE status = 'processing' AND seq % 2 = 0",
    "UPDATE items SET status = 'pending' WHERE status = 'failed'",
    "UPDATE items SET status = 'pending', attempts = 0, due_at = NULL WHERE status = 'failed' AND seq % 2 = 1",
    "UPDATE items SET priority = seq % 5 WHERE status = 'pending'",
    "UPDATE items SET status = 'cancelled' WHERE seq IN (SELECT seq FROM items WHERE status = 'pending' LIMIT 2)",
)

_numbers = itertools.count()


class Report(NamedTuple):
    """The result of a scenario. ``hours``: the time of its clock when the faults ended; the remaining items run after that."""

    hours: float
    violations: list[str]
    history: list[str]
    digest: str
    counted: dict[str, int]
    callbacks: int


class World:
    """A loop, a disk, a wall clock, and the processes."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._rng = random.Random(scenario.seed)
        self.loop = Loop(random.Random(self._rng.getrandbits(64)), self.seconds(0.01))
        self.loop.set_exception_handler(self._not_handled)
        self.disk = Disk(
            random.Random(self._rng.getrandbits(64)), next(_numbers), busy=scenario.busy, latency=self.seconds(scenario.latency)
        )
        self.disk.on_commit = self._committed
        self.disk.on_death = Process.die
        self.disk.on_break = self._check_stopped_soon
        self._wall_offset = _EPOCH
        self.set_back = 0.0
        self._not_followed = 0.0
        self._rough_until = 0.0  # until then a process may still wait to retry a store call
        self.commits = 0
        self.changed = asyncio.Event()
        self.workers: dict[int, list[str]] = {}
        self.processes: list[Process] = []
        self._pids = itertools.count(1)
        self._items: dict[int, tuple[Act, ...]] = {}
        self._callers: list[asyncio.Task[None]] = []
        self._calm_at = 0.0
        self.ledger = Ledger(
            self.disk.auditor,
            self.loop.time,
            self.wall,
            max_attempts=scenario.max_attempts,
            concurrency=scenario.concurrency,
            stale_after=self.seconds(scenario.stale_after),
            longest_delay=self.seconds(CAP + LONGEST_AFTER),
            slack=self.seconds(_SLACK) + 20 * self.disk.latency,
        )

    def seconds(self, natural: float) -> float:
        return natural * self.scenario.stretch

    def wall(self) -> float:
        return self._wall_offset + self.loop.time()

    def counted(self, what: str) -> None:
        self.ledger.counted[what] += 1

    # --- from the beginning to the end -------------------------------------------------------------------------------

    def run(self) -> Report:
        try:
            with engine_in(self.disk, random.Random(self._rng.getrandbits(64)), self.scenario.stretch):
                self.loop.run_until_complete(self._run())
        except Stuck as error:
            self.ledger.wrong(8, str(error))
        finally:
            for process in self.processes:
                process.loop.kill()
                process.thread.kill()
            self.loop.bury()
            self.loop.close()
            self.disk.auditor.close()
        ledger = self.ledger
        return Report(
            self._calm_at / 3600, ledger.violations, ledger.history, ledger.digest, dict(ledger.counted), self.loop.callbacks
        )

    async def _run(self) -> None:
        supervisor = asyncio.create_task(self._supervise())
        for move in sorted(self.scenario.moves, key=lambda move: move.at):
            await asyncio.sleep(max(0.0, self.seconds(move.at) - self.loop.time()))
            self._make(move)
        await asyncio.sleep(max(0.0, self.seconds(self.scenario.seconds) - self.loop.time()))
        self._calm()
        await asyncio.sleep(self.seconds(_CLOCK_IS_FOLLOWED))
        self._check_postponed()
        await self._all_done()
        supervisor.cancel()
        await self._end_all()
        await self._resume()
        self._check_file()

    async def _supervise(self) -> None:
        """Keep one run of each process alive: start it again some time after its end."""
        starts_at = [0.0] * self.scenario.processes
        lives: list[Process | None] = [None] * self.scenario.processes
        while True:
            for slot, process in enumerate(lives):
                if process is not None and process.is_over:
                    starts_at[slot] = self.loop.time() + self.seconds(_RESTART * self._rng.random())
                    lives[slot] = None
                if lives[slot] is None and self.loop.time() >= starts_at[slot]:
                    lives[slot] = self._start()
            await asyncio.sleep(self.seconds(0.3))

    def _start(self) -> Process:
        process = Process(self, next(self._pids))
        self.processes.append(process)
        self.ledger.note(f"{process} is started")
        self.counted("processes")
        self.loop.begin(process.loop, process.live())
        return process

    @property
    def living(self) -> list[Process]:
        return [process for process in self.processes if not process.is_over]

    def _calm(self) -> None:
        self.ledger.note("no more faults")
        self.disk.calm()
        self._calm_at = self.loop.time()
        for process in self.living:
            process.kill_at_commit, process.breaks = "", False
            process.go_on()

    async def _all_done(self) -> None:
        """Check invariant 8: the remaining items finish in the time of their attempts, backoffs and deaths."""
        scenario = self.scenario
        attempt = scenario.timeout + _GRACE_AND_PATIENCE + 2 * CAP + LONGEST_AFTER + _RESTART
        bound = 2 * scenario.stale_after + 60.0 + (10 + 2 * scenario.max_attempts) * attempt * (1 + len(self.ledger.rows))
        give_up_at = self.loop.time() + self.seconds(bound) + self.set_back
        quiet = 0
        while True:
            left: list[object] = [row for row in self.ledger.rows.values() if row.status in (Status.PENDING, Status.PROCESSING)]
            left += self.ledger.on_their_way
            quiet = 0 if left else quiet + 1
            if quiet > 3:  # a call whose caller did not wait may still be in progress
                return
            if self.loop.time() > give_up_at:
                self.ledger.wrong(8, f"in {self.seconds(bound):.0f} s these did not come to an end: {left}")
                return
            await asyncio.sleep(self.seconds(1.0))

    def _check_postponed(self) -> None:
        """Check invariant 11: no item waits longer than a backoff after the clock was set back, except at a requested time."""
        longest = self.seconds(CAP + LONGEST_AFTER) + self._not_followed
        for row in self.ledger.rows.values():
            due = from_text(row.due_at)
            if row.status == Status.PENDING and row.claim > 0 and due is not None and due > self.wall() + longest:
                self.ledger.wrong(11, f"{row.id} waits for {due - self.wall():.0f} s, until {row.due_at}")

    async def _end_all(self) -> None:
        for process in self.living:
            self.loop.begin(process.loop, process.stop(drain=True))
        await self._until("the processes end", lambda: not self.living, 120.0)

    async def _resume(self) -> None:
        """Check invariant 17: the same batch again runs no item and changes no row."""
        if self.ledger.violations:
            return
        before, starts = dict(self.ledger.rows), self.ledger.counted["starts"]
        process = self._start()
        await self._until(
            "a runner starts", lambda: process.is_over or internals_of(process.runner).engine_task is not None, 60.0
        )
        items = [self._payload(int(key)) for key in before]
        if items:
            task = self.loop.begin(process.loop, process.submit("again", items, None))
            await self._until("all is submitted again", task.done, 600.0)
        await asyncio.sleep(self.seconds(5.0))
        if self.ledger.rows != before or self.ledger.counted["starts"] != starts:
            self.ledger.wrong(17, "resuming what is done ran or changed something")
        await self._end_all()

    async def _until(self, what: str, condition: Callable[[], bool], natural: float) -> None:
        give_up_at = self.loop.time() + self.seconds(natural)
        while not condition():
            if self.loop.time() > give_up_at:
                self.ledger.wrong(8, f"{what}: not within {natural:.0f} natural seconds")
                return
            await asyncio.sleep(self.seconds(0.2))

    def _check_file(self) -> None:
        answers = [row[0] for row in self.disk.auditor.execute("PRAGMA integrity_check")]
        answers += [str(row) for row in self.disk.auditor.execute("PRAGMA foreign_key_check")]
        if answers != ["ok"]:
            self.ledger.wrong(16, str(answers))
        strays = self.disk.auditor.execute(
            "SELECT seq, claim FROM result_pieces WHERE NOT EXISTS (SELECT 1 FROM items WHERE items.seq = result_pieces.seq "
            "AND coalesce(items.result_claim, items.claim) = result_pieces.claim AND result = '')"
        ).fetchall()
        if strays:
            self.ledger.wrong(16, f"orphaned pieces of results: {strays}")

    # --- the faults --------------------------------------------------------------------------------------------------

    def _make(self, move: Move) -> None:
        self.ledger.note(f"--- {move.what} {move.who} {move.which} {move.seconds}")
        living = self.living
        process = living[move.who % len(living)] if living else None
        seconds = self.seconds(move.seconds)
        match move.what:
            case "jump":
                self._jump(self.seconds(_JUMPS[move.which]))
            case "locked" | "full":
                self._for_a_while(move.what, seconds)
            case "stop all":
                for each in living:
                    each.hold(seconds, whole=True)
            case "operator":
                self.disk.auditor.execute(_BY_HAND[move.which])
                self.ledger.committed(None, None)
                self._tell()
            case "cancel task":
                for task in [task for task in self._callers if not task.done()][-1 - move.which :]:
                    task.cancel()
            case _ if process is not None:
                self._make_of(process, move, seconds)

    def _make_of(self, process: Process, move: Move, seconds: float) -> None:
        match move.what:
            case "submit":
                self._submit(process, move)
            case "conflict":
                taken = list(self.ledger.rows)[: 1 + move.which]
                if taken:
                    self._call(
                        process, [{"n": len(self._items) + 1_000_000, "acts": []}, {"n": int(taken[-1]), "acts": "other"}], None
                    )
            case "kill":
                process.die()
            case "kill at commit":
                process.kill_at_commit = "before" if move.which % 2 else "after"
            case "block" | "stop one":
                process.hold(seconds, whole=move.what == "stop one")
            case "break":
                process.breaks = True
            case "cancel item":
                if self._items:
                    self.loop.begin(process.loop, process.cancel(str(move.which * 7 % len(self._items))))
            case "end":
                self.loop.begin(process.loop, process.stop(drain=move.which > 1))
            case _:
                raise ValueError(move.what)

    def _submit(self, process: Process, move: Move) -> None:
        numbers = range(len(self._items), len(self._items) + len(move.items))
        self._items.update(zip(numbers, move.items, strict=True))
        delay = self.seconds(move.seconds) if move.which == 0 else None
        self._call(process, [self._payload(number) for number in numbers], delay)

    def _payload(self, number: int) -> dict[str, Any]:
        return {"n": number, "acts": [[act.what, act.seconds] for act in self._items[number]]}

    def _call(self, process: Process, items: list[dict[str, Any]], delay: float | None) -> None:
        call = f"call {len(self._callers)}"
        self._callers.append(self.loop.begin(process.loop, process.submit(call, items, delay)))

    def _jump(self, seconds: float) -> None:
        before = self.wall()
        self._wall_offset += seconds
        self.set_back += max(0.0, -seconds)
        if 0 < -seconds <= self.seconds(_CLOCK_SLACK):
            self._not_followed += -seconds
        self.ledger.wall_jumped(before)

    def _for_a_while(self, what: str, seconds: float) -> None:
        setattr(self.disk, what, True)
        self._rough_until = max(self._rough_until, self.loop.time() + seconds + self.seconds(_LONGEST_BACKOFF))
        self.loop.call_later(seconds, setattr, self.disk, what, False)

    # --- the checks --------------------------------------------------------------------------------------------------

    def _committed(self, process: Process, raw: Any) -> None:
        if not raw.has_changed_something:
            return
        for worker_id in raw.beats:
            known = self.workers.setdefault(process.pid, [])
            if worker_id not in known:
                known.append(worker_id)
        self.ledger.committed(process, raw)
        self._tell()

    def _tell(self) -> None:
        self.commits += 1
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def check_recovered_soon(self, dead: Process) -> None:
        """Check invariant 10: its items are released within one check of any healthy process."""
        faults, died_at = self.disk.faults, self.loop.time()
        if died_at < self._rough_until:
            return
        wait = self.seconds(_LOOK + _SLACK) + 20 * self.disk.latency
        well = [process for process in self.living if process.is_well]
        workers = self.workers.get(dead.pid, ())

        def check() -> None:
            still = [process for process in well if process.is_well and process.was_disturbed <= died_at]
            held = [row.id for row in self.ledger.rows.values() if row.status == Status.PROCESSING and row.worker_id in workers]
            if still and held and self.disk.faults == faults and self.loop.time() >= self._rough_until:
                self.ledger.wrong(10, f"{wait:.3f} s after the death of {dead} {held} are not free, and {still} live")

        self.loop.call_later(wait, check, context=WORLD.context())

    def _check_stopped_soon(self, broken: Process) -> None:
        """Check that a process which cannot write stops with an error, even if its handlers do not end."""

        def check() -> None:
            if not broken.is_over and broken.was_disturbed <= broke_at:
                self.ledger.wrong("stop", f"the disk of {broken} broke at {broke_at:.3f} and it still runs")

        broke_at = self.loop.time()
        self.ledger.note(f"the disk of {broken} is broken")
        self.loop.call_later(self.seconds(_LONGEST_NOTICE), check, context=WORLD.context())

    def _not_handled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.ledger.wrong("loop", f"{context.get('message')}: {context.get('exception')!r}")


def simulate(scenario: Scenario) -> Report:
    """Run the scenario and return its report."""
    logger = logging.getLogger("asyncrunner")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        return World(scenario).run()
    finally:
        logger.setLevel(level)
