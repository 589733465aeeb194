"""Read the store for all visitors together: one connection, opened by the first request and closed after a minute without one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

import msgspec

from asyncrunner.admin.inspection.inspection import Inspection
from asyncrunner.admin.read_models import FailureCauses, FileStatus, History, Problem
from asyncrunner.backends import open_maintenance
from asyncrunner.errors import StoreError

T = TypeVar("T")
IDLE_SECONDS: Final = 60.0
_STATUS_SECONDS: Final = 0.9  # less than the second after which a page is drawn again
_REST_FACTOR: Final = 100  # a read takes at most 1 % of the time until the next equal one
_SLOW_SECONDS: Final = 5.0  # for what costs more and changes less: causes and charts
MAX_CAUSES: Final = 50


class _Answer:
    """The value of a read that is under way or done. It is valid for *seconds*, or for longer if the read takes long."""

    def __init__(self, read: Coroutine[Any, Any, Any], seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._seconds = seconds
        self.value = self._loop.create_task(read)
        self.value.add_done_callback(self._end)

    @property
    def is_valid(self) -> bool:
        """Whether the answer may still be given."""
        has_failed = self.value.done() and (self.value.cancelled() or self.value.exception() is not None)
        return not has_failed and self._loop.time() - self._began <= self._seconds

    def _end(self, value: asyncio.Task[Any]) -> None:
        self._seconds = max(self._seconds, _REST_FACTOR * (self._loop.time() - self._began))
        _retrieve(value)


class Reads:
    """The reads of a dashboard. Equal reads within a second share one answer, however many pages are open.

    The connection belongs to a task of the running event loop, so that it is also closed when the loop ends: a mounted
    application has no shutdown of its own.
    """

    def __init__(self, db: str, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self.db = db
        self._idle_seconds = idle_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[Inspection] | None = None
        self._answers: dict[object, _Answer] = {}
        self._used_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether a connection is open."""
        return self._keeper is not None and not self._keeper.done()

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
        try:
            return await read(await self._inspection())
        except StoreError:
            await self.close()  # the file was replaced, or the server was restarted: the next read opens it again
            raise

    def forget(self) -> None:
        """Forget the shared answers, because something was changed: the next read looks again."""
        self._answers.clear()

    async def close(self) -> None:
        """Close the connection. The next read opens it again."""
        keeper, self._keeper = self._keeper, None
        self._answers.clear()
        if keeper is not None and self._loop is asyncio.get_running_loop():
            keeper.cancel()
            await asyncio.wait([keeper])

    async def _shared(self, key: object, seconds: float, read: Callable[[Inspection], Awaitable[T]]) -> T:
        if self._loop is not asyncio.get_running_loop():
            self._answers.clear()
        answer = self._answers.get(key)
        if answer is None or not answer.is_valid:
            self._answers = {other: each for other, each in self._answers.items() if each.is_valid}
            answer = self._answers[key] = _Answer(_awaited(self.read(read)), seconds)
        # A visitor who leaves must not cancel the read of the others.
        return cast("T", await asyncio.shield(answer.value))

    async def _inspection(self) -> Inspection:
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._keeper is None or self._keeper.done() or self._opened is None:
            self._loop = loop
            self._opened = loop.create_future()
            self._opened.add_done_callback(_retrieve)
            self._keeper = loop.create_task(self._keep(self._opened))
        self._used_at = loop.time()
        return await asyncio.shield(self._opened)

    async def _keep(self, opened: asyncio.Future[Inspection]) -> None:
        """Open the store, and close it when it has not been used for a minute, or when this task is cancelled."""
        loop = asyncio.get_running_loop()
        inspection = Inspection(self.db)
        try:
            await inspection.open()
        except BaseException as error:
            opened.set_exception(error if isinstance(error, Exception) else StoreError("the dashboard was closed meanwhile"))
            if isinstance(error, Exception):
                return
            raise
        try:
            opened.set_result(inspection)
            while (rest := self._used_at + self._idle_seconds - loop.time()) > 0:  # noqa: ASYNC110 - each read moves the end
                await asyncio.sleep(rest)
        finally:
            if self._opened is opened:
                self._opened = None
            with suppress(StoreError):
                await inspection.close()


async def _awaited(read: Awaitable[T]) -> T:
    return await read


def _retrieve(answer: asyncio.Future[Any]) -> None:
    """Mark the exception of an answer as seen: perhaps all who waited for it have left."""
    if not answer.cancelled():
        answer.exception()
