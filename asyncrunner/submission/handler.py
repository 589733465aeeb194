"""Submit items to a handler that is registered with a runner."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, Unpack, overload

from asyncrunner.backends import AsyncConnection, Connection
from asyncrunner.errors import ConfigurationError
from asyncrunner.serialization.codec import codecs_of
from asyncrunner.store.batches import BatchOptions
from asyncrunner.submission.encoder import Encoder, due_at
from asyncrunner.submission.handle import Handle
from asyncrunner.submission.naming import default_batch, handler_name
from asyncrunner.submission.submitter import ItemSubmitter
from asyncrunner.text.suggestions import unexpected_option
from asyncrunner.text.validation import checked_items, checked_priority

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import NewItem
    from asyncrunner.domain.options import HandlerOptions
    from asyncrunner.store.protocols import TransactionalInsert

T = TypeVar("T")
R = TypeVar("R")


class WhenOptions(TypedDict, total=False):
    """The options that decide when an item runs.

    ``delay`` is in seconds, ``run_at`` is a datetime with a time zone, and a higher ``priority`` runs first.
    """

    delay: float | None
    run_at: datetime | None
    priority: int


class SubmitOptions(WhenOptions, total=False):
    """``WhenOptions`` and ``key``, which identifies the item.

    The default key is the one that the handler's ``key=`` option yields, otherwise the item itself if it is a short str
    or an int, otherwise a digest of the item.
    """

    key: str | int | None


def new_items_of(
    encoder: Encoder, items: Iterable[Any], clock: Clock, options: SubmitOptions | WhenOptions, *, caller: str
) -> list[NewItem]:
    """Convert items to entries for the method *caller*.

    Raises ConfigurationError, ItemError; TypeError for an unknown option.
    """
    for name in options:
        if name not in SubmitOptions.__annotations__:
            raise unexpected_option(caller, name, list(SubmitOptions.__annotations__))
    if caller == "submit_many" and "key" in options:
        raise ConfigurationError("submit_many() takes no key=: a key identifies one item; give the handler a key= function")
    at = due_at(options.get("delay"), options.get("run_at"), clock)
    priority = checked_priority(options.get("priority", 0))
    return [encoder.entry(item, key=options.get("key"), priority=priority, due_at=at) for item in items]


class Handler(Generic[T, R]):
    """A handler that is registered with a runner.

    A call of the handler calls its function directly, without the runner.
    """

    def __init__(
        self,
        function: Callable[[T], Any],
        options: HandlerOptions,
        submitter: ItemSubmitter,
        open_inserter: Callable[[], TransactionalInsert],
        runner: str,
    ) -> None:
        """Take *open_inserter*, which returns a TransactionalInsert, and *runner*, the runner's name in messages."""
        self._submitter = submitter
        self._open_inserter = open_inserter
        self._runner = runner
        self._function = function
        self.options = options
        self.batch = options.batch or default_batch(function)
        self.items, self.results = codecs_of(function)
        self.encoder = Encoder(self.items, options.key)
        self.batch_options = BatchOptions.of(options.max_attempts, options.retry)
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__doc__ = function.__doc__

    @property
    def function(self) -> Callable[[T], Any]:
        """The function that the runner calls with each item."""
        return self._function

    @property
    def name(self) -> str:
        """The name of the function, as ``module:qualified.name``."""
        return handler_name(self._function)

    def __call__(self, item: T) -> Any:
        return self._function(item)

    def __repr__(self) -> str:
        return f"<Handler {self.batch!r} on {self._runner}>"

    async def submit(self, item: T, **options: Unpack[SubmitOptions]) -> Handle[R]:
        """Store one item and return its handle. The item is durable when this returns.

        Without a delay, the item runs soon after. ``delay``: the item does not start before that many seconds from now.
        ``run_at``: the item does not start before that datetime, which must have a time zone. Both survive restarts.
        ``priority``: a higher number runs first. Submitting an existing key with the same payload adds nothing and
        returns the handle of the existing item. If the caller is cancelled, the item may or may not be stored. Raises
        ItemNotStorable, InvalidKey, KeyConflict, ConfigurationError; StoreClosed unless the runner is started.
        """
        entries = new_items_of(self.encoder, [item], self._submitter.access.clock, options, caller="submit")
        return (await self._add(entries))[0]

    async def submit_many(self, items: Iterable[T], **options: Unpack[WhenOptions]) -> list[Handle[R]]:
        """Store items in one transaction, all or none, and return their handles in the same order.

        The rest is as in ``submit``. For more than about 10,000 items use ``run_batch``, which reads its source in chunks
        with constant memory.
        """
        items = checked_items("submit_many", items)
        entries = new_items_of(self.encoder, items, self._submitter.access.clock, options, caller="submit_many")
        return await self._add(entries)

    @overload
    def submit_in(self, connection: Connection, item: T, **options: Unpack[SubmitOptions]) -> Handle[R]: ...
    @overload
    def submit_in(self, connection: AsyncConnection, item: T, **options: Unpack[SubmitOptions]) -> Awaitable[Handle[R]]: ...

    def submit_in(
        self, connection: Connection | AsyncConnection, item: T, **options: Unpack[SubmitOptions]
    ) -> Handle[R] | Awaitable[Handle[R]]:
        """Store one item in the caller's own transaction: the item exists if and only if that transaction commits.

        ``connection`` must be open on the runner's file, which may also hold the caller's tables. With an ``aiosqlite``
        connection the call must be awaited. The call commits nothing, and the runner need not be started. Keep such
        transactions short: no other connection can write while one is open. Raises the exceptions of ``submit`` except
        StoreClosed, and also StoreUnavailable and NotAStore; any exception leaves the caller's transaction as it was
        before the call.
        """
        entries = new_items_of(self.encoder, [item], self._submitter.access.clock, options, caller="submit_in")
        batch_id = self._open_inserter().insert_in(
            connection,
            self.batch,
            self.name,
            self.batch_options,
            entries,
            on_change=self.options.on_change,
        )
        return self._handle_of(batch_id, entries[0]) if isinstance(batch_id, int) else self._handle_later(batch_id, entries[0])

    async def _handle_later(self, batch_id: Awaitable[int], entry: NewItem) -> Handle[R]:
        return self._handle_of(await batch_id, entry)

    def _handle_of(self, batch_id: int, entry: NewItem) -> Handle[R]:
        return Handle(self._submitter, self.batch, batch_id, entry.id, self.results)

    async def handle(self, key: str | int) -> Handle[R]:
        """Return the handle of an item that this or another process submitted earlier.

        Raises ItemNotFound, StoreClosed.
        """
        handle: Handle[R] = Handle(self._submitter, self.batch, self._submitter.batch_id(self.batch), str(key), self.results)
        await handle.status()
        return handle

    async def _add(self, entries: Sequence[NewItem]) -> list[Handle[R]]:
        batch_id = self._submitter.batch_id(self.batch)
        if entries:
            await self._submitter.add(batch_id, entries, on_change=self.options.on_change)
        return [self._handle_of(batch_id, entry) for entry in entries]
