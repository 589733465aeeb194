"""What those who operate look at, as functions of a reader's connection. Each is one short read, whatever the file holds."""

from __future__ import annotations

import json
import sqlite3
from array import array
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from asyncrunner.asking import like, variants
from asyncrunner.clock import to_text
from asyncrunner.item import Status
from asyncrunner.sqlite import operating_statements as sql
from asyncrunner.sqlite.reading import WorkerRow, workers
from asyncrunner.sqlite.statements import FAILURE_GROUPS, ORPHANS
from asyncrunner.views import FailedAttempt, FailureCause, ItemDetails, ItemRecord, ItemSummary, Moment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Filter",
    "Found",
    "batches_with",
    "causes",
    "details",
    "export_page",
    "find",
    "free_bytes",
    "has_orphans",
    "holdings",
    "known_workers",
    "listed",
    "near_ids",
    "newest_failures",
    "oldest_pending",
    "purgeable",
    "seqs_failed_like",
    "seqs_open",
]

_MOST_FAILURES: Final = 100
_NEIGHBOURS: Final = 200
_CLOCK_SLACK_SECONDS: Final = 3600.0  # by which the clock may have been set back while items came in


class Filter(NamedTuple):
    """Which items: all, or those in a state, whose error has a part like that, older than a moment (seconds since the epoch)."""

    status: Status | None = None
    error: str | None = None
    before: float | None = None

    def values(self, batch_id: int) -> dict[str, Any]:
        """As the statements bind them."""
        return {
            "batch_id": batch_id,
            "status": self.status,
            "pattern": None if self.error is None else like(self.error, option="--error"),
            "exact": self.error,
            "before": None if self.before is None else to_text(self.before),
        }


class Found(NamedTuple):
    """An item that was asked for by its id."""

    seq: int
    id: str
    status: Status


def listed(
    connection: sqlite3.Connection, batch_id: int, wanted: Filter, *, after: str | None, limit: int
) -> Sequence[ItemSummary] | None:
    """The items after the one of that id, in input order; None if there is no such item."""
    start = 0
    if after is not None:
        found = connection.execute(sql.SEQ_OF_ID, (batch_id, after)).fetchone()
        if found is None:
            return None
        start = found[0]
    if wanted.status is Status.FAILED and wanted.error is not None:
        statement = sql.LIST_FAILED_LIKE
    elif wanted.status in (None, Status.COMPLETED) or (wanted.before is not None and wanted.status is not Status.PROCESSING):
        # An age is in the rows alone. The first of many old ones are soon found on a walk; that none is takes a walk to the end,
        # which is no longer than a look at each row that the index names.
        statement = sql.LIST
    else:
        statement = sql.LIST_OPEN
    newest: int = connection.execute(sql.NEWEST_SEQ).fetchone()[0]
    if wanted.before is not None and statement is sql.LIST:
        newest = _last_that_came_in_before(connection, to_text(wanted.before + _CLOCK_SLACK_SECONDS), newest)
    values = {**wanted.values(batch_id), "after": start, "newest": newest, "limit": limit}
    return [ItemSummary(*row[1:]) for row in connection.execute(statement, values)]


def _last_that_came_in_before(connection: sqlite3.Connection, moment: str, newest: int) -> int:
    """The number of the last item that came in before then, by halves: numbers and times of coming in grow together.

    An item that is older by any measure came in before that moment, so nothing behind it needs a look.
    """
    low, high = 0, newest
    while low < high:
        middle = (low + high) // 2
        found = connection.execute(sql.CAME_IN, (middle,)).fetchone()
        if found is None or found[1] >= moment:
            high = middle
        else:
            low = found[0]
    return low


def find(connection: sqlite3.Connection, batch_id: int, ids: Sequence[str]) -> Sequence[Found]:
    """Those of the items that exist."""
    wanted = msgspec.json.encode(ids).decode()
    return [Found(seq, key, Status(status)) for seq, key, status in connection.execute(sql.FOUND, (wanted, batch_id))]


def near_ids(connection: sqlite3.Connection, batch_id: int, key: str) -> Sequence[str]:
    """Ids that are nearly one that is not there: what is easily mistyped for it, or else its neighbours in order.

    Those of each of its beginnings, too.
    """
    wanted = variants(key)
    exact = {found.id for found in find(connection, batch_id, wanted)}
    if exact:
        return [each for each in wanted if each in exact][:3]
    near: dict[str, None] = {}
    beginnings = {key, *(key[: max(1, len(key) - cut)] for cut in (1, 2, 3)), key[: max(1, len(key) // 2)], key[:1]}
    for beginning in sorted(beginnings, key=len, reverse=True):
        for statement in (sql.IDS_FROM, sql.IDS_BEFORE):
            near.update((found, None) for (found,) in connection.execute(statement, (batch_id, beginning, _NEIGHBOURS)))
    return list(near)


def batches_with(connection: sqlite3.Connection, key: str) -> Sequence[str]:
    """The batches that have an item of that id."""
    return [name for (name,) in connection.execute(sql.BATCHES_WITH_ID, (key,))]


def details(connection: sqlite3.Connection, batch_id: int, batch: str, key: str) -> ItemDetails | None:
    """Everything about an item; None if there is none of that id."""
    row = connection.execute(sql.ITEM, (batch_id, key)).fetchone()
    if row is None:
        return None
    key, status, attempts, crashes, priority, *rest = row
    permanent, suspect, created, due, started, completed, worker, error, fingerprint, payload, result, checkpoint = rest
    failures = [
        FailedAttempt(batch, *failure)
        for failure in connection.execute(sql.FAILURES_OF_ITEM, (batch_id, key, _MOST_FAILURES)).fetchall()
    ][::-1]
    found = ItemDetails(
        batch, key, status, attempts, crashes, priority, bool(permanent), bool(suspect), created, due, started, completed,
        worker, error, fingerprint, _value(payload), _value(result), _value(checkpoint), failures, [],
    )  # fmt: skip
    return msgspec.structs.replace(found, timeline=list(_timeline(found)))


def _value(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # somebody has edited the row


def _timeline(item: ItemDetails) -> Iterator[Moment]:
    yield Moment(item.created_at, "accepted")
    for failure in item.failures:
        yield Moment(failure.failed_at, f"attempt {failure.attempt} failed: {failure.error}")
    if item.started_at is not None and item.status in (Status.PROCESSING, Status.COMPLETED):
        by = f" by worker {item.worker_id}" if item.worker_id is not None else ""
        yield Moment(item.started_at, f"attempt {item.attempts} started{by}")
    if item.completed_at is not None and item.status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
        # A failure is dated by its record, which is a moment after the end of the handler.
        recorded = item.failures[-1].failed_at if item.failures and item.status == Status.FAILED else ""
        yield Moment(max(item.completed_at, recorded), item.status)
    if item.due_at is not None and item.status == Status.PENDING:
        yield Moment(item.due_at, "may run again" if item.failures else "may run")


# --- failures --------------------------------------------------------------------------------------------------------


def newest_failures(connection: sqlite3.Connection, batch_id: int | None, limit: int) -> Sequence[FailedAttempt]:
    """The newest failed attempts, the newest first; of one batch only among the file's newest ten thousand."""
    return [FailedAttempt(*row) for row in connection.execute(sql.NEWEST_FAILURES, (batch_id, limit))]


def causes(connection: sqlite3.Connection, batch_id: int, batch: str, limit: int) -> Sequence[FailureCause]:
    """Causes by how many items have failed of them, then by how many attempts."""
    found: list[FailureCause] = []
    frequent = {
        cause: (attempts, first, last)
        for cause, attempts, first, last in connection.execute(sql.ATTEMPTS_BY_CAUSE, (batch_id, 2 * limit))
    }
    for fingerprint, items, example, error in connection.execute(FAILURE_GROUPS, (batch_id, limit)).fetchall():
        attempts, first, last = (
            frequent.pop(fingerprint, None) or connection.execute(sql.ATTEMPTS_OF_CAUSE, (batch_id, fingerprint)).fetchone()
        )
        found.append(FailureCause(batch, fingerprint, items, attempts, first, last, example, error or ""))
    for fingerprint, (attempts, first, last) in frequent.items():
        if len(found) < limit:
            example, kind, message = connection.execute(sql.NEWEST_OF_CAUSE, (batch_id, fingerprint)).fetchone()
            error = f"{kind}: {message}" if message else kind
            found.append(FailureCause(batch, fingerprint, 0, attempts, first, last, example, error))
    return found


# --- work ------------------------------------------------------------------------------------------------------------


def holdings(connection: sqlite3.Connection, batch_id: int | None = None) -> dict[str | None, int]:
    """How many items each worker holds."""
    return dict(connection.execute(sql.HOLDINGS, (batch_id,)).fetchall())


def oldest_pending(connection: sqlite3.Connection, batch_id: int) -> tuple[str, str] | None:
    """The id and the time of arrival of the item that came first, of those that may run now."""
    found: tuple[str, str] | None = connection.execute(sql.OLDEST_PENDING, (batch_id,)).fetchone()
    return found


# --- what is changed later -------------------------------------------------------------------------------------------


def seqs_open(connection: sqlite3.Connection, batch_id: int, status: Status) -> array[int]:
    """The items in a state that is not ``completed``; eight bytes each."""
    return array("q", (seq for (seq,) in connection.execute(sql.OPEN_SEQS, (batch_id, status))))


def seqs_failed_like(connection: sqlite3.Connection, batch_id: int, pattern: str) -> array[int]:
    """The failed items whose error has a part like that, or that fingerprint."""
    values = Filter(error=pattern).values(batch_id)
    return array("q", (seq for (seq,) in connection.execute(sql.FAILED_SEQS_LIKE, values)))


def known_workers(connection: sqlite3.Connection) -> Sequence[WorkerRow]:
    """Those that have not left."""
    return workers(connection)


def has_orphans(connection: sqlite3.Connection, batch_id: int | None = None) -> bool:
    """Whether some item, of all batches or of one, is held by no worker that is known."""
    return any(batch_id in (None, held[1]) for held in connection.execute(ORPHANS))


def purgeable(
    connection: sqlite3.Connection, batch_id: int, statuses: Sequence[Status], before: str, *, after: int, limit: int
) -> Sequence[tuple[int, str]]:
    """Items in those states since before that time, with their states: the next after that ``seq``."""
    wanted = msgspec.json.encode(statuses).decode()
    return connection.execute(sql.PURGEABLE, (after, batch_id, wanted, before, limit)).fetchall()


def free_bytes(connection: sqlite3.Connection) -> int:
    """Room in the file that what was deleted has left."""
    pages: int = connection.execute(sql.FREE_PAGES).fetchone()[0]
    size: int = connection.execute(sql.PAGE_SIZE).fetchone()[0]
    return pages * size


def export_page(
    connection: sqlite3.Connection, batch_id: int, batch: str, statuses: Sequence[Status] | None, *, after: int, limit: int
) -> tuple[Sequence[ItemRecord], int]:
    """The next items after that ``seq``, in input order, and the ``seq`` of the last of them."""
    wanted = None if statuses is None else msgspec.json.encode(statuses).decode()
    rows = connection.execute(sql.EXPORT, (after, batch_id, wanted, limit)).fetchall()
    return [ItemRecord(batch, *row[1:]) for row in rows], (rows[-1][0] if rows else after)
