"""Add items. Small chunks that pile up while another one is on its way share the next transaction."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncrunner.errors import StoreClosed, StoreUnavailable
from asyncrunner.postgres import sql
from asyncrunner.postgres.connection.errors import KeyExists
from asyncrunner.postgres.known_keys import FIRST_MODES, adding, chunk_fields, decode_answer
from asyncrunner.store.batches import Added

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection, Record

    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import NewItem, OnKnownKey
    from asyncrunner.postgres.connection.session import Session

_MAX_SMALL: Final = 50  # items of a chunk that may share a transaction
_MAX_SHARED: Final = 500  # items in one shared transaction
_SHARED_TRIES: Final = 3

# Transactions that notify wait for one another, on the whole server, until they are written.
_NOTIFIED_PAUSE_SECONDS: Final = 0.02
_MAX_PAUSE_SECONDS: Final = 1.0
_SLOW_SECONDS: Final = 0.005
_SLOW_FACTOR: Final = 4  # by which each slow transaction in a row lengthens the pause


class _Waiting(NamedTuple):
    batch_id: int
    entries: Sequence[NewItem]
    on_change: OnKnownKey
    added: asyncio.Future[_Answer]


class _Answer(NamedTuple):
    """What was added, and whether its transaction has notified the workers."""

    added: Added
    is_notified: bool = False


class NotifyingTransactions:
    """When a small addition may notify the workers in its transaction, which saves a round trip. Times are monotonic seconds.

    If such transactions wait for one another, each one is slow, and the pauses grow. One slow transaction says little: the first
    one of a session plans its statements.
    """

    def __init__(self) -> None:
        self._pause = _NOTIFIED_PAUSE_SECONDS
        self._next = 0.0

    def may_begin(self, at: float) -> bool:
        """Return whether a transaction that begins at the time *at* may notify."""
        return at >= self._next

    def record(self, began: float, ended: float) -> None:
        """Record a transaction that has notified."""
        is_slow = ended - began >= _SLOW_SECONDS
        self._pause = min(_SLOW_FACTOR * self._pause, _MAX_PAUSE_SECONDS) if is_slow else _NOTIFIED_PAUSE_SECONDS
        self._next = ended + self._pause

    def record_lost(self) -> None:
        """Record that an answer was lost: the repeated call may only return the recorded answer, so it does not notify."""
        self._next = math.inf

    def record_other(self, ended: float) -> None:
        """Record a transaction that has not notified: no answer is lost any more."""
        if self._next == math.inf:
            self._next = ended


class Inserter:
    """The additions of one store, on one session."""

    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._adding: asyncio.Task[None] | None = None
        self._notifying = NotifyingTransactions()

    async def close(self) -> None:
        """Finish the additions that have begun."""
        if self._adding is not None:
            await asyncio.wait([self._adding])

    async def add(self, batch_id: int, entries: Sequence[NewItem], on_change: OnKnownKey) -> tuple[Added, bool]:
        """Add a chunk, see ``EngineStore.add``. The second value is whether the transaction has notified the workers."""
        if not entries:
            return _Answer(Added(0, 0, 0, ()))
        if len(entries) > _MAX_SMALL or on_change in ("rerun", "run again"):
            return await self._add_alone(batch_id, entries, on_change)
        waiting = _Waiting(batch_id, entries, on_change, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._adding is None or self._adding.done():
            self._adding = asyncio.ensure_future(self._add_waiting())
        return await asyncio.shield(waiting.added)

    async def _add_waiting(self) -> None:
        while self._waiting:
            group = self._next_group()
            if len(group) == 1 or not await self._add_shared(group):
                for each in group:
                    await self._answer(each)

    def _next_group(self) -> list[_Waiting]:
        """Remove the next chunks that may share a transaction: of one batch and one trace, and with different keys."""
        first = self._waiting.popleft()
        group, keys = [first], {entry.id for entry in first.entries}
        rest: deque[_Waiting] = deque()
        count = len(first.entries)
        for each in self._waiting:
            own = {entry.id for entry in each.entries}
            fits = each.batch_id == first.batch_id and each.entries[0].traceparent == first.entries[0].traceparent
            if fits and count + len(each.entries) <= _MAX_SHARED and keys.isdisjoint(own):
                group.append(each)
                keys |= own
                count += len(each.entries)
            else:
                rest.append(each)
        self._waiting = rest
        return group

    async def _add_shared(self, group: Sequence[_Waiting]) -> bool:
        """Add the chunks of *group* in one transaction; return False, and add none, if a key exists or the call failed."""
        entries = [entry for each in group for entry in each.entries]
        arguments = self._arguments(group[0].batch_id, entries, "new")
        for attempt in range(_SHARED_TRIES):
            try:
                answer = decode_answer(await self._session.recorded(sql.items.ADD, *arguments) or "")
            except StoreUnavailable:
                # The repeated call must have the same arguments, to find the answer if only that was lost.
                await asyncio.sleep(0.05 * 4**attempt)
            except (KeyExists, StoreClosed):
                return False
            else:
                seqs = iter(answer.seqs)
                for each in group:
                    count = len(each.entries)
                    own = [next(seqs) for _ in each.entries]
                    if not each.added.done():
                        each.added.set_result(_Answer(Added(count, 0, 0, (), own)))
                return True
        return False

    async def _answer(self, waiting: _Waiting) -> None:
        try:
            added = await self._add_alone(waiting.batch_id, waiting.entries, waiting.on_change)
        except Exception as error:  # noqa: BLE001 - the caller raises it
            if not waiting.added.done():
                waiting.added.set_exception(error)
                waiting.added.exception()  # a caller that was cancelled does not read it
        else:
            if not waiting.added.done():
                waiting.added.set_result(added)

    async def _add_alone(self, batch_id: int, entries: Sequence[NewItem], on_change: OnKnownKey) -> _Answer:
        schema = self._session.address.schema
        arguments = self._arguments(batch_id, entries, FIRST_MODES[on_change])
        began = time.monotonic()
        notifies = len(entries) <= _MAX_SMALL and self._notifying.may_begin(began)
        if notifies:
            first = " first" if any(entry.priority > 0 for entry in entries) else ""
            arguments = (*arguments, schema, f"{batch_id}{first}")
        try:
            answer = await self._session.recorded(
                sql.items.ADD_AND_NOTIFY if notifies else sql.items.ADD,
                *arguments,
                identity=("add", batch_id, tuple(entries), on_change),
            )
        except KeyExists:
            moment = self._clock.now()
            return _Answer(
                await self._session.call(lambda connection: compared(connection, schema, batch_id, entries, on_change, moment))
            )
        except StoreUnavailable:
            self._notifying.record_lost()
            raise
        ended = time.monotonic()
        if notifies:
            self._notifying.record(began, ended)
        else:
            self._notifying.record_other(ended)
        return _Answer(decode_answer(answer or "").added(entries), notifies)

    def _arguments(self, batch_id: int, entries: Sequence[NewItem], mode: str) -> tuple[object, ...]:
        return arguments_of(batch_id, entries, mode, self._clock.now())


def arguments_of(batch_id: int, entries: Sequence[NewItem], mode: str, now: float) -> tuple[object, ...]:
    """Return the arguments of the function add_items."""
    priorities = [entry.priority for entry in entries]
    due_times = [entry.due_at for entry in entries]
    return (
        batch_id,
        [entry.id for entry in entries],
        [entry.payload for entry in entries],
        priorities if any(priorities) else None,
        None if due_times.count(None) == len(due_times) else due_times,
        entries[0].traceparent,
        now,
        mode,
    )


async def compared(
    connection: Connection[Record], schema: str, batch_id: int, entries: Sequence[NewItem], on_change: OnKnownKey, now: float
) -> Added:
    """Add a chunk in a transaction of several statements, and compare the payloads of known keys as JSON.

    Raises KeyConflict; nothing of the chunk is then stored.
    """
    steps = adding(schema, entries, on_change, {"batch_id": batch_id, **chunk_fields(entries, now)})
    async with connection.transaction():
        answer: str | None = None
        while True:
            try:
                statement, argument = steps.send(answer)
            except StopIteration as end:
                added: Added = end.value[1]
                return added
            answer = await connection.fetchval(statement, argument)
