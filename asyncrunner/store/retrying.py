"""Retry store calls with exponential backoff while the store is unavailable, or at the next run of a periodic task."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, MutableSequence, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from asyncrunner.errors import StoreUnavailable

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import Claim, Counts, NewItem, OnKnownKey
    from asyncrunner.domain.outcome import ErrorInfo, Settlement
    from asyncrunner.store.batches import Added, Batch, BatchOptions, BatchVersion, Controls
    from asyncrunner.store.items import Cursor, FailureGroup, ItemRow, Mark, OpenItems, Page, PurgeStep
    from asyncrunner.store.protocols import ReadStore, Store
    from asyncrunner.store.turn import Checkpoint, LostClaim, Turn, Want
    from asyncrunner.store.workers import Beat, Peer, Vitals, WorkerInfo

log = logging.getLogger("asyncrunner")
P = ParamSpec("P")
T = TypeVar("T")
RETRY_SECONDS: Final = 30.0
"""Seconds for which an operator's call is repeated while the store is unavailable, before StoreUnavailable is raised."""

_MAX_WAIT_SECONDS: Final = 5.0
_WARN_AFTER_ATTEMPTS: Final = 5  # earlier retries are logged at DEBUG, because most locks are released soon


class RetryingStore:
    """A store that repeats each call of *store* while the call raises StoreUnavailable.

    The delay between two calls grows from 0.02 s to 5 s, plus up to 0.05 s of jitter. From ``deadline`` (monotonic
    seconds, default: never) StoreUnavailable is raised instead, so that a program that stops does not wait forever.
    Other errors are not retried.
    """

    def __init__(self, store: Store, clock: Clock, *, deadline: float = math.inf) -> None:
        self._store = store
        self._clock = clock
        self.deadline = deadline

    async def _retry(self, verb: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await verb(*args, **kwargs)
        except StoreUnavailable as error:
            if self._clock.monotonic() >= self.deadline:
                raise
            log.debug("the store is temporarily unavailable and the call is retried: %s", error)
        return await retry_while_unavailable(partial(verb, *args, **kwargs), self._clock, lambda: self.deadline)

    @property
    def location(self) -> str:
        return self._store.location

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

    async def add(self, batch_id: int, entries: Sequence[NewItem], *, on_change: OnKnownKey) -> Added:
        return await self._retry(self._store.add, batch_id, entries, on_change=on_change)

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

    # --- workers -----------------------------------------------------------------------------------------------------

    async def join(self, worker: WorkerInfo) -> None:
        await self._retry(self._store.join, worker)

    def slot_notes(self, worker_id: str, slots: int) -> MutableSequence[int]:
        return self._store.slot_notes(worker_id, slots)

    async def leave(self, worker_id: str) -> None:
        await self._retry(self._store.leave, worker_id)

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

    async def open_items(self, batch_id: int) -> OpenItems:
        return await self._retry(self._store.open_items, batch_id)

    async def failure_causes(self, batch_id: int, limit: int, *, seqs: Sequence[int] | None = None) -> Sequence[FailureGroup]:
        return await self._retry(self._store.failure_causes, batch_id, limit, seqs=seqs)


async def retry_for(call: Callable[[], Awaitable[T]], clock: Clock, seconds: float = RETRY_SECONDS) -> T:
    """Repeat *call* while the store is unavailable, and return its value. Raises StoreUnavailable after *seconds*."""
    deadline = clock.monotonic() + seconds
    try:
        return await call()
    except StoreUnavailable:
        if clock.monotonic() >= deadline:
            raise
    return await retry_while_unavailable(call, clock, lambda: deadline)


async def retry_while_unavailable(
    call: Callable[[], Awaitable[T]], clock: Clock, deadline: Callable[[], float], *, max_wait: float = _MAX_WAIT_SECONDS
) -> T:
    """Repeat *call* while it raises StoreUnavailable, and return its value.

    The delay between two calls grows from 0.02 s to *max_wait* seconds, plus up to 0.05 s of jitter.
    *deadline* returns the time (monotonic seconds) from which StoreUnavailable is raised. It is called after each
    attempt, so that a program that begins to stop can set an earlier deadline.
    """

    # Most programs never retry a call, so they start faster without this import.
    from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential, wait_random

    def is_over(_: RetryCallState) -> bool:
        return clock.monotonic() >= deadline()

    async def retry_call() -> T:  # tenacity awaits only a function that is declared `async def`
        return await call()

    # This object costs more than a successful call, so callers with frequent calls create it only after a failure.
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(StoreUnavailable),
        wait=wait_exponential(multiplier=0.02, max=max_wait) + wait_random(0, 0.05),
        stop=is_over,
        sleep=clock.sleep,
        before_sleep=_log_retry,
        reraise=True,
    )
    return await retrying(retry_call)


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    number = state.attempt_number
    doublings, rest = divmod(number, _WARN_AFTER_ATTEMPTS)
    is_due = rest == 0 and doublings.bit_count() == 1  # attempts 5, 10, 20, 40: a long outage does not fill the log
    level = logging.WARNING if is_due else logging.DEBUG
    log.log(level, "the store is unavailable (attempt %d); the call is retried, nothing is lost: %s", number, error)


async def every(
    seconds: float | Callable[[], float], duty: Callable[[], Awaitable[object]], *, clock: Clock, immediately: bool = False
) -> None:
    """Run *duty* again and again until cancelled, each time after a pause of *seconds*, or of what the function returns.

    With *immediately*, the first run has no pause before it. StoreUnavailable is logged at DEBUG, and the next run
    tries again; other exceptions are raised.
    """
    if immediately:
        await _try_once(duty)
    while True:
        await clock.sleep(seconds() if callable(seconds) else seconds)
        await _try_once(duty)


async def _try_once(duty: Callable[[], Awaitable[object]]) -> None:
    try:
        await duty()
    except StoreUnavailable as error:
        log.debug("the store is unavailable; the next run tries again: %s", error)
