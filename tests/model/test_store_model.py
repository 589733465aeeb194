"""Compare a real store with a model: the invariants hold after every sequence of operations.

Numbers in the comments are those of the invariants: 1 each key has one row, and counts add up; 2 a terminal state stays; 3 results belong
to the current claim; 4 one live claim an item, numbers never reused; 5 attempts within their bound; 6 acknowledged is durable;
7 completed is not started again; 12 kept counts equal a recount.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from asyncrunner.backends import open_engine
from asyncrunner.domain.item import Claim, NewItem, Status, Suspicion
from asyncrunner.domain.outcome import Completed, ErrorInfo, Failed, Outcome, PutOff, Released, Retrying, Settlement
from asyncrunner.domain.retry import MAX_CRASHES
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Checkpoint, LostClaim, Turn, Want
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.testing import FakeClock
from tests.support.kinds import chosen, chosen_name
from tests.support.postgres_state import disagreements
from tests.support.state import execute, rows_of

T = TypeVar("T")

KEYS = [f"k{number}" for number in range(6)]
MAX_ATTEMPTS = 3
BOOM = ErrorInfo("ValueError", "boom", "", "f")
LOST = ErrorInfo("WorkerLost", "gone")


class Expected:
    """An item of the model."""

    def __init__(self) -> None:
        self.status = Status.PENDING
        self.attempts = 0
        self.crashes = 0
        self.suspicion = Suspicion.NONE
        self.claim = 0
        self.holder: str | None = None
        self.due = 0.0
        self.result: str | None = None
        self.checkpoint: str | None = None
        self.put_offs = 0
        self.put_off_at: float | None = None
        self.payload = ""
        self.rerun: str | None = None  # the payload of the requested rerun

    def begin_anew(self, payload: str) -> None:
        self.status, self.holder, self.payload, self.rerun = Status.PENDING, None, payload, None
        self.attempts = self.crashes = 0
        self.suspicion, self.result, self.checkpoint, self.put_off_at = Suspicion.NONE, None, None, None
        self.due = 0.0


class StoreModel(RuleBasedStateMachine):
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="asyncrunner-model-"))
        inner = self.folder / "test"  # a kind of store may make a folder beside it
        inner.mkdir()
        self.db = chosen().new_location(inner, "jobs.db")
        self.clock = FakeClock()
        self.items: dict[str, Expected] = {}
        self.workers = 0
        self.live: list[str] = []

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    @initialize()
    def open(self) -> None:
        self.store = open_engine(self.db, clock=self.clock)
        self.do(self.store.open())
        self.batch_id = self.do(self.store.open_batch("b", "h", BatchOptions(max_attempts=MAX_ATTEMPTS))).batch_id
        self.join()

    def join(self) -> None:
        self.workers += 1
        name = f"w{self.workers}"
        self.do(self.store.join(WorkerInfo(name, "here", self.workers)))  # each simulates a separate process
        self.live.append(name)

    # --- operations --------------------------------------------------------------------------------------------------

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=6))
    def submit(self, keys: list[str]) -> None:
        keys = [key for key in keys if key not in self.items or (self.items[key].rerun or self.items[key].payload) == f'"{key}"']
        new = {key for key in keys if key not in self.items}
        added = self.do(self.store.add(self.batch_id, [NewItem(key, f'"{key}"') for key in keys], on_change="error"))
        assert (added.new, added.changed) == (len(new), 0)
        for key in new:
            self.items[key] = Expected()
            self.items[key].payload = f'"{key}"'

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True), payload=st.sampled_from(["1", "2"]))
    def submit_again(self, keys: list[str], payload: str) -> None:
        known = [key for key in keys if key in self.items]
        completed = sum(self.items[key].status is Status.COMPLETED for key in known)
        added = self.do(self.store.add(self.batch_id, [NewItem(key, payload) for key in keys], on_change="run again"))
        assert (added.new, added.changed, len(added.undone)) == (len(keys) - len(known), len(known), completed)
        for key in keys:
            item = self.items.setdefault(key, Expected())
            if key not in known:
                item.payload = payload
            elif item.status is Status.PROCESSING:
                item.rerun = payload
            else:
                item.begin_anew(payload)
                item.claim += 1

    @rule(target=held, count=st.integers(1, 4), which=st.integers(0, 5))
    def claim(self, count: int, which: int) -> Any:
        worker = self.live[which % len(self.live)]
        turn = self.do(self.store.turn(worker, [], [Want(self.batch_id, count, MAX_ATTEMPTS)]))
        # 2, 4, 7: no terminal item and no held item is claimed. A suspect is skipped and keeps its place.
        assert [claim.id for claim in turn.claims] == [key for key in self.ready() if not self.items[key].suspicion][:count]
        return self.took(worker, turn)

    @rule(target=held, which=st.integers(0, 5))
    def claim_a_suspect(self, which: int) -> Any:
        worker = self.live[which % len(self.live)]
        turn = self.do(self.store.turn(worker, [], [Want(self.batch_id, 0, MAX_ATTEMPTS, suspicion=Suspicion.ISOLATED)]))
        suspects = sorted([key for key in self.ready() if self.items[key].suspicion], key=lambda key: self.items[key].suspicion)
        assert [claim.id for claim in turn.claims] == suspects[:1]
        return self.took(worker, turn)

    def ready(self) -> list[str]:
        """Return the items that may run now, in the order in which they were added."""
        keys = [str(key) for (key,) in self.ask("SELECT id FROM items ORDER BY seq")]
        return [key for key in keys if self.items[key].status is Status.PENDING and self.items[key].due <= self.clock.now()]

    def took(self, worker: str, turn: Turn) -> Any:
        for claim in turn.claims:
            item = self.items[claim.id]
            assert claim.number > item.claim  # 4
            item.status, item.holder, item.claim = Status.PROCESSING, worker, claim.number
            item.attempts = min(item.attempts + 1, MAX_ATTEMPTS)
            assert (claim.attempt, claim.checkpoint) == (item.attempts, item.checkpoint)
            assert (claim.put_off_at, claim.payload) == (item.put_off_at, item.payload)
        return multiple(*((worker, claim) for claim in turn.claims))

    @rule(
        held=consumes(held),
        late=st.booleans(),
        outcome=st.one_of(
            st.builds(Completed, st.sampled_from(['"a"', '"b"'])),
            st.builds(Retrying, st.just(BOOM), st.sampled_from([0.0, 5.0])),
            st.builds(PutOff, st.just(BOOM), st.sampled_from([0.0, 5.0])),
            st.builds(Failed, st.just(BOOM), st.booleans()),
            st.just(Released()),
        ),
    )
    def settle(self, held: tuple[str, Claim], late: bool, outcome: Outcome) -> None:
        worker, claim = held
        for _ in range(2 if late else 1):
            item = self.items[claim.id]
            current = worker in self.live and item.status is Status.PROCESSING and item.claim == claim.number
            turn = self.do(self.store.turn(worker, [Settlement(claim, outcome, self.clock.now(), self.clock.now())], []))
            assert list(turn.lost) == ([] if current else [claim])  # 3
            assert list(turn.reruns) == ([claim] if current and item.rerun is not None else [])
            if current and item.rerun is not None:
                item.begin_anew(item.rerun)
            elif current:
                self.expect(item, outcome)

    @rule(held=held, text=st.sampled_from(["1", "[2]"]))
    def save(self, held: tuple[str, Claim], text: str) -> None:
        worker, claim = held
        item = self.items[claim.id]
        current = worker in self.live and item.status is Status.PROCESSING and item.claim == claim.number
        turn = self.do(self.store.turn(worker, [], [], checkpoints=[Checkpoint(claim, text)]))
        assert list(turn.lost) == ([] if current else [claim])  # 3
        if current:
            item.checkpoint = text

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True))
    def cancel(self, keys: list[str]) -> None:
        open_ones = [
            item
            for key, item in self.items.items()
            if key in keys and item.status in (Status.PENDING, Status.PROCESSING)
        ]  # fmt: skip
        assert self.do(self.store.cancel(self.batch_id, keys)) == len(open_ones)
        for item in open_ones:
            item.status, item.holder, item.rerun = Status.CANCELLED, None, None
            item.claim += 1  # 3: the worker that holds it is fenced off

    @rule(held=held)
    def look_for_revoked(self, held: tuple[str, Claim]) -> None:
        _, claim = held
        item = self.items[claim.id]
        current = item.status is Status.PROCESSING and item.claim == claim.number
        revoked = self.do(self.store.lost_claims([claim]))
        assert list(revoked) == ([] if current else [LostClaim(claim, cancelled=item.status is Status.CANCELLED)])

    @rule()
    def a_guardrail_stops_it_until_it_is_opened_again(self) -> None:
        self.do(self.store.stop_batch(self.batch_id, "enough"))
        turn = self.do(self.store.turn(self.live[0], [], [Want(self.batch_id, 5, MAX_ATTEMPTS)]))
        assert (list(turn.claims), turn.batches[self.batch_id].stopped) == ([], "enough")
        self.do(self.store.open_batch("b", "h", BatchOptions(max_attempts=MAX_ATTEMPTS)))

    def expect(self, item: Expected, outcome: Outcome) -> None:
        item.holder = None
        if isinstance(outcome, Completed):
            item.status, item.result = Status.COMPLETED, outcome.result
        elif isinstance(outcome, Failed):
            item.status, item.put_off_at = Status.FAILED, None
        else:
            item.status = Status.PENDING
            delay = outcome.delay if isinstance(outcome, Retrying | PutOff) else 0.0
            item.due = self.clock.now() + delay if delay else 0.0
            item.attempts -= isinstance(outcome, Released | PutOff)
            item.put_offs += isinstance(outcome, PutOff)
            if isinstance(outcome, PutOff) and item.put_off_at is None:
                item.put_off_at = self.clock.now()
            elif isinstance(outcome, Retrying):
                item.put_off_at = None
            item.suspicion = Suspicion.NONE if isinstance(outcome, Retrying) else item.suspicion

    @rule(seconds=st.sampled_from([1.0, 10.0, -3600.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.jump(seconds)

    @rule(which=st.integers(0, 5))
    def recover(self, which: int) -> None:
        worker = self.live.pop(which % len(self.live))
        lost = self.held_by(worker)
        assert self.do(self.store.recover(worker, LOST)) == len(lost)
        assert self.do(self.store.recover(worker, LOST)) == 0
        self.lose(lost)
        self.join()

    def held_by(self, worker: str) -> list[Expected]:
        return [item for item in self.items.values() if item.holder == worker and item.status is Status.PROCESSING]

    def lose(self, lost: list[Expected]) -> None:
        suspects = sum(item.suspicion > Suspicion.NONE for item in lost)
        rows = {key: (status, due) for key, status, due in self.ask("SELECT id, status, due_at IS NULL FROM items")}
        for key, item in self.items.items():
            if item not in lost:
                continue
            if item.rerun is not None:
                item.begin_anew(item.rerun)
                continue
            item.holder = None
            item.crashes += 1
            is_last = item.attempts >= MAX_ATTEMPTS
            if is_last and (len(lost) == 1 or item.crashes >= MAX_CRASHES):
                item.status, item.suspicion, item.put_off_at = Status.FAILED, Suspicion.ISOLATED, None
            else:
                # A last attempt that ran beside other items is refunded: one of them may have caused the crash.
                item.status = Status.PENDING
                is_only = item.suspicion > Suspicion.NONE and suspects == 1
                if item.crashes > 1:
                    is_isolated = is_only or item.suspicion is Suspicion.ISOLATED
                    item.suspicion = Suspicion.ISOLATED if is_isolated else Suspicion.SUSPECT
                item.attempts -= is_last
            # The delay is random: an item that is not due immediately waits at most the longest backoff.
            item.due = 0.0 if rows[key][1] else self.due_of(key)

    def due_of(self, key: str) -> float:
        from asyncrunner.text.timestamps import from_text

        ((text,),) = self.ask(f"SELECT due_at FROM items WHERE id = '{key}'")
        due = from_text(str(text))
        assert due is not None
        assert self.clock.now() <= due + 0.001 <= self.clock.now() + 300.002
        return due

    @rule(leaves=st.booleans())
    def stop_and_start_again(self, leaves: bool) -> None:
        """End properly, or die: the next start recovers the held items."""
        if leaves:
            for worker in self.live:
                self.do(self.store.leave(worker))
            for item in self.items.values():
                if item.status is Status.PROCESSING and item.holder in self.live and item.rerun is not None:
                    item.begin_anew(item.rerun)
                elif item.status is Status.PROCESSING and item.holder in self.live:
                    item.status, item.holder, item.due = Status.PENDING, None, 0.0
                    item.attempts -= 1
        self.do(self.store.close())
        self.store = open_engine(self.db, clock=self.clock)
        self.do(self.store.open())
        gone, self.live = self.live, []
        self.join()
        if not leaves:
            dead = self.do(self.dead(len(gone)))
            assert sorted(dead) == sorted(gone)
            for worker in dead:
                lost = self.held_by(worker)
                self.do(self.store.recover(worker, LOST))
                self.lose(lost)

    async def dead(self, count: int) -> list[str]:
        """Return the dead workers, once they are so many: a server frees the lock of a session, and a store waits for its return."""
        async with asyncio.timeout(20):
            while True:
                dead = [peer.worker_id for peer in await self.store.peers(self.live[0]) if peer.alive is False]
                if len(dead) >= count:
                    return dead
                await asyncio.sleep(0.05)

    @rule(key=st.sampled_from(KEYS))
    def a_person_puts_back_what_is_processing(self, key: str) -> None:
        execute(self.db, f"UPDATE items SET status = 'pending', worker_id = NULL WHERE status = 'processing' AND id = '{key}'")
        item = self.items.get(key)
        if item is not None and item.status is Status.PROCESSING:
            item.status, item.holder, item.due = Status.PENDING, None, 0.0

    @rule(key=st.sampled_from(KEYS))
    def a_person_puts_back_what_has_failed(self, key: str) -> None:
        execute(self.db, f"UPDATE items SET status = 'pending' WHERE id = '{key}' AND status = 'failed'")
        item = self.items.get(key)
        if item is not None and item.status is Status.FAILED:
            item.status, item.due = Status.PENDING, 0.0

    @rule()
    def run_again(self) -> None:
        self.do(self.store.reopen_failed(self.batch_id, max_attempts=None))
        for item in self.items.values():
            if item.status is Status.FAILED:
                item.status, item.attempts, item.due = Status.PENDING, 0, 0.0
                item.crashes, item.suspicion, item.put_off_at = 0, Suspicion.NONE, None

    # --- invariants --------------------------------------------------------------------------------------------------

    def ask(self, query: str) -> list[Any]:
        return rows_of(self.db, query)

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        if not hasattr(self, "store"):
            return
        found = self.ask("SELECT id, status, attempts, claim, worker_id, result, checkpoint, payload, rerun_payload FROM items")
        assert len(found) == len(self.items)  # 1, 6
        for key, status, attempts, claim, worker_id, result, checkpoint, payload, rerun in found:
            item = self.items[key]
            assert (status, attempts, claim, result) == (item.status, item.attempts, item.claim, item.result), key  # 2, 3, 4
            assert checkpoint == item.checkpoint, key  # 3
            assert (payload, rerun) == (item.payload, item.rerun), key  # 6
            assert 0 <= attempts <= MAX_ATTEMPTS  # 5
            assert (status != "processing") or worker_id == item.holder  # 4
        put_offs = {key: item.put_offs for key, item in self.items.items()}
        assert dict(self.ask("SELECT id, put_offs FROM items")) == put_offs  # 5
        assert self.ask(chosen().put_offs) == [(sum(put_offs.values()),)]
        if chosen_name() == "postgres":
            assert disagreements(self.db) == {}
        counts = self.do(self.store.counts(self.batch_id))
        grouped = dict(self.ask("SELECT status, COUNT(*) FROM items GROUP BY status"))
        assert {
            status.value: getattr(counts, status.value) for status in Status if getattr(counts, status.value)
        } == grouped  # 12
        assert counts.total == len(self.items)  # 1

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.do(self.store.close())
        self.loop.close()
        shutil.rmtree(self.folder)


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(
    max_examples=60 if chosen_name() == "sqlite" else 6,  # a step on a server takes a hundred times as long
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
