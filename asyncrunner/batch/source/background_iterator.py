"""Read an iterator that blocks in a thread of its own, and hand the items over to the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final, Generic, TypeVar

import anyio

T = TypeVar("T")
_MAX_WAITING: Final = 100  # a group of items is handed over only while fewer items than this wait


class _ClosedError(Exception):
    """An error that ends the thread of a closed reader."""


class BackgroundIterator(Generic[T]):
    """A reader of one iterator in one daemon thread, so that a blocked read blocks neither the loop nor the program's exit.

    All reads are made in the same thread, in a copy of the creator's context. At most 200 items wait for ``take()``. If
    the iterator is a generator, the thread closes it at the end, also after ``aclose()``. Each item is handed over before
    the next one is read. With *is_grouped*, 100 items are handed over together, and the iterator calls ``flush()`` before
    it waits.
    """

    def __init__(self, iterator: Iterator[T], *, name: str = "asyncrunner source", is_grouped: bool = False) -> None:
        """Prepare the thread, which the first ``take()`` starts. The caller must run in the event loop of that call."""
        self._iterator = iterator
        self._group_size = _MAX_WAITING if is_grouped else 1
        self._group: list[T] = []  # read, and not handed over yet
        self._changed = threading.Condition()  # guards the next three attributes
        self._waiting: list[T] = []
        self._is_closing = False
        self._has_ended = False
        self._error: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        context = contextvars.copy_context()
        self._thread: threading.Thread | None = None
        self._new_thread = partial(threading.Thread, target=context.run, args=(self._read,), name=name, daemon=True)

    async def take(self) -> list[T]:
        """Wait for items and return them; an empty list is the end.

        Raises the exception of the iterator after the items that it gave before.
        """
        if self._thread is None:
            self._thread = self._new_thread()
            self._thread.start()
        while True:
            await self._ready.wait()
            with self._changed:
                items, self._waiting = self._waiting, []
                has_ended = self._has_ended
                if not has_ended:
                    self._ready.clear()
                self._changed.notify()
            if items:
                return items
            if has_ended:
                if self._error is not None:
                    raise self._error
                return items

    async def aclose(self, seconds: float) -> bool:
        """Read no further, and wait at most *seconds* for the thread to end; return whether it has ended.

        A thread that is blocked in a read cannot be interrupted: it ends after that read.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread is None:
            return True
        with anyio.move_on_after(seconds, shield=True):
            await self._ended.wait()
        return self._ended.is_set()

    def flush(self) -> None:
        """Hand over the items that were read, as soon as there is room, in the thread. Raises _ClosedError after aclose()."""
        with self._changed:
            while len(self._waiting) >= _MAX_WAITING and not self._is_closing:
                self._changed.wait()
            if self._is_closing:
                raise _ClosedError
            is_first = not self._waiting
            self._waiting += self._group
        if is_first and self._group:
            self._call(self._ready.set)
        self._group.clear()

    def _read(self) -> None:
        try:
            try:
                for item in self._iterator:
                    self._group.append(item)
                    if len(self._group) >= self._group_size:
                        self.flush()
            finally:
                if inspect.isgenerator(self._iterator):
                    self._iterator.close()
        except BaseException as error:  # noqa: BLE001 - take() raises it in the event loop
            self._error = error
        with suppress(_ClosedError):
            self.flush()
        with self._changed:
            self._has_ended = True
        self._call(self._ready.set)
        self._call(self._ended.set)

    def _call(self, function: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed, so the items have no reader
            self._loop.call_soon_threadsafe(function)
