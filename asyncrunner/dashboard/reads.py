"""Read the store for all visitors together: one connection, opened by the first request and closed after a minute without one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec

from asyncrunner.admin.inspection.inspection import Inspection
from asyncrunner.admin.read_models import FailureCauses, FileStatus, History, Problem
from asyncrunner.backends import is_server, open_maintenance
from asyncrunner.errors import StoreError

T = TypeVar("T")
IDLE_SECONDS: Final = 60.0
_STATUS_SECONDS: Final = 0.9  # less than the second after which a page is drawn again
_REST_FACTOR: Final = 100  # a read takes at most 1 % of the time until the next equal one, unless that would be too long
_MAX_AGE_SECONDS: Final = 5.0
_FIRST_GUESS_SECONDS: Final = 0.005
_GROWTH: Final = 1.5
_MAX_PACES: Final = 1_000
_SLOW_SECONDS: Final = 5.0  # for what costs more and changes less: causes and charts
MAX_CAUSES: Final = 50


class _Pace:
    """How long a read usually takes. One slow read says little: perhaps it opened the store, or waited for the processor."""

    def __init__(self) -> None:
        self._usual = _FIRST_GUESS_SECONDS

    def learn(self, took: float) -> None:
        """Learn the seconds that a read took."""
        self._usual = min(took, _GROWTH * self._usual)

    @property
    def rest(self) -> float:
        """The seconds from one read to the next one."""
        return min(_REST_FACTOR * self._usual, _MAX_AGE_SECONDS)


class _Answer:
    """The value of a read that is under way or done. It is valid for *seconds*, or for up to 5 s if the read takes long."""

    def __init__(self, read: Coroutine[Any, Any, Any], seconds: float, pace: _Pace) -> None:
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._seconds = seconds
        self.value = self._loop.create_task(read)
        self.value.add_done_callback(self._end)

    @property
    def is_valid(self) -> bool:
        """Whether the answer may still be given, or is about to come."""
        if not self.value.done():
            return True
        has_failed = self.value.cancelled() or self.value.exception() is not None
        return not has_failed and self._loop.time() - self._began <= self._seconds

    def _end(self, value: asyncio.Task[Any]) -> None:
        self._pace.learn(self._loop.time() - self._began)
        self._seconds = max(self._seconds, self._pace.rest)
        _retrieve(value)


class _Connection:
    """An open store. A task of the running event loop keeps it until it has not been used for a while."""

    def __init__(self, db: str, idle_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._db = db
        self._file = _file_at(db)
        self._idle_seconds = idle_seconds
        self._used_at = self._loop.time()
        self._users = 0
        self._is_closing = False
        self._inspection: asyncio.Future[Inspection] = self._loop.create_future()
        self._inspection.add_done_callback(_retrieve)
        self._task = self._loop.create_task(self._keep(Inspection(db)))
        self._task.add_done_callback(self._end)

    @property
    def is_open(self) -> bool:
        """Whether it is open, or about to be opened."""
        return not self._is_closing

    @property
    def is_current(self) -> bool:
        """Whether it is open, and the store is still the one that was opened."""
        return self.is_open and _file_at(self._db) == self._file

    async def read(self, read: Callable[[Inspection], Awaitable[T]]) -> T:
        """Return what *read* returns; meanwhile the store stays open. Raises AsyncRunnerError."""
        self._users += 1
        try:
            return await read(await asyncio.shield(self._inspection))
        finally:
            self._users -= 1
            self._used_at = self._loop.time()

    async def close(self) -> None:
        """Close the store now; reads that are under way raise StoreError. Does nothing in another event loop, which has ended."""
        if self._loop is asyncio.get_running_loop():
            self._is_closing = True
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _keep(self, inspection: Inspection) -> None:
        try:
            await inspection.open()
        except Exception as error:  # noqa: BLE001 - the reads that wait raise it
            self._inspection.set_exception(error)
            return
        try:
            self._inspection.set_result(inspection)
            while self._users or self._rest() > 0:  # noqa: ASYNC110 - each read moves the end
                await asyncio.sleep(self._rest() if self._rest() > 0 else self._idle_seconds)
        finally:
            self._is_closing = True
            with suppress(StoreError):
                await inspection.close()

    def _end(self, _: asyncio.Task[None]) -> None:
        """Let the reads end that wait for an open store, also if the task was cancelled before its first step."""
        self._is_closing = True
        if not self._inspection.done():
            self._inspection.set_exception(StoreError("the dashboard was closed meanwhile"))

    def _rest(self) -> float:
        return self._used_at + self._idle_seconds - self._loop.time()


class Reads:
    """The reads of a dashboard. Equal reads within a second share one answer, however many pages are open.

    The connection belongs to a task of the running event loop, so that it is also closed when the loop ends: a mounted
    application has no shutdown of its own.
    """

    def __init__(self, db: str, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self.db = db
        self._idle_seconds = idle_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: _Connection | None = None
        self._answers: dict[object, _Answer] = {}
        self._paces: dict[object, _Pace] = {}

    @property
    def is_open(self) -> bool:
        """Whether a connection is open."""
        return self._connection is not None and self._connection.is_open

    async def status(self, batch: str | None = None) -> FileStatus:
        """Return the status of the store, or of one batch; of its newest failures, perhaps only some. See ``Control.status``."""
        return (await self._status(batch))[0]

    async def check(self) -> list[Problem]:
        """Return what needs a person; see ``Control.check``."""
        return (await self._status(None))[1]

    async def _status(self, batch: str | None) -> tuple[FileStatus, list[Problem]]:
        whole = self._answers.get(("status", None))
        if batch is not None and whole is not None and whole.is_valid and self._loop is asyncio.get_running_loop():
            status, problems = await self._status(None)
            named = [each for each in status.batches if each.name == batch]
            if named:
                failures = [each for each in status.failures if each.batch == batch]
                return msgspec.structs.replace(status, batches=named, failures=failures), problems
        return await self._shared(("status", batch), _STATUS_SECONDS, lambda store: store.status_and_problems(batch))

    async def failures(self, batch: str | None = None) -> FailureCauses:
        """Return the causes of failure; see ``Control.failures``."""
        return await self._shared(("failures", batch), _SLOW_SECONDS, lambda store: store.failures(batch, limit=MAX_CAUSES))

    async def cause_history(self, batch: str, fingerprints: tuple[str, ...]) -> dict[str, list[int]]:
        """Return the failed attempts of causes by minute; see ``Control.cause_history``."""
        key = ("cause history", batch, fingerprints)
        return await self._shared(key, _SLOW_SECONDS, lambda store: store.cause_history(fingerprints, batch))

    async def history(self, batch: str, minutes: int, step: str) -> History:
        """Return the history of a batch; see ``Control.history``."""
        key = ("history", batch, minutes, step)
        return await self._shared(key, _SLOW_SECONDS, lambda store: store.history(batch, minutes=minutes, step=step))

    async def free_bytes(self) -> int:
        """Return the size of the free space inside the file; 0 for a server."""
        return await self._shared("free", _SLOW_SECONDS, lambda _: open_maintenance(self.db).free_bytes())

    async def read(self, read: Callable[[Inspection], Awaitable[T]]) -> T:
        """Return what *read* returns, unshared. Raises AsyncRunnerError."""
        await self._forget_the_past()
        connection = self._connection
        if connection is None:
            connection = self._connection = _Connection(self.db, self._idle_seconds)
        try:
            return await connection.read(read)
        except StoreError:
            if self._connection is connection:
                await self.close()  # such as after a restart of the server: the next read opens it again
            raise

    def forget(self) -> None:
        """Forget the shared answers, because something was changed: the next read looks again."""
        self._answers.clear()

    async def close(self) -> None:
        """Close the connection. The next read opens it again."""
        connection, self._connection = self._connection, None
        self._answers.clear()
        if connection is not None:
            await connection.close()

    async def _shared(self, key: object, seconds: float, read: Callable[[Inspection], Awaitable[T]]) -> T:
        await self._forget_the_past()
        answer = self._answers.get(key)
        if answer is None or not answer.is_valid:
            self._answers = {other: each for other, each in self._answers.items() if each.is_valid}
            if len(self._paces) > _MAX_PACES:
                self._paces.clear()
            answer = self._answers[key] = _Answer(self.read(read), seconds, self._paces.setdefault(key, _Pace()))
        # A visitor who leaves must not cancel the read of the others.
        return cast("T", await asyncio.shield(answer.value))

    async def _forget_the_past(self) -> None:
        """Forget what belongs to another event loop, which has ended, or to a file that was replaced."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._connection, self._answers = loop, None, {}
        if self._connection is not None and not self._connection.is_current:
            await self.close()


def _file_at(db: str) -> tuple[int, int] | None:
    """Return the device and the inode of the file, which are others if it is replaced; None for none, and for a server."""
    try:
        status = None if is_server(db) else Path(db).stat()
    except OSError:
        return None
    return None if status is None else (status.st_dev, status.st_ino)


def _retrieve(answer: asyncio.Future[Any]) -> None:
    """Mark the exception of an answer as seen: perhaps all who waited for it have left."""
    if not answer.cancelled():
        answer.exception()
