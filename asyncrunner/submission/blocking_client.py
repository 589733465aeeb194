"""Submit items and wait for their results in a program without an event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, Unpack, overload

from asyncrunner.domain.options import Key
from asyncrunner.errors import ConfigurationError
from asyncrunner.submission.client import Client
from asyncrunner.submission.handle import Handle
from asyncrunner.submission.handler import Handler, SubmitOptions

if TYPE_CHECKING:
    from types import TracebackType

    from asyncrunner.domain.item import Status
    from asyncrunner.domain.options import Durability

R = TypeVar("R")
T = TypeVar("T")


class BlockingHandle(Generic[R]):
    """A ``Handle`` whose methods block the calling thread."""

    __slots__ = ("_call", "_handle")

    def __init__(self, handle: Handle[R], call: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._handle = handle
        self._call = call

    @property
    def key(self) -> str:
        return self._handle.key

    @property
    def created(self) -> bool:
        """See ``Handle.created``."""
        return self._handle.created

    @property
    def batch(self) -> str:
        return self._handle.batch

    def __repr__(self) -> str:
        return repr(self._handle)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockingHandle) and (self.batch, self.key) == (other.batch, other.key)

    def __hash__(self) -> int:
        return hash(self._handle)

    def status(self) -> Status:
        """See ``Handle.status``."""
        status: Status = self._call(self._handle.status())
        return status

    def result(self, timeout: float | None = None) -> R:
        """See ``Handle.result``."""
        result: R = self._call(self._handle.result(timeout))
        return result

    def cancel(self) -> bool:
        """See ``Handle.cancel``."""
        return bool(self._call(self._handle.cancel()))


# A forked child keeps its parent's client here, because freeing the client would close the parent's connection.
_inherited_from_parent: Final[list[object]] = []


class BlockingClient:
    """A ``Client`` for synchronous code such as a script, a Django view or a thread. It needs no running event loop.

    Use ``with BlockingClient("jobs.db") as client: client.submit("mails", 42)``. Many threads may use one client; the
    first call opens the file. The client runs a ``Client`` in a daemon thread, which does not keep the program from
    exiting. A server that forks may create the client before the fork but must not use it before: a child process
    refuses a file that its parent had open.
    """

    def __init__(self, db: str | os.PathLike[str] = "asyncrunner.db", *, durability: Durability = "full") -> None:
        self._make: Callable[[], Client] = partial(Client, db, durability=durability)
        self._make()  # an invalid option fails here rather than at the first item
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @overload
    def submit(self, target: Handler[T, R], item: T, **options: Unpack[SubmitOptions]) -> BlockingHandle[R]: ...
    @overload
    def submit(
        self, target: Callable[[T], Coroutine[Any, Any, R]], item: T, **options: Unpack[SubmitOptions]
    ) -> BlockingHandle[R]: ...
    @overload
    def submit(
        self, target: Callable[[T, Any], Coroutine[Any, Any, R]], item: T, **options: Unpack[SubmitOptions]
    ) -> BlockingHandle[R]: ...
    @overload
    def submit(self, target: Callable[[T], R], item: T, **options: Unpack[SubmitOptions]) -> BlockingHandle[R]: ...
    @overload
    def submit(self, target: Callable[[T, Any], R], item: T, **options: Unpack[SubmitOptions]) -> BlockingHandle[R]: ...
    @overload
    def submit(self, target: str, item: Any, **options: Unpack[SubmitOptions]) -> BlockingHandle[Any]: ...

    def submit(self, target: Any, item: Any, **options: Unpack[SubmitOptions]) -> BlockingHandle[Any]:
        """See ``Client.submit``.

        Raises ConfigurationError in a thread that runs an event loop, which the call would block.
        """
        handle: Handle[Any] = self._call(self._opened().submit(target, item, **options))
        return BlockingHandle(handle, self._call)

    def submit_many(self, target: Any, items: Iterable[Any], **options: Unpack[SubmitOptions]) -> list[BlockingHandle[Any]]:
        """See ``Client.submit_many``."""
        handles: list[Handle[Any]] = self._call(self._opened().submit_many(target, items, **options))
        return [BlockingHandle(handle, self._call) for handle in handles]

    def handle(self, target: Any, key: Key) -> BlockingHandle[Any]:
        """See ``Client.handle``."""
        handle: Handle[Any] = self._call(self._opened().handle(target, key))
        return BlockingHandle(handle, self._call)

    def close(self) -> None:
        """Close the file and end the thread.

        Closing a closed client does nothing; the next call opens the file again.
        """
        with self._lock:
            client, loop, thread = self._client, self._loop, self._thread
            self._client = self._loop = self._thread = None
            if client is None or loop is None or thread is None or os.getpid() != self._process:
                return
            asyncio.run_coroutine_threadsafe(client.close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _opened(self) -> Client:
        _refuse_running_loop()
        with self._lock:
            if os.getpid() != self._process:
                # If the parent had opened the file, client.open() below refuses it.
                _inherited_from_parent.append((self._client, self._loop, self._thread))
                self._client = self._loop = self._thread = None
                self._process = os.getpid()
            if self._client is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="asyncrunner client", daemon=True)
                thread.start()
                client = self._make()
                try:
                    asyncio.run_coroutine_threadsafe(client.open(), loop).result()
                except BaseException:
                    loop.call_soon_threadsafe(loop.stop)
                    thread.join()
                    loop.close()
                    raise
                self._client, self._loop, self._thread = client, loop, thread
            return self._client

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        try:
            _refuse_running_loop()
            loop = self._loop
            if loop is None or os.getpid() != self._process:
                raise ConfigurationError(
                    "the BlockingClient was closed or belongs to a forked parent; call client.handle(batch, key) for a new handle"
                )
            future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, loop)
        except BaseException:
            coroutine.close()
            raise
        try:
            return future.result()
        except BaseException:
            future.cancel()  # after Ctrl-C the result is no longer needed
            raise


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigurationError(
        "an event loop runs in this thread and this call would block it; use a Client and `await client.submit(...)`"
    )
