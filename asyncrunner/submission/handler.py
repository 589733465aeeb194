"""Submit items to a handler that is registered with a runner."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, TypedDict, TypeVar, Unpack, get_args, overload

from asyncrunner.backends import AsyncConnection, Connection
from asyncrunner.domain.item import IfExists
from asyncrunner.domain.options import Key
from asyncrunner.errors import ConfigurationError
from asyncrunner.serialization.codec import codecs_of
from asyncrunner.serialization.keys import given_key, new_key
from asyncrunner.serialization.signature import setup_parameter
from asyncrunner.store.batches import BatchOptions
from asyncrunner.submission.encoder import Encoder, due_at
from asyncrunner.submission.handle import Handle
from asyncrunner.submission.naming import default_batch, handler_name
from asyncrunner.submission.submitter import ItemSubmitter
from asyncrunner.text.suggestions import unexpected_option
from asyncrunner.text.validation import checked_choice, checked_items, checked_priority

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import NewItem, OnChange, OnKnownKey
    from asyncrunner.domain.options import HandlerOptions
    from asyncrunner.store.batches import Added
    from asyncrunner.store.protocols import TransactionalInsert

T = TypeVar("T")
R = TypeVar("R")


class WhenOptions(TypedDict, total=False):
    """The options that decide when an item runs, and whether it runs if its key exists.

    ``delay`` is in seconds, ``run_at`` is a datetime with a time zone, and a higher ``priority`` runs first.
    ``if_exists`` is the action for an existing key, with any payload: "keep" keeps the stored item, "error" raises
    KeyConflict, "rerun" stores the new payload and runs the item again, also if it is done. An item that is running runs
    once more with the new payload after its attempt, whose outcome is dropped. None: the handler's ``on_change``.
    """

    delay: float | None
    run_at: datetime | None
    priority: int
    if_exists: IfExists | None


class SubmitOptions(WhenOptions, total=False):
    """``WhenOptions`` and ``key``, which identifies the item.

    A given key is text, and an int stands for its decimal text: ``key=7`` and ``key="7"`` are one key.
    The default key is the one that the handler's ``key=`` option yields. Without both, every submit is a new job: its key
    is a random UUID (version 7), so keys sort by the time of the submit.
    """

    key: Key | None


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
    key = options.get("key")
    if key is not None or encoder.has_key:
        return [encoder.entry(item, key=key, priority=priority, due_at=at) for item in items]
    now = clock.now()
    return [encoder.entry(item, key=new_key(now), priority=priority, due_at=at) for item in items]


def on_known_key(options: SubmitOptions | WhenOptions, on_change: OnChange) -> OnKnownKey:
    """Return the store's action for a key that exists. Raises ConfigurationError for another ``if_exists``."""
    if_exists = options.get("if_exists")
    if if_exists is None:
        return on_change
    checked_choice("if_exists", if_exists, get_args(IfExists))
    return _ON_KNOWN_KEY[if_exists]


def is_created(entries: Sequence[NewItem], added: Added) -> list[bool]:
    """Return for each entry whether it is a new item. Of two entries with one key, only the first can be new."""
    if added.new == len(entries):
        return [True] * len(entries)
    seen = set(added.known)
    created: list[bool] = []
    for entry in entries:
        created.append(entry.id not in seen)
        seen.add(entry.id)
    return created


_ON_KNOWN_KEY: Final[dict[IfExists, OnKnownKey]] = {"keep": "keep", "error": "refuse", "rerun": "run again"}


class Handler(Generic[T, R]):
    """A handler that is registered with a runner.

    A call of the handler calls its function directly, without the runner.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        options: HandlerOptions,
        submitter: ItemSubmitter,
        open_inserter: Callable[[], TransactionalInsert],
        runner: str,
        *,
        has_setup: bool = False,
    ) -> None:
        """Take *open_inserter*, which returns a TransactionalInsert, and *runner*, the runner's name in messages.

        *has_setup*: whether the runner has a ``setup``, whose value a handler may take as its second argument.
        """
        self._submitter = submitter
        self._open_inserter = open_inserter
        self._runner = runner
        self._function = function
        self.options = options
        self.batch = options.batch or default_batch(function)
        self.items, self.results = codecs_of(function, has_setup=has_setup, nan=options.nan)
        self.setup_parameter = setup_parameter(function) if has_setup else None
        self.encoder = Encoder(self.items, options.key)
        self.batch_options = BatchOptions.of(options.max_attempts, options.retry)
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__doc__ = function.__doc__

    @property
    def function(self) -> Callable[..., Any]:
        """The function that the runner calls with each item, and with the value of ``setup`` if it takes that."""
        return self._function

    @property
    def name(self) -> str:
        """The name of the function, as ``module:qualified.name``."""
        return handler_name(self._function)

    def __call__(self, item: T, *setup_value: Any) -> Any:
        return self._function(item, *setup_value)

    def __repr__(self) -> str:
        return f"<Handler {self.batch!r} on {self._runner}>"

    async def submit(self, item: T, **options: Unpack[SubmitOptions]) -> Handle[R]:
        """Store one item and return its handle. The item is durable when this returns.

        Without a delay, the item runs soon after. ``delay``: the item does not start before that many seconds from now.
        ``run_at``: the item does not start before that datetime, which must have a time zone. Both survive restarts.
        ``priority``: a higher number runs first. Without ``key``, and without the handler's ``key=``, the item is a new job.
        Submitting an existing key with the same payload adds nothing and returns the handle of the existing item, with
        ``created`` False, unless ``if_exists`` is given. If the caller is cancelled, the item may or may not be stored.
        Raises ItemNotStorable, InvalidKey, KeyConflict, ConfigurationError; StoreClosed unless the runner is started.
        """
        entries = new_items_of(self.encoder, [item], self._submitter.access.clock, options, caller="submit")
        return (await self._add(entries, options))[0]

    async def submit_many(self, items: Iterable[T], **options: Unpack[WhenOptions]) -> list[Handle[R]]:
        """Store items in one transaction, all or none, and return their handles in the same order.

        The rest is as in ``submit``. For more than about 10,000 items use ``run_batch``, which reads its source in chunks
        with constant memory.
        """
        items = checked_items("submit_many", items)
        entries = new_items_of(self.encoder, items, self._submitter.access.clock, options, caller="submit_many")
        return await self._add(entries, options)

    @overload
    def submit_in(self, connection: Connection, item: T, **options: Unpack[SubmitOptions]) -> Handle[R]: ...
    @overload
    def submit_in(self, connection: AsyncConnection, item: T, **options: Unpack[SubmitOptions]) -> Awaitable[Handle[R]]: ...

    def submit_in(
        self, connection: Connection | AsyncConnection, item: T, **options: Unpack[SubmitOptions]
    ) -> Handle[R] | Awaitable[Handle[R]]:
        """Store one item in the caller's own transaction: the item exists if and only if that transaction commits.

        ``connection`` must be open on the runner's file or database, which may also hold the caller's tables. For a file it
        is of sqlite3, aiosqlite or Django; for a server, of asyncpg, psycopg, SQLAlchemy or Django. The call must be awaited
        if the connection's own calls are awaited. Django's ``connection`` must be inside ``transaction.atomic()``. The call
        commits nothing, and the runner need not be started. Keep such transactions short: no other connection can write to
        a file while one is open. Raises the exceptions of ``submit`` except StoreClosed, and also StoreUnavailable,
        NotAStore and SchemaTooNew; any exception leaves the caller's transaction as it was before the call.
        """
        entries = new_items_of(self.encoder, [item], self._submitter.access.clock, options, caller="submit_in")
        on_change = on_known_key(options, self.options.on_change)
        with self._submitter.surrounded(self.batch, entries) as surrounded:
            inserted = self._open_inserter().insert_in(
                connection, self.batch, self.name, self.batch_options, surrounded, on_change=on_change
            )
        if isinstance(inserted, tuple):
            return self._handles(inserted[0], entries, inserted[1])[0]
        return self._handle_later(inserted, entries)

    async def _handle_later(self, inserting: Awaitable[tuple[int, Added]], entries: Sequence[NewItem]) -> Handle[R]:
        batch_id, added = await inserting
        return self._handles(batch_id, entries, added)[0]

    def _handles(self, batch_id: int, entries: Sequence[NewItem], added: Added) -> list[Handle[R]]:
        return [
            Handle(self._submitter, self.batch, batch_id, entry.id, self.results, created=created)
            for entry, created in zip(entries, is_created(entries, added), strict=True)
        ]

    async def handle(self, key: Key) -> Handle[R]:
        """Return the handle of an item that this or another process submitted earlier.

        Raises ItemNotFound, StoreClosed.
        """
        handle: Handle[R] = Handle(
            self._submitter, self.batch, self._submitter.batch_id(self.batch), given_key(key, key), self.results
        )
        await handle.status()
        return handle

    async def _add(self, entries: Sequence[NewItem], options: SubmitOptions | WhenOptions) -> list[Handle[R]]:
        batch_id = self._submitter.batch_id(self.batch)
        on_change = on_known_key(options, self.options.on_change)
        if not entries:
            return []
        added = await self._submitter.add(batch_id, entries, on_change=on_change)
        return self._handles(batch_id, entries, added)
