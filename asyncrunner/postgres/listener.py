"""The session that listens: liveness locks, heartbeats, notifications, and the decision whether another worker is alive."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any, Final

from asyncrunner.errors import StoreClosed, StoreError, StoreUnavailable
from asyncrunner.postgres import sql
from asyncrunner.postgres.connection.identity import record_identity
from asyncrunner.postgres.connection.session import Session
from asyncrunner.store.items import Mark
from asyncrunner.store.workers import Peer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncpg import Connection, Record

    from asyncrunner.postgres.connection.address import Address

GRACE_SECONDS: Final = 0.35
"""Seconds for which a liveness lock must be free, with no heartbeat, until its worker counts as dead.

A free lock proves the end of a session, and a live worker whose session was terminated needs a moment to lock again."""

_RESTART_GRACE_SECONDS: Final = 5.0  # the same after a restart of the server, which frees all locks at the same time
_NOTIFY_SECONDS: Final = 0.005  # between two notifications; each is a transaction
_MAX_DELIVERIES: Final = 10_000  # of notifications of settlements a second, if every worker sends them to every other one
_LOOK_SECONDS: Final = 1.0  # wait_for_change() returns as often without a notification, because one can be lost
_MAX_RECONNECT_SECONDS: Final = 0.25

HELD: Final = "its session holds its lock"
_FREE: Final = "its lock is free"
UNPROVEN: Final = "no session holds its lock"


def lock_key(schema: str, worker_id: str) -> int:
    """Return the key of the worker's liveness lock, an advisory lock."""
    digest = hashlib.blake2b(f"{schema}/{worker_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


class Listener:
    """The listening session of one store. ``on_first``: called when turns must look from the first item on."""

    def __init__(self, address: Address, on_first: Callable[[], None]) -> None:
        self._schema = address.schema
        self._on_first = on_first
        self.session = Session(address, durability="normal", on_connect=self._on_connect)
        self._locked: set[str] = set()
        self._changed = asyncio.Event()
        self._mark = 0
        self._payloads: set[str] = set()
        self._notifying: asyncio.Task[None] | None = None
        self._settled: set[int] = set()
        self._settled_timer: asyncio.TimerHandle | None = None
        self._settled_at = 0.0
        self._settled_pause = 0.0
        self._reconnecting: asyncio.Task[None] | None = None
        self._is_open = False
        self._pid = 0
        self._server_start: Any = None
        self._connected_at = 0.0
        self._free_since: dict[str, tuple[float, str]] = {}
        self._held_on: dict[str, Any] = {}  # the start of the server on which the lock was last seen held

    async def open(self) -> None:
        self._is_open = True
        try:
            await self.session.open()
        except BaseException:
            self._is_open = False
            raise

    async def close(self) -> None:
        self._is_open = False
        self._changed.set()
        if self._settled_timer is not None:
            self._settled_timer.cancel()
            self._settled_timer = None
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        if self._notifying is not None:
            await asyncio.wait([self._notifying])
        await self.session.close()

    async def _on_connect(self, connection: Connection[Record]) -> None:
        for worker_id in self._locked:  # first of all: until then, another worker may take this one for dead
            await connection.execute(sql.workers.LOCK, lock_key(self._schema, worker_id))
            # Another worker may look only before and after, if the new session is lost too: it must not take that for one loss.
            await connection.execute(sql.workers.SHOW_LOCKED_AGAIN, worker_id)
        self._pid = connection.get_server_pid()
        self._free_since.clear()
        self._connected_at = asyncio.get_running_loop().time()
        self._server_start = await connection.fetchval(sql.workers.SERVER_START)
        await record_identity(connection, self.session.address)
        connection.add_termination_listener(self._on_termination)
        await connection.add_listener(self._schema, self._on_notification)
        self._touch()

    def _on_termination(self, connection: object) -> None:
        del connection
        if self._is_open and (self._reconnecting is None or self._reconnecting.done()):
            self._reconnecting = asyncio.ensure_future(self._reconnect())

    async def _reconnect(self) -> None:
        """Connect again without a delay: until the locks are held again, other workers may take this one for dead."""
        pause = 0.01
        while self._is_open:
            try:
                await self.session.value("SELECT 1")
            except StoreClosed:
                return
            except StoreError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MAX_RECONNECT_SECONDS)
            else:
                return

    def _on_notification(self, connection: object, pid: int, channel: str, payload: object) -> None:
        del connection, channel
        if pid == self._pid:
            return
        if str(payload).endswith("first"):
            self._on_first()
        self._touch()

    def _touch(self) -> None:
        self._mark += 1
        self._changed.set()

    # --- changes -----------------------------------------------------------------------------------------------------

    def notify(self, batch_id: int, *, first: bool = False) -> None:
        """Notify the other programs that a batch has changed, after the commit and at most every 5 ms.

        A notification inside the transaction would hold a lock of the whole server while the transaction is written.
        """
        self._payloads.add(f"{batch_id} first" if first else str(batch_id))
        if self._notifying is None or self._notifying.done():
            self._notifying = asyncio.ensure_future(self._notify())

    def notify_settled(self, batch_id: int) -> None:
        """Notify the other programs that items of a batch have ended; among many workers less often, at least each second.

        Each notification reaches each worker, so their number grows with the square of the number of workers.
        """
        if self._settled_pause <= _NOTIFY_SECONDS:
            self.notify(batch_id)
            return
        self._settled.add(batch_id)
        if self._settled_timer is None:
            loop = asyncio.get_running_loop()
            self._settled_timer = loop.call_at(max(self._settled_at, loop.time()), self._send_settled)

    def _send_settled(self) -> None:
        self._settled_timer = None
        self._settled_at = asyncio.get_running_loop().time() + self._settled_pause
        batch_ids, self._settled = self._settled, set[int]()
        for batch_id in batch_ids:
            self.notify(batch_id)

    async def _notify(self) -> None:
        while self._payloads:
            payloads, self._payloads = list(self._payloads), set[str]()
            try:
                await self.session.fetch(sql.workers.NOTIFY, self._schema, payloads)
            except (StoreError, StoreUnavailable):
                return  # the others look each second
            if not self._is_open:
                return
            await asyncio.sleep(_NOTIFY_SECONDS)

    async def wait_for_change(self, mark: Mark | None) -> Mark:
        """Wait for a notification after *mark*, at most a second; see ``EngineStore.wait_for_change``."""
        if mark is not None and self._mark == mark:
            self._changed.clear()
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                self._mark += 1
        if not self._is_open:
            raise StoreClosed(f"{self.session.location} is not open")
        return Mark(self._mark)

    # --- liveness ----------------------------------------------------------------------------------------------------

    async def lock(self, worker_id: str) -> None:
        """Acquire the liveness lock of a worker, which the session holds until it ends; a new session acquires it again."""
        if worker_id not in self._locked:
            await self.session.fetch(sql.workers.LOCK, lock_key(self._schema, worker_id))
            self._locked.add(worker_id)

    async def unlock(self, worker_id: str) -> None:
        """Release the liveness lock of a worker."""
        if worker_id in self._locked:
            self._locked.discard(worker_id)
            await self.session.fetch(sql.workers.UNLOCK, lock_key(self._schema, worker_id))

    async def peers(self, worker_id: str) -> Sequence[Peer]:
        """Return the other workers, see ``EngineStore.peers``."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        rows = await self.session.fetch(sql.workers.PEERS, worker_id)
        if loop.time() - began > GRACE_SECONDS:
            # This machine or the server is so slow that a live worker cannot lock again within the grace.
            self._free_since.clear()
        self._settled_pause = min(len(rows) ** 2 / _MAX_DELIVERIES, _LOOK_SECONDS)
        names = {row[0] for row in rows}
        for known in (self._free_since, self._held_on):
            for name in known.keys() - names:
                del known[name]
        return [self._peer(*row) for row in rows]

    def _peer(self, worker_id: str, pulse: str, host: str, pid: int, is_locked: bool) -> Peer:
        if is_locked:
            self._free_since.pop(worker_id, None)
            self._held_on[worker_id] = self._server_start
            return Peer(worker_id, pulse, host, pid, True, HELD)
        alive = False if self._is_dead(worker_id, pulse) else None
        return Peer(worker_id, pulse, host, pid, alive, UNPROVEN if alive is None else _FREE)

    def _is_dead(self, worker_id: str, pulse: str) -> bool:
        """Return whether this session has seen the lock free, and the heartbeat unchanged, for long enough."""
        now = asyncio.get_running_loop().time()
        since, first_pulse = self._free_since.setdefault(worker_id, (now, pulse))
        if first_pulse != pulse:
            self._free_since[worker_id] = (now, pulse)
            return False
        has_restarted = self._held_on.get(worker_id, self._server_start) != self._server_start
        if has_restarted and now - self._connected_at < _RESTART_GRACE_SECONDS:
            return False
        return now - since >= GRACE_SECONDS
