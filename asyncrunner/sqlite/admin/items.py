"""Read items for operators, as functions of a reader's connection: find them, search them, export them, show one.

Each function is one short read, however large the file is, except that find() and export_page() may scan the table of items
if few items match.
"""

from __future__ import annotations

import codecs
import math
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from asyncrunner.domain.item import Status, Suspicion, suspicion_of
from asyncrunner.sqlite import queries, sql
from asyncrunner.sqlite.admin.queries import read_transaction
from asyncrunner.sqlite.transitions import known_keys
from asyncrunner.store.admin_protocol import Filter, ItemSet, Matches
from asyncrunner.store.items import Cursor, Page
from asyncrunner.store.rules.patterns import like
from asyncrunner.store.snapshot import FailedAttempt, ItemRecord, ItemSummary, StoredItem
from asyncrunner.text.suggestions import variants
from asyncrunner.text.timestamps import to_text

if TYPE_CHECKING:
    from array import array
    from collections.abc import Collection

_MAX_FAILURES: Final = 100  # failures that are read of one item
_MAX_NEIGHBOURS: Final = 200  # ids that are read on each side of an id
_NEWEST_ITEMS: Final = 10_000  # items among which the newest ids of a batch are found
_EXPORT_PAGE: Final = 1000  # items
_CLOCK_SLACK_SECONDS: Final = 3600.0  # the clock may be set back by this much between two inserts
_MAX_START_CHARACTERS: Final = 200  # of a payload in a list of items
_NEAR: Final = 20_000  # rows next to the beginning of a list that are looked at before an index is
_SEARCH_WINDOW: Final = 10_000  # items that one search looks at
_SEARCH_ROWS: Final = 1_000_000  # rows of the file, also of other batches, among which a search finds these items
_SEARCH_PART: Final = 100  # items that one statement of a search looks at
_MAX_SEARCH_BYTES: Final = 100_000_000  # of payloads and results; LIKE reads some hundred megabytes per second
_TEXTS: Final = ("payload", "rerun_payload", "result", "checkpoint")
_INCOMPLETE: Final = "the result is incomplete: rows of result_pieces were deleted"


# --- lists -----------------------------------------------------------------------------------------------------------


def find(
    connection: sqlite3.Connection, batch_id: int, criteria: Filter, *, after: str | None, limit: int
) -> Sequence[ItemSummary] | None:
    """Return up to *limit* items behind the item with the id *after* (None: from the first), in the order of *criteria*.

    Returns None if no item has the id *after*.
    """
    with read_transaction(connection):
        rows = _rows(connection, batch_id, criteria, after=after, limit=limit)
        return None if rows is None else [_summary(connection, row) for row in rows]


def search(
    connection: sqlite3.Connection, batch_id: int, criteria: Filter, text: str, *, after: str | None, limit: int
) -> Matches | None:
    """Search the newest items that match *criteria* for *text*; see ``AdminStore.search``."""
    with read_transaction(connection):
        rows = _rows(
            connection, batch_id, criteria._replace(newest=True), after=after, limit=_SEARCH_WINDOW + 1, rows=_SEARCH_ROWS
        )
        if rows is None:
            return None
        window = rows[:_SEARCH_WINDOW]
        matching: list[tuple[Any, ...]] = []
        looked_at = size = 0
        while looked_at < len(window) and len(matching) < limit and size < _MAX_SEARCH_BYTES:
            part = window[looked_at : looked_at + _SEARCH_PART]
            values = {"seqs": _json([row[0] for row in part]), "pattern": like(text)}
            for row, (_, is_match, length) in zip(part, connection.execute(sql.admin.SEARCH, values), strict=True):
                looked_at, size = looked_at + 1, size + length
                if is_match:
                    matching.append(row)
                if len(matching) == limit or size >= _MAX_SEARCH_BYTES:
                    break
        last = window[looked_at - 1][1] if looked_at < len(rows) else None
        return Matches([_summary(connection, row) for row in matching], looked_at, _count(connection, batch_id, criteria), last)


def _count(connection: sqlite3.Connection, batch_id: int, criteria: Filter) -> int | None:
    """Return the number of items in the state of *criteria*; None if *criteria* exclude some of them."""
    if criteria.error is not None or criteria.before is not None:
        return None
    counts = queries.counts(connection, batch_id, 0.0)
    return counts.total if criteria.status is None else int(getattr(counts, criteria.status.value))


def _summary(connection: sqlite3.Connection, row: Sequence[Any]) -> ItemSummary:
    start = read_start(connection, "items", "payload", row[0], 4 * _MAX_START_CHARACTERS)
    columns: tuple[Any, ...] = (*row[1:], start.text[:_MAX_START_CHARACTERS])
    return ItemSummary(*columns)


def _rows(
    connection: sqlite3.Connection,
    batch_id: int,
    criteria: Filter,
    *,
    after: str | None,
    limit: int,
    rows: float = math.inf,
) -> list[tuple[Any, ...]] | None:
    start: float = math.inf if criteria.newest else queries.BEFORE_EVERY_SEQ
    if after is not None:
        row = connection.execute(sql.admin.SEQ_OF_ID, (batch_id, after)).fetchone()
        if row is None:
            return None
        start = row[0]
    statement = _statement(criteria)
    newest: int = connection.execute(sql.items.NEWEST_SEQ).fetchone()[0]
    if criteria.before is not None and statement in (sql.admin.LIST, sql.admin.LIST_NEWEST):
        newest = _last_arrived_before(connection, to_text(criteria.before + _CLOCK_SLACK_SECONDS), newest)
    values: dict[str, Any] = {
        "batch_id": batch_id,
        "status": criteria.status,
        "pattern": None if criteria.error is None else like(criteria.error),
        "exact": criteria.error,
        "before": None if criteria.before is None else to_text(criteria.before),
        "after": start,
        "newest": newest,
        "oldest": min(start, newest + 1) - 1 - rows,
        "limit": limit,
    }
    if limit <= _NEAR and statement not in (sql.admin.LIST, sql.admin.LIST_NEWEST):
        near = _rows_near(connection, values, newest_first=criteria.newest)
        if len(near) == limit:
            return near
    return connection.execute(statement, values).fetchall()


def _rows_near(connection: sqlite3.Connection, values: dict[str, Any], *, newest_first: bool) -> list[tuple[Any, ...]]:
    """Return the matching items among the rows next to the beginning of a list.

    The index of unfinished items is not in input order, so a list from it sorts all of them: 0.1 us for each. Where many match,
    the table itself has enough of them near the beginning.
    """
    if newest_first:
        return connection.execute(
            sql.admin.LIST_NEWEST, values | {"oldest": min(values["after"], values["newest"]) - _NEAR}
        ).fetchall()
    first: int = connection.execute(sql.items.OLDEST_SEQ).fetchone()[0]
    return connection.execute(sql.admin.LIST, values | {"newest": max(values["after"], first) + _NEAR}).fetchall()


def _statement(criteria: Filter) -> str:
    if criteria.status is Status.FAILED and criteria.error is not None:
        return sql.admin.LIST_FAILED_LIKE_NEWEST if criteria.newest else sql.admin.LIST_FAILED_LIKE
    if criteria.status in (None, Status.COMPLETED) or (criteria.before is not None and criteria.status is not Status.PROCESSING):
        # An item's age is only in its row, not in the index. If there are many old items, a scan of the table finds the first
        # ones soon. If there is none, the scan reads the whole table, which takes no longer than reading the row of each entry
        # of the index.
        return sql.admin.LIST_NEWEST if criteria.newest else sql.admin.LIST
    return sql.admin.LIST_OPEN_NEWEST if criteria.newest else sql.admin.LIST_OPEN


def _last_arrived_before(connection: sqlite3.Connection, moment: str, newest: int) -> int:
    """Return the ``seq`` of the last item that arrived before *moment*.

    The search is binary, because arrival times grow with ``seq``. An item whose latest change is before *moment* also arrived
    before *moment*, so later items need no check.
    """
    low, high = 0, newest
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(sql.admin.NEXT_ARRIVAL, (middle,)).fetchone()
        if row is None or row[1] >= moment:
            high = middle
        else:
            low = row[0]
    return low


def similar_keys(connection: sqlite3.Connection, batch_id: int, key: str) -> Sequence[str]:
    """Return ids that resemble *key*, an id that does not exist.

    Returns up to 3 ids that differ from *key* by a likely typing error. If no such id exists, returns the neighbours of *key*
    and of its prefixes in the order of ids.
    """
    candidates = variants(key)
    existing = {item.id for item in known_keys(connection, batch_id, candidates)}
    if existing:
        return [candidate for candidate in candidates if candidate in existing][:3]
    near: dict[str, None] = {}
    prefixes = {key, *(key[: max(1, len(key) - cut)] for cut in (1, 2, 3)), key[: max(1, len(key) // 2)], key[:1]}
    for prefix in sorted(prefixes, key=len, reverse=True):
        for statement in (sql.admin.IDS_FROM, sql.admin.IDS_BEFORE):
            near.update((neighbour, None) for (neighbour,) in connection.execute(statement, (batch_id, prefix, _MAX_NEIGHBOURS)))
    return list(near)


def keys_with(connection: sqlite3.Connection, batch_ids: Sequence[int], prefix: str, limit: int) -> Sequence[str]:
    """Return ids that start with *prefix*, or the newest ids if it is empty."""
    if not prefix:
        newest: int = connection.execute(sql.items.NEWEST_SEQ).fetchone()[0]
        ids = [connection.execute(sql.admin.NEWEST_IDS, (each, newest - _NEWEST_ITEMS, limit)) for each in batch_ids]
    else:
        ids = [connection.execute(sql.admin.IDS_FROM, (each, prefix, limit)) for each in batch_ids]
    return [key for rows in ids for (key,) in rows if key.startswith(prefix)]


def batches_with(connection: sqlite3.Connection, key: str) -> Sequence[str]:
    """Return the names of the batches that have an item with that id."""
    return [name for (name,) in connection.execute(sql.admin.BATCHES_WITH_ID, (key,))]


# --- one item --------------------------------------------------------------------------------------------------------


class Start(NamedTuple):
    """The start of a stored text, and the size of the whole text in bytes."""

    text: str
    size: int


def read_start(connection: sqlite3.Connection, table: str, column: str, rowid: int, max_bytes: int) -> Start:
    """Return the first *max_bytes* of a text, without a read of the rest: substr() would read the whole text into memory."""
    with connection.blobopen(table, column, rowid, readonly=True) as stored:
        size = len(stored)
        part = stored.read(min(size, max_bytes))
    # A character that was cut in its middle is dropped.
    return Start(codecs.getincrementaldecoder("utf-8")("replace").decode(part, final=len(part) == size), size)


def item(connection: sqlite3.Connection, batch_id: int, key: str, max_bytes: int) -> StoredItem | None:
    """Return an item with its newest 100 failures and the first *max_bytes* of its JSON texts; None if no item has that id."""
    with read_transaction(connection):
        row = connection.execute(sql.admin.ITEM, (batch_id, key)).fetchone()
        if row is None:
            return None
        batch = _name_of(connection, batch_id)
        seq, claim, key, status, attempts, crashes, priority, permanent, suspect, *columns, put_offs, put_off_at = row
        failures = connection.execute(sql.admin.FAILURES_OF_ITEM, (batch_id, key, _MAX_FAILURES)).fetchall()
        named_failures = [FailedAttempt(batch, *failure) for failure in reversed(failures)]
        flags = (bool(permanent), bool(suspect), suspicion_of(suspect) is Suspicion.ISOLATED)
        times: tuple[str | None, str | None] = (None, None)
        if put_off_at is not None and status in (Status.PENDING, Status.PROCESSING):
            times = (to_text(put_off_at), to_text(put_off_at + queries.batch_options(connection, batch_id).throttled_for))
        starts = _starts(connection, seq, claim, max_bytes)
        texts = [None if start is None else start.text for start in starts.values()]
        cut = {name: start.size for name, start in starts.items() if start is not None and start.size > max_bytes}
        numbers = (attempts, crashes, priority)
        values: tuple[Any, ...] = (batch, key, status, *numbers, *flags, *columns, put_offs, *times, *texts, named_failures, cut)
        return StoredItem(*values)


def _starts(connection: sqlite3.Connection, seq: int, claim: int, max_bytes: int) -> dict[str, Start | None]:
    exist = connection.execute(sql.admin.TEXTS_OF_ITEM, (seq,)).fetchone()
    starts = {
        name: read_start(connection, "items", name, seq, max_bytes) if exists else None
        for name, exists in zip(_TEXTS, exist, strict=True)
    }
    result = starts["result"]
    if result is not None and not result.size:
        starts["result"] = _start_of_pieces(connection, seq, claim, max_bytes)
    return starts


def _start_of_pieces(connection: sqlite3.Connection, seq: int, claim: int, max_bytes: int) -> Start:
    """Return the start of a result that is stored in pieces; a text in its place reports missing pieces."""
    rows = connection.execute(sql.large_results.ROWIDS_OF_PIECES, (seq, claim)).fetchall()
    if not rows or rows[-1][1] != len(rows) - 1:
        return Start(_INCOMPLETE, len(_INCOMPLETE))
    text, size = "", 0
    for rowid, _ in rows:
        start = read_start(connection, "result_pieces", "text", rowid, max(0, max_bytes - size))
        text, size = text + start.text, size + start.size
    return Start(text, size)


def _name_of(connection: sqlite3.Connection, batch_id: int) -> str:
    row = connection.execute(sql.batches.BATCH_BY_ID, (batch_id,)).fetchone()
    return "" if row is None else str(row[0])  # a deleted batch has no items


# --- exports ---------------------------------------------------------------------------------------------------------


def export_page(
    connection: sqlite3.Connection, batch_id: int, statuses: Collection[Status] | None, cursor: Cursor | None
) -> Page[ItemRecord]:
    """Return the next page of items in input order; the cursor is the ``seq`` of the last item of the previous page."""
    batch = _name_of(connection, batch_id)
    states = None if statuses is None else msgspec.json.encode(list(statuses)).decode()
    after = queries.BEFORE_EVERY_SEQ if cursor is None else int(cursor)
    values = (after, batch_id, states, _EXPORT_PAGE)
    rows = connection.execute(sql.admin.EXPORT, values).fetchall()
    end = Cursor(str(rows[-1][0])) if rows else None  # the walk ends with an empty page, because items may be added meanwhile
    return Page([ItemRecord(batch, *row[1:]) for row in rows], end)


def export_selected(connection: sqlite3.Connection, batch_id: int, items: ItemSet) -> Sequence[ItemRecord]:
    """Return the items of the set, in its order, without those that were deleted or left the selected states."""
    batch = _name_of(connection, batch_id)
    rows = connection.execute(sql.admin.EXPORT_SELECTED, (_json(items.numbers), _states(items)))
    return [ItemRecord(batch, *row[1:]) for row in rows]


def ids_of(connection: sqlite3.Connection, items: ItemSet) -> Sequence[str]:
    """Return the ids of the items of the set, in its order, without those that were deleted or left the selected states."""
    return [key for (key,) in connection.execute(sql.admin.IDS_OF_SEQS, (_json(items.numbers), _states(items)))]


def _states(items: ItemSet) -> str | None:
    return None if items.selection.keys is not None else _json(items.selection.statuses)


def _json(values: Collection[object] | array[int]) -> str:
    return msgspec.json.encode(list(values)).decode()
