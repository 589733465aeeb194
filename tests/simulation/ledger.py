"""The history of a scenario and the checks of its invariants. The numbers are those in the docstring of the package.

After every commit that may have changed items, the rows are compared with the rows before. Each change is split into the end of one claim
and the beginning of another, and both must be permitted. Handlers report when they begin and end.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

from asyncrunner.domain.item import Status
from asyncrunner.sqlite.queries import counts
from asyncrunner.text.timestamps import from_text
from asyncrunner.worker import isolation
from asyncrunner.worker.batch_queue import Prefetch
from tests.support.files import WHOLE_RESULT

if TYPE_CHECKING:
    from asyncrunner.domain.item import Claim
    from tests.simulation.disk import Raw
    from tests.simulation.process import Process

__all__ = ["LARGE_RESULT", "Ledger", "Row", "result_of"]

_ROWS: Final = f"""
SELECT id, seq, status, attempts, crashes, claim, worker_id, due_at, permanent, suspect, {WHOLE_RESULT}, error FROM items ORDER BY seq"""
_FAILURE: Final = "SELECT error_type, message, failed_at FROM failures WHERE batch_id = 1 AND id = ? AND claim = ?"
_HISTORY: Final = """SELECT (SELECT sum(completed) FROM history), (SELECT sum(failed + retried) FROM history),
    (SELECT count(*) FROM items WHERE status = 'completed'), (SELECT count(*) FROM failures)"""
_MEMBERS: Final = "SELECT worker_id FROM workers WHERE ended_at IS NULL"
_OWN_ERRORS: Final = ("ValueError", "Retry", "Fail")
_MAX_CRASHES: Final = 10
LARGE_RESULT: Final = 100


def result_of(key: str, claim: int) -> dict[str, object]:
    """Return the result of a handler; one in three is large for the limits in ``stretch``."""
    pad = {"pad": "x" * LARGE_RESULT} if crc32(key.encode()) % 3 == 0 else {}
    return {"key": key, "claim": claim, **pad}


class Row(NamedTuple):
    id: str
    seq: int
    status: str
    attempts: int
    crashes: int
    claim: int
    worker_id: str | None
    due_at: str | None
    permanent: int
    suspect: int
    result: str | None
    error: str | None


class Grant(NamedTuple):
    """The worker that got a claim."""

    process: Process
    worker_id: str


class Ledger:
    """The history of one simulation, and the breaches of invariants in it."""

    def __init__(self, auditor: Raw, clock: Callable[[], float], wall: Callable[[], float], *, max_attempts: int,
                 concurrency: int, stale_after: float, longest_delay: float, slack: float) -> None:  # fmt: skip
        self._auditor = auditor
        self._clock = clock
        self._wall = wall
        self._max_attempts = max_attempts
        self._concurrency = concurrency
        self._stale_after = stale_after
        self._longest_delay = longest_delay
        self._slack = slack
        self.history: list[str] = []
        self.violations: list[str] = []
        self.rows: dict[str, Row] = {}
        self.counted: Counter[str] = Counter()
        self.beats: dict[str, float] = {}  # when each worker's newest beat was committed
        self._jumps: list[tuple[float, float]] = []  # the time of the jump, and how far the clock was set back
        self._grants: dict[tuple[str, int], Grant] = {}
        self._started: set[tuple[str, int]] = set()
        self._claimed_at: dict[tuple[str, int], float] = {}
        self._running: dict[tuple[str, int], Process] = {}
        self._revoked: set[tuple[str, int]] = set()  # by an operator, or because the worker was lost
        self._is_set_back = False
        self._together: dict[str, tuple[Process, frozenset[str]]] = {}  # of a submit_many on its way

    # --- recording --------------------------------------------------------------------------------------------------

    def note(self, what: str) -> None:
        self.history.append(f"{self._clock():14.3f} {what}")

    def wrong(self, number: object, what: str) -> None:
        self.violations.append(f"{number}: {what}")
        self.note(f"VIOLATION {number}: {what}")

    @property
    def digest(self) -> str:
        """Return a hash that is the same for equal histories."""
        return hashlib.sha256("\n".join(self.history).encode()).hexdigest()

    def wall_jumped(self, before: float) -> None:
        """Record a jump of the wall clock; an operation in progress may have read the earlier time."""
        self._jumps.append((self._clock(), before - self._wall()))

    def _latest_wall(self, process: Process) -> float:
        """Return the latest wall time that a transaction of *process* may have read; it may have waited since then."""
        now = self._clock()
        since = (process.disturbed_from if process.was_disturbed > now - self._slack else now) - self._slack
        return self._wall() + sum(max(0.0, back) for at, back in self._jumps if at >= since)

    # --- handlers ----------------------------------------------------------------------------------------------------

    def started(self, process: Process, claim: Claim) -> None:
        mark = (claim.id, claim.number)
        self.note(f"{process} starts {claim.id} claim {claim.number} attempt {claim.attempt}")
        self.counted["starts"] += 1
        grant = self._grants.get(mark)
        if grant is None or grant.process is not process:
            self.wrong(4, f"{process} starts {mark}, which it was not given: {grant}")
        if mark in self._started:
            self.wrong(5, f"{mark} is started twice")
        row = self.rows[claim.id]
        if mark not in self._revoked:
            if row.status == Status.COMPLETED:
                self.wrong(7, f"{mark} is started and {row.claim} has completed it")
            elif (row.status, row.claim) != (Status.PROCESSING, claim.number):
                self.wrong(4, f"{mark} is started and the file says {row.status} under {row.claim}")
        self._started.add(mark)
        self._running[mark] = process
        beside = sum(each is process for each in self._running.values())
        if beside > self._concurrency:
            self.wrong(13, f"{beside} handlers run in {process}")

    def ended(self, process: Process, claim: Claim, how: str) -> None:
        if process.loop.is_dead:
            return  # the coroutine is only being freed
        self.note(f"{process} ends {claim.id} claim {claim.number}: {how}")
        self._running.pop((claim.id, claim.number), None)

    def died(self, process: Process) -> None:
        self._running = {mark: each for mark, each in self._running.items() if each is not process}
        self._together = {call: each for call, each in self._together.items() if each[0] is not process}

    def is_running(self, process: Process) -> int:
        return sum(each is process for each in self._running.values())

    # --- the answers to callers --------------------------------------------------------------------------------------

    def submitting(self, process: Process, call: str, keys: Sequence[str]) -> None:
        self._together[call] = (process, frozenset(keys) - frozenset(self.rows))

    @property
    def on_their_way(self) -> list[str]:
        """Return the calls that may still store items."""
        return list(self._together)

    def submitted(self, call: str, keys: Sequence[str]) -> None:
        self.note(f"accepted {' '.join(keys)}")
        self.counted["accepted"] += len(keys)
        del self._together[call]
        for key in keys:
            if key not in self.rows:
                self.wrong("1, 6", f"{key} was accepted and has no row")

    def refused(self, call: str, why: str) -> None:
        """Record that the caller got an error which promises that no item was stored."""
        self.note(f"{call} is refused: {why}")
        for key in self._together.pop(call)[1]:
            if key in self.rows:
                self.wrong(14, f"{key} was refused and is in the file")

    def abandoned(self, call: str, why: str) -> None:
        """Record that the caller does not know whether its items were stored."""
        self.note(f"{call} does not know: {why}")
        self._together.pop(call)

    def acknowledged(self, key: str, claim: int | None, result: object = None) -> None:
        """Record that a caller or observer was notified of the completion of *key*, and check its claim or result."""
        row = self.rows[key]
        self.counted["acknowledged"] += 1
        if row.status != Status.COMPLETED:
            self.wrong(6, f"{key} was acknowledged under {claim} and is {row.status}")
        elif claim is not None and claim != row.claim:
            self.wrong(3, f"{key} was acknowledged under {claim}, its claim is {row.claim}")
        elif result is not None and result != json.loads(row.result or "null"):
            self.wrong(3, f"{key}: the result {result} was given, {row.result} is stored")

    # --- commits -----------------------------------------------------------------------------------------------------

    def committed(self, process: Process | None, raw: Raw | None) -> None:
        """Check a commit; *process* is None for an operator."""
        if raw is not None:
            now = self._clock()
            for worker_id in raw.beats:
                self.beats[worker_id] = now
            if not raw.is_of_items:
                return
        before, self.rows = self.rows, {row[0]: Row(*row) for row in self._auditor.execute(_ROWS)}
        self._is_set_back = raw is not None and raw.is_set_back
        cancelled = frozenset(key for text in (raw.cancels if raw is not None else ()) for key in json.loads(text))
        for key in before.keys() - self.rows.keys():
            self.wrong(1, f"{key} has vanished")
        lost: list[tuple[Row, Row]] = []
        for key, new in self.rows.items():
            old = before.get(key) or Row(key, new.seq, Status.PENDING, 0, 0, 0, None, new.due_at, 0, 0, None, None)
            if old == new and key in before:
                continue
            self.note(
                f"{process or 'a person'}: {key} {old.status} {old.claim} -> {new.status} {new.claim} attempts {new.attempts}"
                f" crashes {new.crashes} due {new.due_at} suspect {new.suspect}"
            )
            if not 0 <= new.attempts <= self._max_attempts:
                self.wrong(5, f"{key} has {new.attempts} attempts")
            if new.claim < old.claim:
                self.wrong(4, f"{key}: its claim number fell from {old.claim} to {new.claim}")
            if process is None:
                self._revoked.add((key, old.claim))
            elif key in cancelled and new.status == Status.CANCELLED:
                self._check_cancelled(process, old, new)
            elif self._moved(process, old, new):
                lost.append((old, new))
        self._check_losses(lost)
        self._check_whole()
        self._check_counts()

    def _check_cancelled(self, process: Process, old: Row, new: Row) -> None:
        if old.status not in (Status.PENDING, Status.PROCESSING):
            self.wrong(2, f"{old.id} was {old.status} and is cancelled")
        if new.claim <= old.claim:
            self.wrong(3, f"{old.id} was cancelled and its holder is not fenced off")
        self._revoked.add((old.id, old.claim))
        for number in range(old.claim + 1, new.claim):  # claimed before it was cancelled, in one transaction
            self._grants[old.id, number] = Grant(process, process.worker_id)
            self._revoked.add((old.id, number))

    def _moved(self, process: Process, old: Row, new: Row) -> bool:
        """Check one row that *process* changed, and return whether its worker was lost."""
        key = old.id
        if old.status not in (Status.PENDING, Status.PROCESSING):
            self.wrong(2, f"{key} was {old.status} and is {new.status}: {old} -> {new}")
            return False
        is_claimed = new.status == Status.PROCESSING and (old.status != Status.PROCESSING or new.claim != old.claim)
        is_lost = False
        attempts = old.attempts
        if old.status == Status.PROCESSING:
            if new.status == Status.PROCESSING and not is_claimed:
                if (new.attempts, new.crashes, new.worker_id) != (old.attempts, old.crashes, old.worker_id):
                    self.wrong(3, f"{key} was changed while it was held: {old} -> {new}")
                return False
            attempts, is_lost = self._ended_claim(process, old, new, is_claimed=is_claimed)
        else:
            self._left_pending(process, old, new, is_claimed=is_claimed)
        if is_claimed:
            self._claimed(process, old, new, attempts)
        elif new.attempts != attempts:
            self.wrong(5, f"{key} has {new.attempts} attempts instead of {attempts}")
        return is_lost

    def _left_pending(self, process: Process, old: Row, new: Row, *, is_claimed: bool) -> None:
        key = old.id
        due = from_text(old.due_at)
        if due is not None and new.due_at is None and due > self._latest_wall(process) + 0.001:
            self.wrong(11, f"{key} was due at {old.due_at} and is {'claimed' if is_claimed else 'promoted'} at {self._wall()}")
        if not is_claimed and new._replace(due_at=None) != old._replace(due_at=None):
            self.wrong(2, f"{key} was pending and changed: {old} -> {new}")

    def _claimed(self, process: Process, old: Row, new: Row, attempts: int) -> None:
        key = old.id
        self.counted["claims"] += 1
        if new.claim != old.claim + 1:
            self.wrong(4, f"{key} was claimed under {new.claim} after {old.claim}")
        if new.attempts != min(attempts + 1, self._max_attempts):
            self.wrong(5, f"{key} was claimed: {attempts} attempts became {new.attempts}")
        if new.worker_id is None or new.worker_id != process.worker_id:
            self.wrong(4, f"{key} is processing by {new.worker_id}, not by {process.worker_id}, which claimed it")
        self._grants[key, new.claim] = Grant(process, new.worker_id or "")
        self._claimed_at[key, new.claim] = self._clock()

    def _ended_claim(self, process: Process, old: Row, new: Row, *, is_claimed: bool) -> tuple[int, bool]:
        """Return the attempts that remain charged, and whether the holder was lost."""
        key, mark = old.id, (old.id, old.claim)
        failures = self._auditor.execute(_FAILURE, mark).fetchall()
        if len(failures) > 1:
            self.wrong(3, f"{mark} failed {len(failures)} times")
        holder = self._grants.get(mark)
        if failures and failures[0][0] == "WorkerLost":
            self._check_robbed(process, holder, mark)
            if new.crashes != old.crashes + 1:
                self.wrong(5, f"{mark} was lost and {new.crashes} crashes are counted after {old.crashes}")
            self._revoked.add(mark)
            if new.status == Status.PENDING:
                self._check_delay(new, failures[0][2])
            is_last = old.attempts >= self._max_attempts
            return old.attempts - (1 if is_last and new.status != Status.FAILED else 0), True
        is_release = (new.status == Status.PENDING or is_claimed) and not failures
        if holder is not None and holder.process is not process:
            if is_release:  # recovery releases the claims of a lost worker that no slot ran
                self._check_robbed(process, holder, mark)
                self._revoked.add(mark)
            else:
                self.wrong("3, 9", f"{mark} of {holder.process} was settled by {process}")
        if mark in self._running:
            self.wrong("3, 4", f"{mark} was settled while its handler runs")
        if new.crashes != old.crashes:
            self.wrong(5, f"{mark} was not lost and {new.crashes} crashes are counted after {old.crashes}")
        if failures:
            self._check_failed(old, new, *failures[0], is_claimed=is_claimed)
            return old.attempts, False
        if new.status == Status.COMPLETED:
            self.counted["completed"] += 1
            if json.loads(new.result or "null") != result_of(key, new.claim) or new.claim != old.claim:
                self.wrong(3, f"{key} completed under {new.claim} with the result {new.result}")
            if mark not in self._started:
                self.wrong(3, f"{mark} completed and never started")
            return old.attempts, False
        if new.status != Status.PENDING and not is_claimed:
            self.wrong(3, f"{mark} is {new.status} and no failure is recorded")
        return old.attempts - 1, False  # released

    def _check_failed(self, old: Row, new: Row, kind: str, message: str, failed_at: str, *, is_claimed: bool) -> None:
        mark = (old.id, old.claim)
        self.counted["failures"] += 1
        told = re.search(r"claim (\d+)", message)
        if kind in _OWN_ERRORS and (told is None or int(told[1]) != old.claim):
            self.wrong(3, f"{mark} failed with the error of another claim: {message}")
        if new.error is not None and not new.error.startswith(kind):
            self.wrong(3, f"{mark} failed with {kind} and the error is {new.error}")
        if new.status == Status.FAILED:
            if not new.permanent and new.attempts < self._max_attempts:
                self.wrong(5, f"{mark} failed permanently in attempt {new.attempts} of {self._max_attempts}")
        elif not is_claimed:
            self._check_delay(new, failed_at)

    def _check_delay(self, new: Row, failed_at: str) -> None:
        due, failed = from_text(new.due_at), from_text(failed_at)
        if due is None or failed is None or self._is_set_back:
            return
        if not -0.002 <= due - failed <= self._longest_delay + 0.002:
            self.wrong(11, f"{new.id} failed at {failed_at} and waits until {new.due_at}; the longest is {self._longest_delay} s")

    def _check_robbed(self, process: Process, holder: Grant | None, mark: tuple[str, int]) -> None:
        if holder is None:
            self.wrong(4, f"{mark} was lost without a holder")
            return
        if holder.process is process and holder.worker_id == process.worker_id:
            self.wrong(9, f"{process} declared itself lost")
        if not holder.process.holds_lock(holder.worker_id):
            return
        silence = self._clock() - self.beats[holder.worker_id]
        if self._clock() - process.woke_at < self._stale_after - self._slack:
            self.wrong(9, f"{mark} was taken from {holder.process} by {process}, which woke only at {process.woke_at:.3f} itself")
        elif silence < self._stale_after:
            self.wrong(9, f"{mark} was taken from {holder.process}, which holds its lock and beat {silence:.3f} s ago")
        else:
            self.counted["taken over from hung"] += 1

    def _check_losses(self, lost: list[tuple[Row, Row]]) -> None:
        ran = Counter(old.worker_id for old, _ in lost)
        for old, new in lost:
            self.counted["lost"] += 1
            is_alone = ran[old.worker_id] == 1 or new.crashes >= max(_MAX_CRASHES, 2 * self._max_attempts)
            if new.status == Status.FAILED and not is_alone:
                self.wrong("poison", f"{old.id} failed because its worker was lost, which ran {ran[old.worker_id]} items")

    def _check_whole(self) -> None:
        for call, (_, keys) in self._together.items():
            there = sum(key in self.rows for key in keys)
            if there not in (0, len(keys)):
                self.wrong(14, f"{there} of the {len(keys)} items of {call} are in the file")
        members = {worker_id for (worker_id,) in self._auditor.execute(_MEMBERS)}
        for worker_id, held in Counter(row.worker_id for row in self.rows.values() if row.status == Status.PROCESSING).items():
            if worker_id not in members:
                self.wrong(4, f"{held} items are processing by {worker_id}")
            if held > self._concurrency + Prefetch.MAX_ITEMS:
                self.wrong(13, f"{worker_id} holds {held} items")
        suspects = [row for row in self.rows.values() if row.status == Status.PROCESSING and row.suspect]
        for row, other in itertools.combinations(suspects, 2):
            apart = abs(self._claimed_at[row.id, row.claim] - self._claimed_at[other.id, other.claim])
            if row.worker_id == other.worker_id and apart < isolation.MAX_ISOLATION_SECONDS - self._slack:
                self.wrong("poison", f"{row.worker_id} holds two suspects, claimed {apart:.3f} s apart: {row.id}, {other.id}")

    def _check_counts(self) -> None:
        kept = counts(self._auditor, 1, self._wall())
        grouped = Counter(row.status for row in self.rows.values())
        if any(getattr(kept, status.value) != grouped[status] for status in Status) or kept.total != len(self.rows):
            self.wrong("1, 12", f"the counts are {kept}, the rows {dict(grouped)}")
        completed, failed, *there = self._auditor.execute(_HISTORY).fetchone()
        if [completed or 0, failed or 0] != there:
            self.wrong(12, f"the history has {completed} completed items and {failed} failed attempts, the rows {there}")
