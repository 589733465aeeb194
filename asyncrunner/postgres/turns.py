"""The turns of the workers of one store: encode outcomes and wants, decode claims, and find the effect of a lost answer."""

from __future__ import annotations

import math
import time
from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from asyncrunner.domain.item import Claim, Suspicion, suspicion_of
from asyncrunner.domain.outcome import Completed, PutOff, Retrying
from asyncrunner.errors import StoreError, StoreUnavailable
from asyncrunner.postgres import sql
from asyncrunner.postgres.outcomes import encoded_outcomes
from asyncrunner.store.batches import OTHER_VERSION, BatchState
from asyncrunner.store.turn import Turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from asyncpg import Record

    from asyncrunner.domain.outcome import Settlement
    from asyncrunner.postgres.connection.session import Session
    from asyncrunner.store.turn import Checkpoint, Want

_MARK_SECONDS: Final = 0.5  # how long a turn looks only behind the items that it claimed; a higher priority waits so long
_REQUEUED: Final = (Retrying, PutOff)
_BATCH_ID: Final = attrgetter("batch_id")


class _Mark(NamedTuple):
    """The position in ready behind the items that this store has claimed, and until when turns begin there."""

    rank: int
    seq: int
    until: float


class TurnRequest(NamedTuple):
    """The arguments of a turn, see ``EngineStore.turn``. *now*: the store's time.

    *skew*: the seconds by which the store's clock is ahead of the worker's.
    """

    worker_id: str
    settlements: Sequence[Settlement]
    wants: Sequence[Want]
    checkpoints: Sequence[Checkpoint]
    now: float
    skew: float

    @property
    def claims(self) -> list[Claim]:
        """The claims of the settlements and of the checkpoints."""
        return [*(each.claim for each in self.settlements), *(each.claim for each in self.checkpoints)]


class _Lost(NamedTuple):
    """A turn whose answer was lost."""

    number: int
    request: TurnRequest


class _Found(NamedTuple):
    """What lost answers turned out to have done: what they claimed, settled and saved, and why they dropped something."""

    claims: list[Claim]
    settled: set[tuple[int, int]]
    saved: list[Checkpoint]
    dropped: dict[tuple[int, int], str]


class _State(msgspec.Struct):
    """The JSON of a batch's state, see the function turn."""

    unfinished: bool = False
    next_due: float | None = None
    resting_until: float | None = None
    rests: bool = False
    concurrency: int | None = None
    stopped: str | None = None
    suspicion: int = 0
    other_version: bool = False


_decode_state = msgspec.json.Decoder(_State).decode
_decode_dropped = msgspec.json.Decoder(list[tuple[int, int, str]]).decode


class Turns:
    """The turns on one session. ``insert_worker`` inserts a worker's row again that a person deleted."""

    def __init__(self, session: Session, insert_worker: Callable[[str], Awaitable[None]]) -> None:
        self._session = session
        self._insert_worker = insert_worker
        self._number = time.time_ns() // 1000  # grows also over the stores that a worker's id has had
        self._marks: dict[int, _Mark] = {}
        self._forgotten = 0  # how often forget_marks() was called
        self._lost: dict[str, _Lost] = {}
        self._found: dict[str, _Found] = {}

    def forget_marks(self) -> None:
        """Let the next turns look from the first item on, because an item may be before those that were claimed.

        A turn in progress may have looked before that item was stored, so it sets no mark.
        """
        self._marks.clear()
        self._forgotten += 1

    async def turn(self, request: TurnRequest) -> Turn:
        """Run one turn, see ``EngineStore.turn``."""
        if request.worker_id in self._lost or request.worker_id in self._found:
            return await self._turn_after_lost(request)
        return await self._take(request)

    async def _take(self, request: TurnRequest) -> Turn:
        worker_id, settlements, wants, checkpoints, now, skew = request
        self._number = number = self._number + 1
        completed = [each for each in settlements if type(each.outcome) is Completed]
        others = [each for each in settlements if type(each.outcome) is not Completed]
        if any(isinstance(each.outcome, _REQUEUED) for each in others):
            self._marks.clear()
        lost_calls, forgotten = self._session.lost_calls, self._forgotten
        try:
            rows = await self._session.fetch(
                sql.claims.TURN,
                worker_id,
                number,
                now,
                [each.claim.seq for each in completed],
                [each.claim.number for each in completed],
                [each.started_at + skew for each in completed],
                [each.finished_at + skew for each in completed],
                [_result(each.outcome) for each in completed],
                encoded_outcomes(others, now, skew),
                _encoded_checkpoints(checkpoints),
                msgspec.json.encode([self._encoded(want) for want in wants]).decode(),
            )
        except StoreUnavailable:
            if self._session.lost_calls > lost_calls:
                self._lost[worker_id] = _Lost(number, request)
            raise
        turn = await self._decoded(rows, request)
        if self._forgotten != forgotten:
            self._marks.clear()
        return turn

    def _encoded(self, want: Want) -> dict[str, Any]:
        mark = self._marks.get(want.batch_id)
        if mark is not None and mark.until < time.monotonic():
            del self._marks[want.batch_id]
            mark = None
        return {
            "batch_id": want.batch_id,
            "n": want.limit,
            "max_attempts": want.max_attempts,
            "suspicion": int(want.suspicion),
            "version": want.version,
            "only_given": want.only_given,
            "per_second": want.rate and want.rate.per_second,
            "burst": want.rate and want.rate.burst,
            "mark_rank": mark and mark.rank,
            "mark_seq": mark and mark.seq,
        }

    async def _decoded(self, rows: Sequence[Record], request: TurnRequest) -> Turn:
        claims: list[Claim] = []
        lost: list[Claim] = []
        reruns: list[Claim] = []
        states: dict[int, BatchState] = {}
        last: dict[int, Record] = {}
        for row in rows:
            kind = row[0]
            if kind == "claim":
                claims.append(claim_of(row[1:12]))
                last[row[2]] = row
            elif kind == "state":
                states[row[2]] = _state(row[12])
            elif kind == "dropped":
                by_fence = {(claim.seq, claim.number): claim for claim in request.claims}
                for seq, number, reason in _decode_dropped(row[12]):
                    (reruns if reason == "rerun" else lost).append(by_fence[seq, number])
            elif kind == "outcast":
                # Recovery has settled the worker's items, so the outcomes have no current claim.
                return Turn((), request.claims, {}, outcast=True)
            elif kind == "no worker":
                # A person deleted the worker's row. No process declared the worker lost, so insert the row again.
                await self._insert_worker(request.worker_id)
                return await self._take(request)
            else:
                raise StoreError(
                    f"batch {row[2]} was deleted from {self._session.location} while a worker was processing it; start the "
                    "program again, which creates the batch again"
                )
        counts = Counter(map(_BATCH_ID, claims))
        for want in request.wants:
            self._move_mark(want, counts[want.batch_id], last.get(want.batch_id))
        return Turn(claims, lost, states, reruns=reruns)

    def _move_mark(self, want: Want, claimed: int, last: Record | None) -> None:
        """Let the next turns look behind *last*, the row of the last claim; suspects are the first claims of a batch."""
        if last is None or suspicion_of(last[11]) or claimed < want.limit or want.only_given:
            self._marks.pop(want.batch_id, None)
            return
        mark = self._marks.get(want.batch_id)
        until = time.monotonic() + _MARK_SECONDS if mark is None else mark.until
        self._marks[want.batch_id] = _Mark(~int(last[12]), last[1], until)

    async def _resolve(self, worker_id: str) -> None:
        """Find the effect of a turn whose answer was lost.

        The session has ended the server's process of the former connection, so that turn is committed or never will be.
        """
        former = self._lost.get(worker_id)
        if former is None:
            return
        row = await self._session.row(sql.claims.NEWEST_TURN, worker_id)
        if row is not None and row[0] == former.number:
            rows = await self._session.fetch(sql.claims.CLAIMS_OF_TURN, worker_id, former.number)
            found = self._found.setdefault(worker_id, _Found([], set(), [], {}))
            found.claims.extend(claim_of(tuple(each)) for each in rows)
            found.settled.update((each.claim.seq, each.claim.number) for each in former.request.settlements)
            found.saved.extend(former.request.checkpoints)
            if row[1] is not None:
                found.dropped.update({(seq, number): reason for seq, number, reason in _decode_dropped(row[1])})
        del self._lost[worker_id]

    async def _turn_after_lost(self, request: TurnRequest) -> Turn:
        """Run a turn after one whose answer was lost: what that turn settled is settled, and what it claimed is claimed."""
        await self._resolve(request.worker_id)
        found = self._found.get(request.worker_id, _Found([], set(), [], {}))
        claimed = Counter(map(_BATCH_ID, found.claims))
        turn = await self._take(
            request._replace(
                settlements=[each for each in request.settlements if (each.claim.seq, each.claim.number) not in found.settled],
                wants=[want._replace(limit=max(want.limit - claimed[want.batch_id], 0)) for want in request.wants],
                checkpoints=[each for each in request.checkpoints if each not in found.saved],
            )
        )
        self._found.pop(request.worker_id, None)
        dropped = [(claim, found.dropped.get((claim.seq, claim.number))) for claim in dict.fromkeys(request.claims)]
        return turn._replace(
            claims=[*found.claims, *turn.claims],
            lost=[*(claim for claim, reason in dropped if reason == "lost"), *turn.lost],
            reruns=[*(claim for claim, reason in dropped if reason == "rerun"), *turn.reruns],
        )


def _result(outcome: object) -> str:
    assert type(outcome) is Completed
    return "" if outcome.kept else outcome.result


def _encoded_checkpoints(checkpoints: Sequence[Checkpoint]) -> str | None:
    if not checkpoints:
        return None
    newest = dict(checkpoints)  # an UPDATE changes a row once
    fields = [{"seq": claim.seq, "claim": claim.number, "checkpoint": text} for claim, text in newest.items()]
    return msgspec.json.encode(fields).decode()


def _state(text: str) -> BatchState:
    state = _decode_state(text)
    if state.other_version:
        return BatchState(True, None, math.inf, state.concurrency, OTHER_VERSION)
    resting_until = state.resting_until if state.resting_until is not None else math.inf if state.rests else None
    return BatchState(
        state.unfinished, state.next_due, resting_until, state.concurrency, state.stopped, Suspicion(state.suspicion)
    )


def claim_of(columns: Sequence[Any]) -> Claim:
    """Return the claim of a row with the columns of a Claim; a person may have written any suspicion."""
    values: list[Any] = [*columns[:10], suspicion_of(columns[10]) if columns[10] else Suspicion.NONE]
    return Claim(*values)
