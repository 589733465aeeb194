"""Dry run: ``plan_batch()`` predicts the effect of ``run_batch()`` with the same arguments, and changes nothing.

``check_batch()`` refuses a run without items that has no batch to continue with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar, Unpack

import anyio.to_thread

from asyncrunner.backends import (
    MEMORY,
    can_create,
    full_location,
    input_keys,
    open_admin,
    shown_location,
    similar_locations,
)
from asyncrunner.batch.source.reader import SourceReader
from asyncrunner.domain.item import Counts, NewItem, Status
from asyncrunner.domain.options import HandlerOptions, RunKeywords, RunOptions
from asyncrunner.errors import ConfigurationError, StoreError, StoreNotFound
from asyncrunner.serialization.codec import codecs_of
from asyncrunner.store.admin_protocol import AdminStore, InputKeys
from asyncrunner.store.batches import Added
from asyncrunner.store.copying.incomplete import incomplete_copy
from asyncrunner.store.snapshot import KnownItem, TurnRow
from asyncrunner.submission.encoder import Encoder
from asyncrunner.submission.naming import default_batch
from asyncrunner.text.plain_form import PlainForm
from asyncrunner.text.suggestions import closest, no_such_batch

T = TypeVar("T")
_MAX_RATE: Final = 20_000.0  # items per second that the runner reaches with no-op handlers


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(PlainForm):
    """The outcome of a dry run, as numbers of items.

    ``given``: items in the input; ``duplicates`` of them have the key of an earlier item. Every other item is counted
    by the state of its key in the file: ``new``, ``completed``, ``failed``, ``cancelled``, ``pending`` or
    ``processing``. ``changed``: items whose key is in the file, or earlier in the input, with a different payload.
    ``missing``: items in the file that are not in the input. ``other_version``: completed items of the whole batch, in the
    input or not, that the run would run again because another version completed them.

    ``retried``: failed items that the run would retry, in the input or not. ``leftovers``: items that are not in the input
    and are unfinished, or become it because another version completed them. ``to_run``: all items that the run would run,
    including these leftovers. With ``leftovers="leave"`` only items of the input are retried, and leftovers are not run.
    ``conflict``: the run would stop with KeyConflict at the first changed item. ``seconds``: the estimated duration of the
    run, computed from the newest attempts. ``seconds_per_attempt``: the average duration of the newest attempts. Both are
    None if the batch has no attempts yet; ``seconds`` is 0 if no item would run.
    """

    batch: str
    db: str
    given: int
    duplicates: int
    new: int
    completed: int
    failed: int
    cancelled: int
    pending: int
    processing: int
    changed: int
    missing: int
    retried: int
    leftovers: int
    to_run: int
    conflict: bool
    seconds: float | None
    seconds_per_attempt: float | None
    other_version: int = 0


async def plan_batch(
    items: Iterable[T] | AsyncIterable[T] | None, handler: Callable[..., Any], **options: Unpack[RunKeywords]
) -> Plan:
    """Predict the effect of ``run_batch`` with the same arguments, without running, writing or creating anything.

    The whole input is read, in constant memory: its keys go to a temporary file of about 50 bytes per item. While
    workers change the file, the numbers are from slightly different times. Raises ConfigurationError for invalid
    options, ItemError for an item that cannot be stored, StoreError if the file cannot be read, StoreNotFound or
    BatchNotFound if no items are given and there is no batch to continue with, and any error of the source.
    """
    run_options = RunOptions.of("plan_batch", options)
    run_options.check_items(items)
    if items is None:
        await check_batch(run_options.runner.db, run_options.handler.batch or default_batch(handler))
    return await plan_of(items, handler, run_options)


async def plan_of(items: Iterable[Any] | AsyncIterable[Any] | None, handler: Callable[..., Any], options: RunOptions) -> Plan:
    """Compute the plan of ``plan_batch`` from RunOptions instead of keywords."""
    batch = options.handler.batch or default_batch(handler)
    codec, _ = codecs_of(handler, has_setup=options.runner.setup is not None, nan=options.handler.nan)
    stored = await _StoredBatch.open(options.runner.db, batch)
    seen = input_keys()
    try:
        counter = _InputCounter(options, stored, seen)
        if items is not None:
            source = SourceReader(items, Encoder(codec, options.handler.key), counter.add)
            await source.run()
        facts = _BatchFacts(Counts(), 0, 0, None) if stored is None else await stored.facts(options.handler)
        return counter.plan(batch, facts)
    finally:
        seen.close()
        if stored is not None:
            await stored.close()


async def check_batch(
    location: str, batch: str, *, option: Callable[[str], str] = "{}=".format, quote: Callable[[str], str] = repr
) -> None:
    """Check that a run without items has a batch to continue with: a mistyped name must not make a new, empty batch.

    *option* and *quote* return the name of an option and its value as the caller writes them. Raises StoreNotFound,
    BatchNotFound or ConfigurationError, with similar names, if the store has no such batch. A store that cannot be read is
    no error here: the run reports that when it opens the store, and upgrades an older one.
    """
    if location == MEMORY:
        raise ConfigurationError(
            f"a store in memory has no items to continue with; give items, or a file or server with {option('db').strip()}"
        )
    store = open_admin(location)
    try:
        await store.open()
    except StoreNotFound as error:
        folder, slash, name = location.rpartition("/")
        similar = closest(name, similar_locations(location))
        hint = "" if similar is None else f"; did you mean {option('db')}{quote(f'{folder}{slash}{similar}')}?"
        raise StoreNotFound(
            f"no items are given, and there is no store at {shown_location(full_location(location))} to continue with"
            f"{hint or '.'} Give the items of a new batch, or the location of an existing batch with {option('db').strip()}"
        ) from error
    except StoreError:
        return
    try:
        names = [row.name for row in await store.batches()]
    except StoreError:
        return
    finally:
        await store.close()
    if batch not in names:
        raise no_such_batch(
            f"no items are given, and {shown_location(full_location(location))}",
            batch,
            names,
            advice="Give the items of a new batch, or the name of an existing batch with "
            f"{option('batch').strip()} (was the handler renamed?)",
        )


class _MeasuredPace(NamedTuple):
    """Averages of the newest turns: the seconds of an attempt, and the attempts of an item."""

    seconds: float
    attempts: float


class _BatchFacts(NamedTuple):
    """A summary of a batch.

    ``reopenable``: failed items with attempts left and no permanent error. ``other_version``: completed items that run again,
    because another version completed them. ``pace``: None if the batch has no attempts
    yet.
    """

    counts: Counts
    reopenable: int
    other_version: int
    pace: _MeasuredPace | None


class _StoredBatch:
    """A batch of an existing store, which a dry run only reads."""

    def __init__(self, store: AdminStore, batch_id: int) -> None:
        self._store = store
        self._batch_id = batch_id

    @classmethod
    async def open(cls, location: str, name: str) -> _StoredBatch | None:
        """Return the batch, or None if a run would create the store or the batch, so that every item is new."""
        if location == MEMORY:
            return None
        store = open_admin(location)
        try:
            await store.open()
        except StoreNotFound:
            if can_create(location):
                return None
            raise
        try:
            rows = [row for row in await store.batches() if row.name == name]
        except BaseException:
            await store.close()
            raise
        if not rows:
            await store.close()
            return None
        if rows[0].copied_from is not None:
            await store.close()
            raise incomplete_copy(shown_location(location), name, rows[0].copied_from)
        return cls(store, rows[0].batch_id)

    async def close(self) -> None:
        await self._store.close()

    async def known(self, entries: Sequence[NewItem], version: str | None) -> Mapping[str, KnownItem]:
        return await self._store.match_input(self._batch_id, entries, version=version)

    async def facts(self, options: HandlerOptions) -> _BatchFacts:
        snapshot = await self._store.snapshot([self._batch_id])
        if not snapshot.batches:  # deleted meanwhile
            return _BatchFacts(Counts(), 0, 0, None)
        reopenable = await self._store.count_reopenable(self._batch_id, max_attempts=options.max_attempts)
        other = 0 if options.version is None else await self._store.count_other_version(self._batch_id, options.version)
        return _BatchFacts(snapshot.batches[0].counts, reopenable, other, _pace(snapshot.batches[0].turns))


def _pace(turns: Sequence[TurnRow]) -> _MeasuredPace | None:
    seconds = [duration for turn in turns for durations in turn.durations.values() for duration in durations]
    finished = sum(turn.completed + turn.failed for turn in turns)
    if not seconds or not finished:
        return None
    attempts = finished + sum(turn.retried for turn in turns)
    return _MeasuredPace(sum(seconds) / len(seconds), attempts / finished)


class _InputCounter:
    """A counter that takes the input's chunks in place of the store and only counts the items."""

    def __init__(self, options: RunOptions, stored: _StoredBatch | None, seen: InputKeys) -> None:
        self._options = options
        self._stored = stored
        self._seen = seen
        self._given = self._distinct = self._changed = self._rerunnable = self._reopenable = self._other_version = 0
        self._by_status: Counter[Status | None] = Counter()  # None: new

    async def add(self, chunk: list[NewItem]) -> Added:
        first, changed = await anyio.to_thread.run_sync(self._seen.first_ones, chunk)
        known: Mapping[str, KnownItem] = (
            {} if self._stored is None else await self._stored.known(first, self._options.handler.version)
        )
        self._given += len(chunk)
        self._distinct += len(first)
        self._changed += len(changed)
        for entry in first:
            stored_item = known.get(entry.id)
            self._by_status[None if stored_item is None else stored_item.status] += 1
            if stored_item is not None and stored_item.status is Status.FAILED:
                self._reopenable += not self._would_stay_finished(stored_item)
            if stored_item is not None and stored_item.status is Status.COMPLETED:
                self._other_version += stored_item.is_other_version
            if stored_item is not None and stored_item.is_changed:
                self._changed += 1
                self._rerunnable += self._would_stay_finished(stored_item)
        return Added(len(first) - len(known), len(known), 0, ())

    def _would_stay_finished(self, item: KnownItem) -> bool:
        """Return whether *item* is finished and the run would not run it again if its payload were unchanged."""
        if item.status is Status.FAILED:
            return not self._options.retry_failed and (item.is_permanent or item.attempts >= self._options.handler.max_attempts)
        return item.status in (Status.COMPLETED, Status.CANCELLED) and not item.is_other_version

    def plan(self, batch: str, facts: _BatchFacts) -> Plan:
        options, by_status = self._options, self._by_status
        unfinished = by_status[Status.PENDING] + by_status[Status.PROCESSING]
        leftovers = max(0, facts.counts.unfinished - unfinished) + max(0, facts.other_version - self._other_version)
        rerun = self._rerunnable if options.handler.on_change == "rerun" else 0
        to_run = by_status[None] + unfinished + self._other_version + rerun
        if options.leftovers == "leave":
            retried, other_version = self._reopenable, self._other_version
        else:
            retried = facts.counts.failed if options.retry_failed else facts.reopenable
            other_version = facts.other_version
            to_run += leftovers
        to_run += retried
        return Plan(
            batch=batch,
            db=shown_location(options.runner.db),
            given=self._given,
            duplicates=self._given - self._distinct,
            new=by_status[None],
            completed=by_status[Status.COMPLETED],
            failed=by_status[Status.FAILED],
            cancelled=by_status[Status.CANCELLED],
            pending=by_status[Status.PENDING],
            processing=by_status[Status.PROCESSING],
            changed=self._changed,
            missing=max(0, facts.counts.total - (self._distinct - by_status[None])),
            retried=retried,
            leftovers=leftovers,
            to_run=to_run,
            conflict=self._changed > 0 and options.handler.on_change == "error",
            seconds=_seconds(to_run, facts, options),
            seconds_per_attempt=None if facts.pace is None else facts.pace.seconds,
            other_version=other_version,
        )


def _seconds(to_run: int, facts: _BatchFacts, options: RunOptions) -> float | None:
    if to_run == 0:
        return 0.0
    if facts.pace is None:
        return None
    attempts = to_run * facts.pace.attempts
    busy = attempts * facts.pace.seconds / min(options.runner.concurrency, to_run)
    rate_limited = 0.0 if options.handler.rate is None else attempts / options.handler.rate.per_second
    return max(busy, rate_limited, attempts / _MAX_RATE)
