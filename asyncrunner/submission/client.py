"""Submit items and wait for their results while other processes run the handlers."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, Unpack, cast, get_args, overload

from asyncrunner.backends import open_engine
from asyncrunner.domain.clock import Clock, SystemClock
from asyncrunner.domain.options import Durability, Key
from asyncrunner.errors import ConfigurationError
from asyncrunner.serialization.codec import Codec, codecs_of
from asyncrunner.serialization.keys import given_key
from asyncrunner.store.retrying import RetryingStore
from asyncrunner.submission.encoder import Encoder
from asyncrunner.submission.handle import Handle
from asyncrunner.submission.handler import Handler, SubmitOptions, is_created, new_items_of, on_known_key
from asyncrunner.submission.naming import default_batch
from asyncrunner.submission.store_access import OpenStore
from asyncrunner.submission.submitter import ItemSubmitter
from asyncrunner.text.suggestions import no_such_batch
from asyncrunner.text.validation import checked_choice, checked_items, checked_path

if TYPE_CHECKING:
    from types import TracebackType

    from asyncrunner.domain.item import OnChange
    from asyncrunner.store.protocols import Store

T = TypeVar("T")
R = TypeVar("R")

_HOW_BATCHES_ARE_CREATED: Final = (
    "A runner creates the batches of its handlers when it starts; submitting to a handler instead of a name also creates its "
    "batch"
)


class _Target(NamedTuple):
    """The batch to which items are added, and the codecs and options with which they are stored."""

    batch: str
    encoder: Encoder
    results: Codec[Any]
    on_change: OnChange
    handler: Handler[Any, Any] | None


class Client:
    """A client of a database file: submits items, waits for results and cancels items, but runs no handlers.

    Use ``async with Client("jobs.db") as client:``. The target of an item is a handler of a runner (which need not be
    started in this process), a function whose batch is in the file, or the name of a batch. Opening creates the file if
    it does not exist.
    """

    def __init__(
        self,
        db: str | os.PathLike[str] = "asyncrunner.db",
        *,
        durability: Durability = "full",
        clock: Clock | None = None,
        store: Store | None = None,
    ) -> None:
        self.db = checked_path("db", db)
        checked_choice("durability", durability, get_args(Durability))
        self._clock: Clock = clock or SystemClock()
        self._store = RetryingStore(store or open_engine(self.db, durability, self._clock), self._clock)
        self._submitter = ItemSubmitter(self._clock, self._closed_reason)

    def __repr__(self) -> str:
        return f"<Client of {self._store.location}>"

    async def __aenter__(self) -> Client:
        await self.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def open(self) -> None:
        """Open the file, creating it if needed. Raises StoreError."""
        await self._store.open()
        self._submitter.open(OpenStore(self._store, self._clock, {}, None))

    async def close(self) -> None:
        """Close the file. Calls that wait for a result raise StoreClosed. Closing a closed client does nothing."""
        await self._submitter.close()
        await self._store.close()

    @overload
    async def submit(self, target: Handler[T, R], item: T, **options: Unpack[SubmitOptions]) -> Handle[R]: ...
    @overload
    async def submit(
        self, target: Callable[[T], Coroutine[Any, Any, R]], item: T, **options: Unpack[SubmitOptions]
    ) -> Handle[R]: ...
    @overload
    async def submit(
        self, target: Callable[[T, Any], Coroutine[Any, Any, R]], item: T, **options: Unpack[SubmitOptions]
    ) -> Handle[R]: ...
    @overload
    async def submit(self, target: Callable[[T], R], item: T, **options: Unpack[SubmitOptions]) -> Handle[R]: ...
    @overload
    async def submit(self, target: Callable[[T, Any], R], item: T, **options: Unpack[SubmitOptions]) -> Handle[R]: ...
    @overload
    async def submit(self, target: str, item: Any, **options: Unpack[SubmitOptions]) -> Handle[Any]: ...

    async def submit(self, target: Any, item: Any, **options: Unpack[SubmitOptions]) -> Handle[Any]:
        """Store one item and return its handle, like ``Handler.submit``.

        ``target``: a handler, its function, or the name of a batch. A handler's batch is created if it does not exist.
        Raises what ``Handler.submit`` raises, and BatchNotFound for another target whose batch does not exist.
        """
        return (await self._submit(_target(target), [item], options, caller="submit"))[0]

    @overload
    async def submit_many(
        self, target: Handler[T, R], items: Iterable[T], **options: Unpack[SubmitOptions]
    ) -> list[Handle[R]]: ...
    @overload
    async def submit_many(self, target: Any, items: Iterable[Any], **options: Unpack[SubmitOptions]) -> list[Handle[Any]]: ...

    async def submit_many(self, target: Any, items: Iterable[Any], **options: Unpack[SubmitOptions]) -> list[Handle[Any]]:
        """Store items in one transaction and return their handles in the same order, like ``Handler.submit_many``."""
        return await self._submit(_target(target), checked_items("submit_many", items), options, caller="submit_many")

    @overload
    async def handle(self, target: Handler[T, R], key: Key) -> Handle[R]: ...
    @overload
    async def handle(self, target: Any, key: Key) -> Handle[Any]: ...

    async def handle(self, target: Any, key: Key) -> Handle[Any]:
        """Return the handle of an item that any process submitted earlier.

        A handler's batch is created if it does not exist. Raises BatchNotFound, ItemNotFound, StoreClosed.
        """
        to = _target(target)
        handle: Handle[Any] = Handle(self._submitter, to.batch, await self._batch_id(to), given_key(key, key), to.results)
        await handle.status()
        return handle

    async def _submit(self, target: _Target, items: Iterable[Any], options: SubmitOptions, *, caller: str) -> list[Handle[Any]]:
        entries = new_items_of(target.encoder, items, self._clock, options, caller=caller)
        on_change = on_known_key(options, target.on_change)
        batch_id = await self._batch_id(target)
        if not entries:
            return []
        added = await self._submitter.add(batch_id, entries, on_change=on_change)
        return [
            Handle(self._submitter, target.batch, batch_id, entry.id, target.results, created=created)
            for entry, created in zip(entries, is_created(entries, added), strict=True)
        ]

    async def _batch_id(self, target: _Target) -> int:
        batch_ids = self._submitter.access.get().batch_ids
        name = target.batch
        if name not in batch_ids:
            batch = await self._store.find_batch(name)
            handler = target.handler
            if batch is None and handler is not None:
                batch = await self._store.open_batch(name, handler.name, handler.batch_options)
            if batch is None:
                names = await self._store.batch_names()
                raise no_such_batch(self._store.location, name, names, advice=_HOW_BATCHES_ARE_CREATED)
            batch_ids[name] = batch.batch_id
        return batch_ids[name]

    def _closed_reason(self) -> str:
        return f"{self!r} is not open; use `async with client:` or `await client.open()` first"


def submitter_of(client: Client) -> ItemSubmitter:
    """Return the submitter of *client*, for ``otel``."""
    return client._submitter  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - package-internal access


def _target(target: Any) -> _Target:
    if isinstance(target, Handler):
        handler = cast("Handler[Any, Any]", target)  # type: ignore[redundant-cast]
        return _Target(handler.batch, handler.encoder, handler.results, handler.options.on_change, handler)
    if isinstance(target, str):
        return _named_target(target)
    if not callable(target):
        raise ConfigurationError(f"{target!r} is not a target; give a handler, a function or the name of a batch")
    items, results = codecs_of(target, has_setup=True)
    return _Target(default_batch(target), Encoder(items, None), results, "error", None)


@lru_cache
def _named_target(batch: str) -> _Target:
    codec: Codec[Any] = Codec(owner=f"the batch {batch!r}")
    return _Target(batch, Encoder(codec, None), codec, "error", None)
