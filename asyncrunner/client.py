"""Client: hands items in and asks after them, where other processes run them."""

from __future__ import annotations

import asyncio
import difflib
import os
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar, Unpack, cast, overload

from asyncrunner.clock import Clock, SystemClock
from asyncrunner.codec import Codec, codecs_of
from asyncrunner.desk import Desk, Handle
from asyncrunner.errors import BatchNotFound, ConfigurationError
from asyncrunner.handler import Handler, SubmitOptions, check_items, entries_of
from asyncrunner.ingest import Encoder
from asyncrunner.naming import default_batch
from asyncrunner.settings import Settings
from asyncrunner.sqlite import SQLiteStore
from asyncrunner.transient import Persistence

if TYPE_CHECKING:
    from types import TracebackType

    from asyncrunner.item import OnChange, Status
    from asyncrunner.sqlite.file import Durability
    from asyncrunner.store import Store

__all__ = ["BlockingClient", "BlockingHandle", "Client"]

T = TypeVar("T")
R = TypeVar("R")


class _Target(NamedTuple):
    """Where items go, and how they are stored."""

    batch: str
    encoder: Encoder
    results: Codec[Any]
    on_change: OnChange
    handler: Handler[Any, Any] | None


class Client:
    """A file's items from outside: it submits, waits and cancels, and runs nothing itself.

    ``async with Client("jobs.db") as client:``. An item goes to a handler of a runner (which need not be started here), to a
    function whose batch is in the file, or to a batch by its name. The file is created if it is not there.
    """

    def __init__(
        self, db: str | os.PathLike[str] = "asyncrunner.db", *, durability: Durability = "full", clock: Clock | None = None,
        store: Store | None = None,
    ) -> None:  # fmt: skip
        Settings(db=db, durability=durability)
        self.db = db
        self._store: Store = store or SQLiteStore(db, durability=durability)
        self._clock: Clock = clock or SystemClock()
        self._persist = Persistence(self._clock)
        self._desk = Desk(self._store, self._clock, self._why_closed)
        self._batches: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Client of {self._store.location}>"

    async def __aenter__(self) -> Client:
        await self.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def open(self) -> None:
        """Open the file. Raises StoreError."""
        await self._persist(self._store.open)
        self._batches.clear()
        self._desk.open(self._persist)

    async def close(self) -> None:
        """Close the file; who waits for a result gets StoreClosed. Closing twice is fine."""
        await self._desk.close()
        await self._store.close()

    @overload
    async def submit(self, target: Handler[T, R], item: T, **options: Unpack[SubmitOptions]) -> Handle[R]: ...
    @overload
    async def submit(
        self, target: Callable[[T], Coroutine[Any, Any, R]], item: T, **options: Unpack[SubmitOptions]
    ) -> Handle[R]: ...
    @overload
    async def submit(self, target: Callable[[T], R], item: T, **options: Unpack[SubmitOptions]) -> Handle[R]: ...
    @overload
    async def submit(self, target: str, item: Any, **options: Unpack[SubmitOptions]) -> Handle[Any]: ...

    async def submit(self, target: Any, item: Any, **options: Unpack[SubmitOptions]) -> Handle[Any]:
        """Store one item and return its handle, like ``Handler.submit``. ``target``: a handler, its function, or a batch's name.

        Raises BatchNotFound where there is no handler to make the batch by, and what ``Handler.submit`` raises.
        """
        return (await self._submit(_target(target), [item], options))[0]

    @overload
    async def submit_many(
        self, target: Handler[T, R], items: Iterable[T], **options: Unpack[SubmitOptions]
    ) -> list[Handle[R]]: ...
    @overload
    async def submit_many(self, target: Any, items: Iterable[Any], **options: Unpack[SubmitOptions]) -> list[Handle[Any]]: ...

    async def submit_many(self, target: Any, items: Iterable[Any], **options: Unpack[SubmitOptions]) -> list[Handle[Any]]:
        """Store items in one transaction and return their handles in order, like ``Handler.submit_many``."""
        check_items(items)
        if "key" in options:
            raise ConfigurationError("submit_many() takes no key: one key is one item; give the handler a key= function")
        return await self._submit(_target(target), items, options)

    @overload
    async def handle(self, target: Handler[T, R], key: str | int) -> Handle[R]: ...
    @overload
    async def handle(self, target: Any, key: str | int) -> Handle[Any]: ...

    async def handle(self, target: Any, key: str | int) -> Handle[Any]:
        """The handle of an item that was submitted before, by whatever process. Raises BatchNotFound, ItemNotFound."""
        found = _target(target)
        handle: Handle[Any] = Handle(self._desk, found.batch, await self._batch_id(found), str(key), found.results)
        await handle.status()
        return handle

    async def _submit(self, target: _Target, items: Iterable[Any], options: SubmitOptions) -> list[Handle[Any]]:
        entries = entries_of(target.encoder, items, self._clock, options)
        batch_id = await self._batch_id(target)
        if entries:
            await self._desk.add(batch_id, entries, on_change=target.on_change)
        return [Handle(self._desk, target.batch, batch_id, entry.id, target.results) for entry in entries]

    async def _batch_id(self, target: _Target) -> int:
        self._desk.check_open()
        name = target.batch
        if name not in self._batches:
            found = await self._persist(lambda: self._store.find_batch(name))
            handler = target.handler
            if found is None and handler is not None:
                found = await self._persist(
                    lambda: self._store.open_batch(name, handler.name, handler.options, now=self._clock.now())
                )
            if found is None:
                raise await self._not_found(name)
            self._batches[name] = found.batch_id
        return self._batches[name]

    async def _not_found(self, name: str) -> BatchNotFound:
        names = await self._persist(self._store.batch_names)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}" if near else f"it has {', '.join(map(repr, names[:5])) or 'none yet'}"
        return BatchNotFound(
            f"{self._store.location} has no batch {name!r}; {hint}. A runner makes its handlers' batches when it starts, and so "
            "does submitting to the handler itself"
        )

    def _why_closed(self) -> str:
        return f"{self!r} is not open; use `async with client:` or `await client.open()` first"


def _target(target: Any) -> _Target:
    if isinstance(target, Handler):
        handler = cast("Handler[Any, Any]", target)  # type: ignore[redundant-cast]
        return _Target(handler.batch, handler.encoder, handler.results, handler.settings.on_change, handler)
    if isinstance(target, str):
        codec: Codec[Any] = Codec(owner=f"the batch {target!r}")
        return _Target(target, Encoder(codec, None), codec, "error", None)
    if not callable(target):
        raise ConfigurationError(f"{target!r} is no handler, no function and no name of a batch")
    items, results = codecs_of(target)
    return _Target(default_batch(target), Encoder(items, None), results, "error", None)


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


_inherited: Final[list[object]] = []


class BlockingClient:
    """A ``Client`` for synchronous code: a script, a Django view, a thread. It needs no running loop.

    ``with BlockingClient("jobs.db") as client: client.submit("mails", 42)``. May be made once and used from many threads; the
    file is opened by the first call. It drives a ``Client`` in a thread of its own, which keeps no program from exiting. Servers
    that fork may make it before, but must use it only after the fork: a child refuses a file that its parent had open.
    """

    def __init__(self, db: str | os.PathLike[str] = "asyncrunner.db", *, durability: Durability = "full") -> None:
        self._make: Callable[[], Client] = partial(Client, db, durability=durability)
        self._make()  # fails now rather than at the first item
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
    def submit(self, target: Callable[[T], R], item: T, **options: Unpack[SubmitOptions]) -> BlockingHandle[R]: ...
    @overload
    def submit(self, target: str, item: Any, **options: Unpack[SubmitOptions]) -> BlockingHandle[Any]: ...

    def submit(self, target: Any, item: Any, **options: Unpack[SubmitOptions]) -> BlockingHandle[Any]:
        """See ``Client.submit``. Raises ConfigurationError in a thread whose event loop is running: it would stand still."""
        handle: Handle[Any] = self._call(self._opened().submit(target, item, **options))
        return BlockingHandle(handle, self._call)

    def submit_many(self, target: Any, items: Iterable[Any], **options: Unpack[SubmitOptions]) -> list[BlockingHandle[Any]]:
        """See ``Client.submit_many``."""
        handles: list[Handle[Any]] = self._call(self._opened().submit_many(target, items, **options))
        return [BlockingHandle(handle, self._call) for handle in handles]

    def handle(self, target: Any, key: str | int) -> BlockingHandle[Any]:
        """See ``Client.handle``."""
        handle: Handle[Any] = self._call(self._opened().handle(target, key))
        return BlockingHandle(handle, self._call)

    def close(self) -> None:
        """Close the file and end the thread. Closing twice is fine, and so is using it again afterwards."""
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
                # A forked child must not touch, and not even close, its parent's connection. If the parent had opened the
                # file, opening it again is refused below.
                _inherited.append((self._client, self._loop, self._thread))
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
                    "the BlockingClient was closed, or is a forked parent's; get the handle again with client.handle(batch, key)"
                )
            future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, loop)
        except BaseException:
            coroutine.close()
            raise
        try:
            return future.result()
        except BaseException:
            future.cancel()  # of Ctrl-C: nobody waits any longer
            raise


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigurationError(
        "an event loop runs in this thread, and blocking would stop it; use `await client.submit(...)` of a Client"
    )
