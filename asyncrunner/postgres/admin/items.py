"""Read items for operators, as functions of a connection: find them, search them, export them, show one.

Each function is one short read, however large the store is, except that find() and export_page() may scan the table of items
if few items match.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asyncrunner.domain.item import Status, Suspicion, suspicion_of
from asyncrunner.postgres import sql
from asyncrunner.postgres.admin.queries import one_moment
from asyncrunner.postgres.reader import BEFORE_EVERY_SEQ, is_text
from asyncrunner.store.admin_protocol import Filter, ItemSet, Matches
from asyncrunner.store.items import Cursor, Page
from asyncrunner.store.rules.columns import options_in
from asyncrunner.store.rules.patterns import like
from asyncrunner.store.snapshot import FailedAttempt, ItemRecord, ItemSummary, StoredItem
from asyncrunner.text.suggestions import variants
from asyncrunner.text.timestamps import to_text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from asyncpg import Connection, Record

_MAX_FAILURES: Final = 100  # failures that are read of one item
_MAX_NEIGHBOURS: Final = 200  # ids that are read on each side of an id
_NEWEST_ITEMS: Final = 10_000  # items among which the newest ids of a batch are found
_EXPORT_PAGE: Final = 1000  # items
_CLOCK_SLACK_SECONDS: Final = 3600.0  # the clock may be set back by this much between two inserts
_SEARCH_WINDOW: Final = 10_000  # items that one search looks at
_SEARCH_SEQS: Final = 1_000_000  # seqs of the store, also of other batches, among which a search finds these items
_SEARCH_PART: Final = 100  # items that one statement of a search looks at
_MAX_SEARCH_BYTES: Final = 100_000_000  # of payloads and results
_MAX_TEXT_BYTES: Final = 2**29  # the server's limit of a text is 2**30
_LAST_SEQ: Final = 2**63 - 1
_TEXTS: Final = ("payload", "rerun_payload", "result", "checkpoint")
_INCOMPLETE: Final = "the result is incomplete: rows of result_pieces were deleted"


# --- lists -----------------------------------------------------------------------------------------------------------


async def find(
    connection: Connection[Record], batch_id: int, criteria: Filter, *, after: str | None, limit: int
) -> Sequence[ItemSummary] | None:
    """Return up to *limit* items behind the item with the id *after* (None: from the first), in the order of *criteria*.

    Returns None if no item has the id *after*.
    """
    async with one_moment(connection):
        rows = await _rows(connection, batch_id, criteria, after=after, limit=limit)
        return None if rows is None else [_summary(row) for row in rows]


async def search(
    connection: Connection[Record], batch_id: int, criteria: Filter, text: str, *, after: str | None, limit: int
) -> Matches | None:
    """Search the newest items that match *criteria* for *text*; see ``AdminStore.search``."""
    async with one_moment(connection):
        newest = criteria._replace(newest=True)
        rows = await _rows(connection, batch_id, newest, after=after, limit=_SEARCH_WINDOW + 1, seqs=_SEARCH_SEQS)
        if rows is None:
            return None
        window = rows[:_SEARCH_WINDOW]
        matching: list[Record] = []
        looked_at = size = 0
        while looked_at < len(window) and len(matching) < limit and size < _MAX_SEARCH_BYTES:
            part = window[looked_at : looked_at + _SEARCH_PART]
            answers = await connection.fetch(sql.admin.SEARCH, [row[0] for row in part], like(text))
            for row, (is_match, length) in zip(part, answers, strict=True):
                looked_at, size = looked_at + 1, size + length
                if is_match:
                    matching.append(row)
                if len(matching) == limit or size >= _MAX_SEARCH_BYTES:
                    break
        last = window[looked_at - 1][1] if looked_at < len(rows) else None
        of = await _count(connection, batch_id, criteria)
        return Matches([_summary(row) for row in matching], looked_at, of, last)


async def _count(connection: Connection[Record], batch_id: int, criteria: Filter) -> int | None:
    """Return the number of items in the state of *criteria*; None if *criteria* exclude some of them."""
    if criteria.error is not None or criteria.before is not None:
        return None
    tally = await connection.fetchrow(sql.reports.TALLY, batch_id)
    assert tally is not None
    return sum(tally) if criteria.status is None else int(tally[criteria.status.value])


def _summary(row: Record) -> ItemSummary:
    return ItemSummary(*row[1:])


async def _rows(
    connection: Connection[Record],
    batch_id: int,
    criteria: Filter,
    *,
    after: str | None,
    limit: int,
    seqs: int | None = None,
) -> Sequence[Record] | None:
    first, last = BEFORE_EVERY_SEQ, _LAST_SEQ
    if after is not None:
        seq: int | None = await _seq_of(connection, batch_id, after)
        if seq is None:
            return None
        first, last = (first, seq - 1) if criteria.newest else (seq + 1, last)
    newest: int = await connection.fetchval(sql.admin.NEWEST_SEQ)
    last = min(last, newest)
    in_walk = criteria.status in (None, Status.COMPLETED)
    if in_walk and criteria.before is not None:
        last = min(last, await _last_arrived_before(connection, criteria.before + _CLOCK_SLACK_SECONDS, newest))
    if seqs is not None:
        first = max(first, last - seqs)
    pattern = None if criteria.error is None else like(criteria.error)
    values = (batch_id, pattern, criteria.error, criteria.before, first, last, limit)
    if in_walk:
        return await connection.fetch(sql.admin.WALK[criteria.newest], *values, criteria.status)
    assert criteria.status is not None
    return await connection.fetch(sql.admin.LIST[criteria.status, criteria.newest], *values)


async def _seq_of(connection: Connection[Record], batch_id: int, key: str) -> int | None:
    seq: int | None = await connection.fetchval(sql.admin.SEQ_OF_ID, batch_id, key) if is_text(key) else None
    return seq


async def _last_arrived_before(connection: Connection[Record], moment: float, newest: int) -> int:
    """Return the ``seq`` of the last item that arrived before *moment*.

    The search is binary, because arrival times grow with ``seq``. An item whose latest change is before *moment* also arrived
    before *moment*, so later items need no check.
    """
    low, high = 0, newest
    while low < high:
        middle = (low + high) // 2
        row = await connection.fetchrow(sql.admin.NEXT_ARRIVAL, middle)
        if row is None or row[1] >= moment:
            high = middle
        else:
            low = row[0]
    return low


async def similar_keys(connection: Connection[Record], batch_id: int, key: str) -> Sequence[str]:
    """Return ids that resemble *key*, an id that does not exist.

    Returns up to 3 ids that differ from *key* by a likely typing error. If no such id exists, returns the neighbours of *key*
    and of its prefixes in the order of ids.
    """
    if not is_text(key):
        return []
    candidates = variants(key)
    existing = {row[1] for row in await connection.fetch(sql.admin.EXISTING_KEYS, batch_id, list(candidates))}
    if existing:
        return [candidate for candidate in candidates if candidate in existing][:3]
    near: dict[str, None] = {}
    prefixes = {key, *(key[: max(1, len(key) - cut)] for cut in (1, 2, 3)), key[: max(1, len(key) // 2)], key[:1]}
    for prefix in sorted(prefixes, key=len, reverse=True):
        for statement in (sql.admin.IDS_FROM, sql.admin.IDS_BEFORE):
            rows = await connection.fetch(statement, batch_id, prefix, _MAX_NEIGHBOURS)
            near.update((neighbour, None) for (neighbour,) in rows)
    return list(near)


async def keys_with(connection: Connection[Record], batch_ids: Sequence[int], prefix: str, limit: int) -> Sequence[str]:
    """Return ids that start with *prefix*, or the newest ids if it is empty."""
    if not is_text(prefix):
        return []
    newest: int = 0 if prefix else await connection.fetchval(sql.admin.NEWEST_SEQ)
    keys: list[str] = []
    for batch_id in batch_ids:
        if prefix:
            rows = await connection.fetch(sql.admin.IDS_FROM, batch_id, prefix, limit)
        else:
            rows = await connection.fetch(sql.admin.NEWEST_IDS, batch_id, newest - _NEWEST_ITEMS, limit)
        keys += [key for (key,) in rows if key.startswith(prefix)]
    return keys


async def batches_with(connection: Connection[Record], key: str) -> Sequence[str]:
    """Return the names of the batches that have an item with that id."""
    if not is_text(key):
        return []
    return [name for (name,) in await connection.fetch(sql.admin.BATCHES_WITH_ID, key)]


# --- one item --------------------------------------------------------------------------------------------------------


class _Start(NamedTuple):
    """The start of a stored text, and the size of the whole text in bytes."""

    text: str
    size: int


async def item(connection: Connection[Record], batch_id: int, key: str, max_bytes: int) -> StoredItem | None:
    """Return an item with its newest 100 failures and the first *max_bytes* of its JSON texts; None if no item has that id."""
    if not is_text(key):
        return None
    async with one_moment(connection):
        row = await connection.fetchrow(sql.admin.ITEM, batch_id, key, min(max_bytes, _MAX_TEXT_BYTES))
        if row is None:
            return None
        batch, options = await _name_and_options(connection, batch_id)
        seq, claim, key, status, attempts, crashes, priority, permanent, suspect, *columns = row[:16]
        put_offs, put_off_at, *sized = row[16:]
        failures = await connection.fetch(sql.admin.FAILURES_OF_ITEM, batch_id, key, _MAX_FAILURES)
        named_failures = [FailedAttempt(batch, *failure) for failure in reversed(failures)]
        flags = (permanent, suspect > 0, suspicion_of(suspect) is Suspicion.ISOLATED)
        times: tuple[str | None, str | None] = (None, None)
        if put_off_at is not None and status in (Status.PENDING, Status.PROCESSING):
            times = (to_text(put_off_at), to_text(put_off_at + options_in(options).throttled_for))
        starts = {
            name: None if size is None else _Start(_cut(text, max_bytes), size)
            for name, size, text in zip(_TEXTS, sized[::2], sized[1::2], strict=True)
        }
        result = starts["result"]
        if result is not None and not result.size:
            starts["result"] = await _start_of_pieces(connection, seq, claim, max_bytes)
        texts = [None if start is None else start.text for start in starts.values()]
        cut = {name: start.size for name, start in starts.items() if start is not None and start.size > max_bytes}
        numbers = (attempts, crashes, priority)
        values: tuple[Any, ...] = (batch, key, status, *numbers, *flags, *columns, put_offs, *times, *texts, named_failures, cut)
        return StoredItem(*values)


def _cut(text: str, max_bytes: int) -> str:
    """Return as much of *text* as has up to *max_bytes* bytes, without a part of a character."""
    return text.encode()[:max_bytes].decode(errors="ignore")


async def _start_of_pieces(connection: Connection[Record], seq: int, claim: int, max_bytes: int) -> _Start:
    """Return the start of a result that is stored in pieces; a text in its place reports missing pieces."""
    rows = await connection.fetch(sql.admin.PIECES, seq, claim, min(max_bytes, _MAX_TEXT_BYTES))
    if not rows or rows[-1][0] != len(rows) - 1:
        return _Start(_INCOMPLETE, len(_INCOMPLETE))
    return _Start(_cut("".join(text for _, _, text in rows), max_bytes), sum(size for _, size, _ in rows))


async def _name_and_options(connection: Connection[Record], batch_id: int) -> tuple[str, str]:
    row = await connection.fetchrow(sql.admin.NAME_AND_OPTIONS, batch_id)
    return ("", "") if row is None else (row[0], row[1])  # a deleted batch has no items


# --- exports ---------------------------------------------------------------------------------------------------------


async def export_page(
    connection: Connection[Record], batch_id: int, statuses: Collection[Status] | None, cursor: Cursor | None
) -> Page[ItemRecord]:
    """Return the next page of items in input order; the cursor is the ``seq`` of the last item of the previous page."""
    batch, _ = await _name_and_options(connection, batch_id)
    states = None if statuses is None else list(statuses)
    after = BEFORE_EVERY_SEQ if cursor is None else int(cursor)
    rows = await connection.fetch(sql.admin.EXPORT, after, batch_id, states, _EXPORT_PAGE)
    end = Cursor(str(rows[-1][0])) if rows else None  # the walk ends with an empty page, because items may be added meanwhile
    return Page([ItemRecord(batch, *row[1:]) for row in rows], end)


async def export_selected(connection: Connection[Record], batch_id: int, items: ItemSet) -> Sequence[ItemRecord]:
    """Return the items of the set, in its order, without those that were deleted or left the selected states."""
    batch, _ = await _name_and_options(connection, batch_id)
    rows = await connection.fetch(sql.admin.EXPORT_SELECTED, items.numbers.tolist(), _states(items))
    return [ItemRecord(batch, *row[1:]) for row in rows]


async def ids_of(connection: Connection[Record], items: ItemSet) -> Sequence[str]:
    """Return the ids of the items of the set, in its order, without those that were deleted or left the selected states."""
    rows = await connection.fetch(sql.admin.IDS_OF_SEQS, items.numbers.tolist(), _states(items))
    return [key for (key,) in rows]


def _states(items: ItemSet) -> Sequence[Status] | None:
    return None if items.selection.keys is not None else list(items.selection.statuses)
