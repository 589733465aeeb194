"""Add items. Small chunks that pile up while another one is on its way share the next transaction."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from asyncrunner.errors import StoreClosed, StoreUnavailable
from asyncrunner.postgres import sql
from asyncrunner.postgres.connection.errors import KeyExists
from asyncrunner.serialization.keys import is_same_json
from asyncrunner.store.batches import Added
from asyncrunner.store.rules.conflicts import key_conflict, key_exists

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection, Record

    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import NewItem, OnKnownKey
    from asyncrunner.postgres.connection.session import Session

_MAX_SMALL: Final = 50  # items of a chunk that may share a transaction
_MAX_SHARED: Final = 500  # items in one shared transaction
_SHARED_TRIES: Final = 3
_MODES: Final[dict[OnKnownKey, str]] = {"error": "same", "keep": "same", "refuse": "new", "rerun": "same", "run again": "new"}
"""How the function add_items begins. If it finds a conflict, another transaction compares the payloads as JSON."""


class _Answer(msgspec.Struct):
    seqs: list[int]
    known: list[bool]

    def added(self, entries: Sequence[NewItem]) -> Added:
        new = len({seq for seq, known in zip(self.seqs, self.known, strict=True) if not known})
        known = frozenset(entry.id for entry, known in zip(entries, self.known, strict=True) if known)
        return Added(new, len(entries) - new, 0, (), self.seqs, known)


_decode = msgspec.json.Decoder(_Answer).decode


class _Waiting(NamedTuple):
    batch_id: int
    entries: Sequence[NewItem]
    on_change: OnKnownKey
    added: asyncio.Future[Added]


class Inserter:
    """The additions of one store, on one session."""

    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._adding: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Finish the additions that have begun."""
        if self._adding is not None:
            await asyncio.wait([self._adding])

    async def add(self, batch_id: int, entries: Sequence[NewItem], on_change: OnKnownKey) -> Added:
        """Add a chunk, see ``EngineStore.add``."""
        if not entries:
            return Added(0, 0, 0, ())
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
                answer = _decode(await self._session.recorded(sql.items.ADD, *arguments) or "")
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
                        each.added.set_result(Added(count, 0, 0, (), own))
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

    async def _add_alone(self, batch_id: int, entries: Sequence[NewItem], on_change: OnKnownKey) -> Added:
        try:
            answer = await self._session.recorded(
                sql.items.ADD,
                *self._arguments(batch_id, entries, _MODES[on_change]),
                identity=("add", batch_id, tuple(entries), on_change),
            )
        except KeyExists:
            moment = self._clock.now()
            return await self._session.call(lambda connection: compared(connection, batch_id, entries, on_change, moment))
        return _decode(answer or "").added(entries)

    def _arguments(self, batch_id: int, entries: Sequence[NewItem], mode: str) -> tuple[object, ...]:
        return arguments_of(batch_id, entries, mode, self._clock.now())


def arguments_of(batch_id: int, entries: Sequence[NewItem], mode: str, now: float) -> tuple[object, ...]:
    """Return the arguments of the function add_items."""
    return (
        batch_id,
        [entry.id for entry in entries],
        [entry.payload for entry in entries],
        [entry.priority for entry in entries],
        [entry.due_at for entry in entries],
        entries[0].traceparent,
        now,
        mode,
    )


async def compared(
    connection: Connection[Record], batch_id: int, entries: Sequence[NewItem], on_change: OnKnownKey, now: float
) -> Added:
    """Add a chunk in a transaction of several statements, and compare the payloads of known keys as JSON.

    Raises KeyConflict; nothing of the chunk is then stored.
    """
    async with connection.transaction():
        row = await connection.fetchrow(sql.items.ADD, *arguments_of(batch_id, entries, "any", now))
        assert row is not None
        answer = _Answer(*row)
        added = answer.added(entries)
        if on_change == "refuse":
            raise key_exists(entries, added.known)
        stored = {
            key: (payload, completed, seq)
            for key, payload, completed, seq in await connection.fetch(
                sql.items.STORED, batch_id, list({entry.id for entry in entries})
            )
        }
        runs_again = added.known if on_change == "run again" else frozenset[str]()
        changed = [entry for entry in entries if entry.id in runs_again or not is_same_json(stored[entry.id][0], entry.payload)]
        if changed and on_change == "error":
            raise key_conflict(changed[0])
        undone: Sequence[int] = ()
        if changed and on_change in ("rerun", "run again"):
            values = [(each.payload, each.priority, each.due_at, each.traceparent, batch_id, each.id) for each in changed]
            await connection.executemany(sql.items.REPLACE_PAYLOAD, values)
            await connection.executemany(sql.items.REQUEST_RERUN, values)
            keys = {entry.id for entry in changed}
            undone = [seq for key, (_, completed, seq) in stored.items() if completed and key in keys]
        return added._replace(changed=len(changed), undone=undone)
