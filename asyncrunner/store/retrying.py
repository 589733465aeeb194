"""Retry store calls with exponential backoff while the store is unavailable, or at the next run of a periodic task."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Mapping, MutableSequence, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from asyncrunner.domain.clock import aligned_pause
from asyncrunner.errors import StoreUnavailable

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import Claim, Counts, NewItem, OnKnownKey
    from asyncrunner.domain.outcome import ErrorInfo, Settlement
    from asyncrunner.store.batches import Added, Batch, BatchOptions, BatchVersion, Controls
    from asyncrunner.store.items import Cursor, FailureGroup, ItemRow, Mark, OpenItems, Page, PurgeStep
    from asyncrunner.store.protocols import ReadStore, Store
    from asyncrunner.store.turn import Checkpoint, ClaimRequest, LostClaim, Turn, Want
    from asyncrunner.store.workers import Beat, Peer, Vitals, WorkerInfo

log = logging.getLogger("asyncrunner")
P = ParamSpec("P")
T = TypeVar("T")
RETRY_SECONDS: Final = 30.0
"""Seconds for which an operator's call is repeated while the store is unavailable, before StoreUnavailable is raised."""

_FIRST_WAIT_SECONDS: Final = 0.02
_MAX_WAIT_SECONDS: Final = 5.0
_MAX_JITTER_SECONDS: Final = 0.05
_WARN_AFTER_SECONDS: Final = 0.5  # most locks are released sooner
_WARN_EVERY_SECONDS: Final = 60.0
_MIN_ATTEMPT_SECONDS: Final = 0.5  # for an answer to a call that begins after the deadline


class Outage:
    """The time for which one store is unavailable, shared by its calls: until when they are retried, and what the log has.

    The log has a warning after 0.5 s, one each minute, and one at the end, however many calls are retried. *ends_calls*: end
    the wait for a call that is not answered at the deadline, as by a server whose machine is gone.
    """

    def __init__(self, clock: Clock, deadline: float = math.inf, *, ends_calls: bool = True) -> None:
        self._clock = clock
        self._deadline = deadline
        self._ends_calls = ends_calls
        self._began: float | None = None
        self._next_warning = 0.0
        self._has_warned = False
        self.retried = 0
        """The number of calls that have failed and are retried."""
        self._waits: set[asyncio.Future[None]] = set()
        self._attempts: dict[asyncio.Timeout, float] = {}  # with the time until which each may take at least

    @property
    def is_on(self) -> bool:
        """Whether a call has failed, and not all such calls have succeeded since."""
        return self._began is not None

    @property
    def deadline(self) -> float:
        """The time (monotonic seconds) from which StoreUnavailable is raised instead of a retry. A new value ends the pauses."""
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        self._deadline = deadline
        for wait in self._waits:
            _end(wait)
        for limit in self._attempts:
            self._limit(limit)

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self._clock.monotonic() >= self._deadline

    def record_failure(self, error: StoreUnavailable) -> None:
        """Log the failure of a call as a warning if one is due, otherwise at DEBUG."""
        now = self._clock.monotonic()
        if self._began is None:
            self._began, self._has_warned = now, False
            self._next_warning = now + _WARN_AFTER_SECONDS
        if now < self._next_warning:
            log.debug("the store is temporarily unavailable and the call is retried: %s", error)
            return
        self._has_warned = True
        self._next_warning = now + _WARN_EVERY_SECONDS
        seconds = now - self._began
        log.warning("the store has been unavailable for %.1f s; calls are retried, nothing is lost: %s", seconds, error)

    def end(self, *, is_last: bool = False) -> None:
        """Record that a call has succeeded, and with *is_last* that no other call matters any more.

        On a full disk, small calls succeed while others are retried: the outage lasts.
        """
        if self.retried and not is_last:
            return
        if self._began is not None and self._has_warned:
            log.warning("the store is available again after %.1f s", self._clock.monotonic() - self._began)
        self._began = None

    async def pause(self, seconds: float) -> None:
        """Wait for *seconds*, or until the deadline, or until the deadline is moved."""
        wait: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waits.add(wait)
        timer = self._clock.call_later(max(0.0, min(seconds, self._deadline - self._clock.monotonic())), partial(_end, wait))
        try:
            await wait
        finally:
            timer.cancel()
            self._waits.discard(wait)

    async def attempt(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await *call*, during an outage only until the deadline. Raises StoreUnavailable; the call may take effect later."""
        if not (self.is_on and self._ends_calls):
            return await call()
        earliest_end = self._clock.monotonic() + _MIN_ATTEMPT_SECONDS
        limit = asyncio.timeout(None)
        self._attempts[limit] = earliest_end
        try:
            async with limit:
                self._limit(limit)
                return await call()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise StoreUnavailable("the store has not answered before the end of the stop") from error
        finally:
            del self._attempts[limit]

    def _limit(self, limit: asyncio.Timeout) -> None:
        """End the attempt of *limit* at the deadline, unless the deadline is moved before."""
        seconds = max(self._deadline, self._attempts[limit]) - self._clock.monotonic()
        if seconds < math.inf:
            self._clock.call_later(max(0.0, seconds), partial(self._end_attempt, limit))

    def _end_attempt(self, limit: asyncio.Timeout) -> None:
        if limit in self._attempts and not limit.expired():
            limit.reschedule(asyncio.get_running_loop().time())


def _end(wait: asyncio.Future[None]) -> None:
    if not wait.done():
        wait.set_result(None)


class RetryingStore:
    """A store that repeats each call of *store* while the call raises StoreUnavailable.

    The delay between two calls grows from 0.02 s to 5 s, plus up to 0.05 s of jitter. From ``deadline`` (monotonic
    seconds, default: never) StoreUnavailable is raised instead, so that a program that stops does not wait forever.
    Other errors are not retried.
    """

    def __init__(self, store: Store, clock: Clock, *, deadline: float = math.inf) -> None:
        self._store = store
        self._clock = clock
        self.outage = Outage(clock, deadline)

    @property
    def deadline(self) -> float:
        """See ``Outage.deadline``."""
        return self.outage.deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        self.outage.deadline = deadline

    async def _retry(self, verb: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        if not self.outage.is_on:
            try:
                return await verb(*args, **kwargs)
            except StoreUnavailable as error:
                self.outage.record_failure(error)
                if self.outage.is_over:
                    raise
            return await retry_while_unavailable(partial(verb, *args, **kwargs), self.outage, has_failed=True)
        return await retry_while_unavailable(partial(verb, *args, **kwargs), self.outage)

    @property
    def location(self) -> str:
        return self._store.location

    @property
    def busy_until(self) -> float:
        return self._store.busy_until

    @property
    def claims_with_add(self) -> bool:
        return self._store.claims_with_add

    async def open(self) -> None:
        await self._retry(self._store.open)

    async def close(self) -> None:
        await self._store.close()

    async def reader(self) -> ReadStore:
        return await self._retry(self._store.reader)

    # --- batches and items -------------------------------------------------------------------------------------------

    async def open_batch(self, name: str, handler: str, options: BatchOptions) -> Batch:
        return await self._retry(self._store.open_batch, name, handler, options)

    async def adopt_version(self, worker_id: str, batch_id: int, version: str) -> BatchVersion:
        return await self._retry(self._store.adopt_version, worker_id, batch_id, version)

    async def apply_version(self, batch_id: int, number: int) -> int:
        return await self._retry(self._store.apply_version, batch_id, number)

    async def stop_batch(self, batch_id: int, reason: str) -> None:
        await self._retry(self._store.stop_batch, batch_id, reason)

    async def rest_batch(self, batch_id: int, seconds: float) -> None:
        await self._retry(self._store.rest_batch, batch_id, seconds)

    async def add(
        self, batch_id: int, entries: Sequence[NewItem], *, on_change: OnKnownKey, request: ClaimRequest | None = None
    ) -> Added:
        return await self._retry(self._store.add, batch_id, entries, on_change=on_change, request=request)

    async def cancel(self, batch_id: int, keys: Sequence[str]) -> int:
        return await self._retry(self._store.cancel, batch_id, keys)

    async def reopen_failed(self, batch_id: int, *, max_attempts: int | None) -> int:
        return await self._retry(self._store.reopen_failed, batch_id, max_attempts=max_attempts)

    async def give(self, batch_id: int, seqs: Sequence[int], *, max_attempts: int | None) -> int:
        return await self._retry(self._store.give, batch_id, seqs, max_attempts=max_attempts)

    # --- the turn ----------------------------------------------------------------------------------------------------

    async def turn(
        self,
        worker_id: str,
        settlements: Sequence[Settlement],
        wants: Sequence[Want],
        *,
        checkpoints: Sequence[Checkpoint] = (),
    ) -> Turn:
        return await self._retry(self._store.turn, worker_id, settlements, wants, checkpoints=checkpoints)

    async def stage_result(self, claim: Claim, piece: int, text: str) -> bool:
        return await self._retry(self._store.stage_result, claim, piece, text)

    async def controls(self, batch_ids: Sequence[int]) -> Mapping[int, Controls]:
        return await self._retry(self._store.controls, batch_ids)

    async def lost_claims(self, claims: Sequence[Claim]) -> Sequence[LostClaim]:
        return await self._retry(self._store.lost_claims, claims)

    async def wait_for_change(self, mark: Mark | None) -> Mark:
        return await self._retry(self._store.wait_for_change, mark)

    async def wait_for_items(self, batch_ids: Sequence[int], mark: Mark | None) -> Mark:
        return await self._retry(self._store.wait_for_items, batch_ids, mark)

    # --- workers -----------------------------------------------------------------------------------------------------

    async def join(self, worker: WorkerInfo) -> None:
        await self._retry(self._store.join, worker)

    def slot_notes(self, worker_id: str, slots: int) -> MutableSequence[int]:
        return self._store.slot_notes(worker_id, slots)

    async def leave(self, worker_id: str) -> None:
        await self._retry(self._store.leave, worker_id)
        self.outage.end(is_last=True)

    async def beat(self, worker_id: str, vitals: Vitals) -> Beat:
        return await self._retry(self._store.beat, worker_id, vitals)

    async def peers(self, worker_id: str) -> Sequence[Peer]:
        return await self._retry(self._store.peers, worker_id)

    async def recover(self, worker_id: str | None, error: ErrorInfo, *, pulse: str | None = None) -> int:
        return await self._retry(self._store.recover, worker_id, error, pulse=pulse)

    # --- retention ---------------------------------------------------------------------------------------------------

    async def purge_step(self, batch_ids: Sequence[int], *, older_than: float, cursor: Cursor | None) -> PurgeStep:
        return await self._retry(self._store.purge_step, batch_ids, older_than=older_than, cursor=cursor)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def find_batch(self, name: str) -> Batch | None:
        return await self._retry(self._store.find_batch, name)

    async def incomplete_copies(self, names: Sequence[str]) -> Mapping[str, str]:
        return await self._retry(self._store.incomplete_copies, names)

    async def batch_names(self) -> Sequence[str]:
        return await self._retry(self._store.batch_names)

    async def counts(self, batch_id: int) -> Counts:
        return await self._retry(self._store.counts, batch_id)

    async def recent_rate(self, batch_id: int) -> float | None:
        return await self._retry(self._store.recent_rate, batch_id)

    async def items(self, batch_id: int, keys: Sequence[str]) -> Sequence[ItemRow]:
        return await self._retry(self._store.items, batch_id, keys)

    async def items_by_seq(self, batch_id: int, seqs: Sequence[int]) -> Sequence[ItemRow]:
        return await self._retry(self._store.items_by_seq, batch_id, seqs)

    async def item_page(self, batch_id: int, cursor: Cursor | None, limit: int) -> Page[ItemRow]:
        return await self._retry(self._store.item_page, batch_id, cursor, limit)

    async def open_items(self, batch_id: int, *, on_snapshot: Callable[[], object] | None = None) -> OpenItems:
        return await self._retry(self._store.open_items, batch_id, on_snapshot=on_snapshot)

    async def failure_causes(self, batch_id: int, limit: int, *, seqs: Sequence[int] | None = None) -> Sequence[FailureGroup]:
        return await self._retry(self._store.failure_causes, batch_id, limit, seqs=seqs)


async def retry_for(call: Callable[[], Awaitable[T]], clock: Clock, seconds: float = RETRY_SECONDS) -> T:
    """Repeat *call* while the store is unavailable, and return its value. Raises StoreUnavailable after *seconds*."""
    return await retry_while_unavailable(call, Outage(clock, clock.monotonic() + seconds, ends_calls=False))


async def retry_while_unavailable(
    call: Callable[[], Awaitable[T]], outage: Outage, *, max_wait: float = _MAX_WAIT_SECONDS, has_failed: bool = False
) -> T:
    """Repeat *call* while it raises StoreUnavailable, and return its value.

    The delay between two calls grows from 0.02 s to *max_wait* seconds, plus up to 0.05 s of jitter. From the deadline of
    *outage* StoreUnavailable is raised. A program that begins to stop sets an earlier deadline. *has_failed*: the caller has
    made a first call and recorded its failure.
    """
    wait = _FIRST_WAIT_SECONDS
    outage.retried += has_failed
    try:
        while True:
            try:
                value = await outage.attempt(call)
                break
            except StoreUnavailable as error:
                outage.retried += not has_failed
                has_failed = True
                outage.record_failure(error)
                if outage.is_over:
                    raise
            await outage.pause(wait + random.uniform(0, _MAX_JITTER_SECONDS))  # noqa: S311 - it only spreads the retries
            wait = min(2 * wait, max_wait)
    finally:
        outage.retried -= has_failed
    outage.end()
    return value


async def every(
    seconds: float,
    duty: Callable[[], Awaitable[object]],
    *,
    clock: Clock,
    immediately: bool = False,
    origin: float | None = None,
) -> None:
    """Run *duty* again and again until cancelled, each time after a pause of *seconds*.

    With *immediately*, the first run has no pause before it. With *origin*, a monotonic time, the pauses are those of
    ``aligned_pause``. StoreUnavailable is logged at DEBUG, and the next run tries again; other exceptions are raised.
    """
    has_pause = not immediately
    while True:
        if has_pause:
            await clock.sleep(seconds if origin is None else aligned_pause(seconds, clock.monotonic(), origin))
        has_pause = True
        try:
            await duty()
        except StoreUnavailable as error:
            log.debug("the store is unavailable; the next run tries again: %s", error)
