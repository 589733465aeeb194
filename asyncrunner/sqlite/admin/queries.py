"""Queries for operators, as functions of a reader's connection. Each is one short read, however large the file is."""

from __future__ import annotations

import json
import sqlite3
from array import array
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from asyncrunner.domain.item import Status
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.admin.patterns import like
from asyncrunner.sqlite.queries import WorkerRow, workers
from asyncrunner.store.read_models import FailedAttempt, FailureCause, ItemDetails, ItemRecord, ItemSummary, Moment
from asyncrunner.text.suggestions import variants
from asyncrunner.text.timestamps import to_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


_MAX_FAILURES: Final = 100  # of one item

_MAX_NEIGHBOURS: Final = 200  # on each side of an id

_CLOCK_SLACK_SECONDS: Final = 3600.0  # how far the clock may have been set back between two inserts


class Filter(NamedTuple):
    """A selection of items by status, by a part of the error or its fingerprint, and by age; None selects all.

    ``before`` is in seconds since the epoch: only items whose latest change is older.
    """

    status: Status | None = None
    error: str | None = None
    before: float | None = None

    def values(self, batch_id: int) -> dict[str, Any]:
        """Return the parameters of the statements."""
        return {
            "batch_id": batch_id,
            "status": self.status,
            "pattern": None if self.error is None else like(self.error),
            "exact": self.error,
            "before": None if self.before is None else to_text(self.before),
        }


class Found(NamedTuple):
    """An existing item that was requested by its id."""

    seq: int
    id: str
    status: Status


def listed(
    connection: sqlite3.Connection, batch_id: int, selection: Filter, *, after: str | None, limit: int
) -> Sequence[ItemSummary] | None:
    """Return up to *limit* items after the item with the id *after* (None: from the first), in input order.

    Returns None if no item has the id *after*.
    """
    start = 0
    if after is not None:
        row = connection.execute(sql.admin.SEQ_OF_ID, (batch_id, after)).fetchone()
        if row is None:
            return None
        start = row[0]
    if selection.status is Status.FAILED and selection.error is not None:
        statement = sql.admin.LIST_FAILED_LIKE
    elif selection.status in (None, Status.COMPLETED) or (
        selection.before is not None and selection.status is not Status.PROCESSING
    ):
        # An item's age is only in its row, not in the index. A scan of the table finds the first of many old items soon. If there
        # is none, the scan reads the whole table, which takes no longer than reading each row of the index.
        statement = sql.admin.LIST
    else:
        statement = sql.admin.LIST_OPEN
    newest: int = connection.execute(sql.items.NEWEST_SEQ).fetchone()[0]
    if selection.before is not None and statement is sql.admin.LIST:
        newest = _last_arrived_before(connection, to_text(selection.before + _CLOCK_SLACK_SECONDS), newest)
    values = {**selection.values(batch_id), "after": start, "newest": newest, "limit": limit}
    return [ItemSummary(*row[1:]) for row in connection.execute(statement, values)]


def _last_arrived_before(connection: sqlite3.Connection, moment: str, newest: int) -> int:
    """Return the ``seq`` of the last item that arrived before *moment*, by binary search: ``seq`` and arrival time grow together.

    An item whose latest change is before *moment* also arrived before it, so later items need no check.
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


def find(connection: sqlite3.Connection, batch_id: int, ids: Sequence[str]) -> Sequence[Found]:
    """Return the items of *ids* that exist, in the order of *ids*."""
    ids_json = msgspec.json.encode(ids).decode()
    rows = connection.execute(sql.admin.EXISTING_IDS, (ids_json, batch_id))
    return [Found(seq, key, Status(status)) for seq, key, status in rows]


def near_ids(connection: sqlite3.Connection, batch_id: int, key: str) -> Sequence[str]:
    """Return ids that resemble *key*, an id that does not exist.

    These are up to 3 ids that differ from it by a likely typing error. If there are none, the neighbours of *key* and of its
    prefixes in the order of ids.
    """
    candidates = variants(key)
    existing = {item.id for item in find(connection, batch_id, candidates)}
    if existing:
        return [candidate for candidate in candidates if candidate in existing][:3]
    near: dict[str, None] = {}
    prefixes = {key, *(key[: max(1, len(key) - cut)] for cut in (1, 2, 3)), key[: max(1, len(key) // 2)], key[:1]}
    for prefix in sorted(prefixes, key=len, reverse=True):
        for statement in (sql.admin.IDS_FROM, sql.admin.IDS_BEFORE):
            near.update((neighbour, None) for (neighbour,) in connection.execute(statement, (batch_id, prefix, _MAX_NEIGHBOURS)))
    return list(near)


def batches_with(connection: sqlite3.Connection, key: str) -> Sequence[str]:
    """Return the names of the batches that have an item with that id."""
    return [name for (name,) in connection.execute(sql.admin.BATCHES_WITH_ID, (key,))]


def details(connection: sqlite3.Connection, batch_id: int, batch: str, key: str) -> ItemDetails | None:
    """Return everything about an item, with its newest 100 failures; None if no item has that id."""
    row = connection.execute(sql.admin.ITEM, (batch_id, key)).fetchone()
    if row is None:
        return None
    key, status, attempts, crashes, priority, *rest = row
    permanent, suspect, created, due, started, completed, worker, error, fingerprint, payload, result, checkpoint = rest
    failures = [
        FailedAttempt(batch, *failure)
        for failure in connection.execute(sql.admin.FAILURES_OF_ITEM, (batch_id, key, _MAX_FAILURES)).fetchall()
    ][::-1]
    item = ItemDetails(
        batch, key, status, attempts, crashes, priority, bool(permanent), bool(suspect), created, due, started, completed,
        worker, error, fingerprint, _value(payload), _value(result), _value(checkpoint), failures, [],
    )  # fmt: skip
    return msgspec.structs.replace(item, timeline=list(_timeline(item)))


def _value(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # the row was edited by hand


def _timeline(item: ItemDetails) -> Iterator[Moment]:
    yield Moment(item.created_at, "accepted")
    for failure in item.failures:
        yield Moment(failure.failed_at, f"attempt {failure.attempt} failed: {failure.error}")
    if item.started_at is not None and item.status in (Status.PROCESSING, Status.COMPLETED):
        by = f" by worker {item.worker_id}" if item.worker_id is not None else ""
        yield Moment(item.started_at, f"attempt {item.attempts} started{by}")
    if item.completed_at is not None and item.status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
        # A failure's time is that of its record, which is slightly after the end of the handler.
        failed_at = item.failures[-1].failed_at if item.failures and item.status == Status.FAILED else ""
        yield Moment(max(item.completed_at, failed_at), item.status)
    if item.due_at is not None and item.status == Status.PENDING:
        yield Moment(item.due_at, "may run again" if item.failures else "may run")


# --- failures --------------------------------------------------------------------------------------------------------


def newest_failures(connection: sqlite3.Connection, batch_id: int | None, limit: int) -> Sequence[FailedAttempt]:
    """Return the newest failed attempts, newest first. For one batch, only the file's newest 10,000 are searched."""
    return [FailedAttempt(*row) for row in connection.execute(sql.admin.NEWEST_FAILURES, (batch_id, limit))]


def causes(connection: sqlite3.Connection, batch_id: int, batch: str, limit: int) -> Sequence[FailureCause]:
    """Return causes of failure, those with the most failed items first; then those with the most failed attempts."""
    result: list[FailureCause] = []
    frequent = {
        cause: (attempts, first, last)
        for cause, attempts, first, last in connection.execute(sql.admin.ATTEMPTS_BY_CAUSE, (batch_id, 2 * limit))
    }
    for fingerprint, items, example, error in connection.execute(sql.reports.FAILURE_CAUSES, (batch_id, limit)).fetchall():
        attempts, first, last = (
            frequent.pop(fingerprint, None) or connection.execute(sql.admin.ATTEMPTS_OF_CAUSE, (batch_id, fingerprint)).fetchone()
        )
        result.append(FailureCause(batch, fingerprint, items, attempts, first, last, example, error or ""))
    for fingerprint, (attempts, first, last) in frequent.items():
        if len(result) < limit:
            example, kind, message = connection.execute(sql.admin.NEWEST_OF_CAUSE, (batch_id, fingerprint)).fetchone()
            error = f"{kind}: {message}" if message else kind
            result.append(FailureCause(batch, fingerprint, 0, attempts, first, last, example, error))
    return result


# --- work ------------------------------------------------------------------------------------------------------------


def holdings(connection: sqlite3.Connection, batch_id: int | None = None) -> dict[str | None, int]:
    """Return how many items each worker holds; None as a worker's id stands for items without one."""
    return dict(connection.execute(sql.admin.HOLDINGS, (batch_id,)).fetchall())


def oldest_pending(connection: sqlite3.Connection, batch_id: int) -> tuple[str, str] | None:
    """Return the id and the arrival time of the oldest pending item without a due time; None if there is none."""
    row: tuple[str, str] | None = connection.execute(sql.admin.OLDEST_PENDING, (batch_id,)).fetchone()
    return row


# --- selecting items for a change ------------------------------------------------------------------------------------


def seqs_open(connection: sqlite3.Connection, batch_id: int, status: Status) -> array[int]:
    """Return the ``seq`` of each item with that status, any but ``completed``; 8 bytes for each item."""
    return array("q", (seq for (seq,) in connection.execute(sql.admin.OPEN_SEQS, (batch_id, status))))


def seqs_failed_like(connection: sqlite3.Connection, batch_id: int, pattern: str) -> array[int]:
    """Return the ``seq`` of each failed item whose error matches *pattern* or whose fingerprint is *pattern*."""
    values = Filter(error=pattern).values(batch_id)
    return array("q", (seq for (seq,) in connection.execute(sql.admin.FAILED_SEQS_LIKE, values)))


def known_workers(connection: sqlite3.Connection) -> Sequence[WorkerRow]:
    """Return the workers that have neither left nor been lost."""
    return workers(connection)


def has_orphans(connection: sqlite3.Connection, batch_id: int | None = None) -> bool:
    """Return whether any item, of one batch or of all, is orphaned: processing, but held by no known worker."""
    return any(batch_id in (None, held[1]) for held in connection.execute(sql.workers.ORPHANS))


def purgeable(
    connection: sqlite3.Connection, batch_id: int, statuses: Sequence[Status], before: str, *, after: int, limit: int
) -> Sequence[tuple[int, str]]:
    """Return the ``seq`` and status of items that ended, or arrived, before the time *before* and have one of *statuses*.

    These are the next items, at most *limit*, after the ``seq`` *after*, in input order.
    """
    statuses_json = msgspec.json.encode(statuses).decode()
    return connection.execute(sql.purge.PURGEABLE, (after, batch_id, statuses_json, before, limit)).fetchall()


def free_bytes(connection: sqlite3.Connection) -> int:
    """Return the bytes of the file's free pages, which deleted rows have left."""
    pages: int = connection.execute(sql.connection.FREE_PAGES).fetchone()[0]
    size: int = connection.execute(sql.connection.PAGE_SIZE).fetchone()[0]
    return pages * size


def export_page(
    connection: sqlite3.Connection, batch_id: int, batch: str, statuses: Sequence[Status] | None, *, after: int, limit: int
) -> tuple[Sequence[ItemRecord], int]:
    """Return up to *limit* items after the ``seq`` *after*, in input order, and the ``seq`` of the last one.

    If there are no more items, the ``seq`` is *after*.
    """
    statuses_json = None if statuses is None else msgspec.json.encode(statuses).decode()
    rows = connection.execute(sql.admin.EXPORT, (after, batch_id, statuses_json, limit)).fetchall()
    return [ItemRecord(batch, *row[1:]) for row in rows], (rows[-1][0] if rows else after)
