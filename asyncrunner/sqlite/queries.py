"""Read batches, items, workers and turns, as functions of a raw connection.

The connection is the writer's, between two groups of writes, or a connection that only reads.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

import msgspec

from asyncrunner.domain.item import Counts, Status
from asyncrunner.sqlite import sql
from asyncrunner.store.batches import Batch, BatchOptions
from asyncrunner.store.items import Cursor, FailureGroup, ItemRow, Numbers, OpenItems, Page
from asyncrunner.store.rules import rates
from asyncrunner.store.rules.columns import durations_in, options_in
from asyncrunner.store.snapshot import BatchRow, HistoryRow, TurnRow
from asyncrunner.text.timestamps import from_text, to_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BEFORE_EVERY_SEQ: Final = -1e19
"""The position at which a walk over seqs begins. A person may write a seq down to -2**63."""


def counts(connection: sqlite3.Connection, batch_id: int, now: float) -> Counts:
    """Count the items of the batch in each state.

    The items that are not completed are counted in ranges of one index. The number of completed items is the batch's stored
    total minus the others, so it is not counted.
    """
    total, pending, waiting, processing, failed, cancelled = connection.execute(
        sql.reports.COUNTS, {"batch_id": batch_id, "now": to_text(now)}
    ).fetchone()
    return Counts(
        pending=pending,
        waiting=waiting,
        processing=processing,
        completed=(total or 0) - pending - processing - failed - cancelled,
        failed=failed,
        cancelled=cancelled,
    )


def find_batch(connection: sqlite3.Connection, name: str) -> Batch | None:
    """Return the batch of that name, or None."""
    row = connection.execute(sql.batches.BATCH_ID, (name,)).fetchone()
    return None if row is None else Batch(row[0], name)


def incomplete_copies(connection: sqlite3.Connection, names: Sequence[str]) -> Mapping[str, str]:
    """Return the sources of those of the batches whose copy is not complete, by name."""
    text = msgspec.json.encode(list(names)).decode()
    return dict(connection.execute(sql.batches.INCOMPLETE_COPIES, (text,)).fetchall())


def batch_names(connection: sqlite3.Connection) -> Sequence[str]:
    """Return the names of all batches."""
    return [name for (name,) in connection.execute(sql.batches.BATCH_NAMES)]


def item_page(
    connection: sqlite3.Connection, batch_id: int, cursor: Cursor | None, limit: int, *, statement: str = sql.items.ROWS
) -> Page[ItemRow]:
    """Return a page of items in input order. In place of a result stored in pieces, the row has the empty text.

    With the *statement* WHOLE_ROWS every result is whole. Use it only on a connection that only reads, where a long read
    blocks no writer.
    """
    after = BEFORE_EVERY_SEQ if cursor is None else int(cursor)
    rows = [_item_row(row) for row in connection.execute(statement, (after, batch_id, limit))]
    return Page(rows, Cursor(str(rows[-1].seq)) if len(rows) == limit else None)


def items_by_id(
    connection: sqlite3.Connection, batch_id: int, ids: Sequence[str], *, statement: str = sql.items.ITEMS_BY_ID
) -> Sequence[ItemRow]:
    """Return the items of *ids* that exist, in no order. In place of a result stored in pieces, the row has the empty text.

    With the *statement* WHOLE_ITEMS_BY_ID every result is whole. Use it only on a connection that only reads.
    """
    return [_item_row(row) for row in connection.execute(statement, (batch_id, msgspec.json.encode(ids).decode()))]


def items_by_seq(
    connection: sqlite3.Connection, batch_id: int, seqs: Sequence[int], *, statement: str = sql.items.ITEMS_BY_SEQ
) -> Sequence[ItemRow]:
    """Return the items of *seqs* that exist, in no order. In place of a result stored in pieces, the row has the empty text.

    With the *statement* WHOLE_ITEMS_BY_SEQ every result is whole. Use it only on a connection that only reads.
    """
    return [_item_row(row) for row in connection.execute(statement, (msgspec.json.encode(list(seqs)).decode(), batch_id))]


def _item_row(row: sqlite3.Row) -> ItemRow:
    seq, key, status, attempts, payload, result, error, started, completed = row
    return ItemRow(seq, key, Status(status), attempts, payload, result, error, from_text(started), from_text(completed))


def open_items(connection: sqlite3.Connection, batch_id: int, *, on_snapshot: Callable[[], object] = bool) -> OpenItems:
    """Return which items of the batch are not completed, by state, from one snapshot; call *on_snapshot* once it is taken."""
    connection.execute(sql.connection.BEGIN)
    try:
        (newest,) = connection.execute(sql.items.NEWEST_SEQ).fetchone()
        on_snapshot()
        states = [
            Numbers.of(seq for (seq,) in connection.execute(sql.items.OPEN_SEQS, (batch_id, status)))
            for status in (Status.PENDING, Status.PROCESSING, Status.FAILED, Status.CANCELLED)
        ]
    finally:
        if connection.in_transaction:  # an error may have ended it
            connection.execute(sql.connection.ROLLBACK)  # ends the snapshot; nothing was written
    return OpenItems(newest, *states)


def failure_causes(
    connection: sqlite3.Connection, batch_id: int, limit: int, seqs: Sequence[int] | None = None
) -> Sequence[FailureGroup]:
    """Return the failed items grouped by cause, the largest groups first; with *seqs*, only those items."""
    if seqs is None:
        rows = connection.execute(sql.reports.FAILURE_CAUSES, (batch_id, limit))
    else:
        text = msgspec.json.encode(list(seqs)).decode()
        rows = connection.execute(sql.reports.FAILURE_CAUSES_OF_ITEMS, (batch_id, limit, text))
    return [FailureGroup(error or "", count, example) for _, count, example, error in rows]


def batches(connection: sqlite3.Connection, name: str | None = None) -> Sequence[BatchRow]:
    """Return all batches, or only the batch with that name."""
    return [
        BatchRow(batch_id, batch_name, handler, created_at, bool(paused), *controls)
        for batch_id, batch_name, handler, created_at, paused, *controls in connection.execute(sql.batches.BATCHES, (name,))
    ]


def recent_turns(connection: sqlite3.Connection, batch_id: int) -> list[TurnRow]:
    """Return the recorded turns of a batch, up to 1,000, newest first."""
    return [
        TurnRow(
            from_text(at) or 0.0,
            completed,
            failed,
            retried,
            durations_in(durations),
        )
        for at, completed, failed, retried, durations in connection.execute(sql.reports.RECENT_TURNS, (batch_id,))
    ]


def history(connection: sqlite3.Connection, batch_id: int, since: int, until: int, step: int) -> Sequence[HistoryRow]:
    """Return the steps of *step* seconds of a batch's history that have settled attempts; see AdminStore.history."""
    row = {"batch_id": batch_id, "since": since, "until": until, "step": step}
    return [HistoryRow(*columns) for columns in connection.execute(sql.reports.HISTORY, row)]


def recent_rate(connection: sqlite3.Connection, batch_id: int) -> float | None:
    """Return how many items of a batch were completed or failed per second; see ``rates.recent_rate``."""
    row = connection.execute(sql.batches.BATCH_BY_ID, (batch_id,)).fetchone()

    def spans_since(begin: float) -> list[rates.WorkerSpan]:
        return [
            rates.WorkerSpan(batches, from_text(started_at), from_text(last_heartbeat), from_text(ended_at), bool(lost))
            for batches, started_at, last_heartbeat, ended_at, lost in connection.execute(
                sql.workers.WORKER_SPANS, (to_text(begin),)
            )
        ]

    return rates.recent_rate(recent_turns(connection, batch_id), "" if row is None else row[0], spans_since)


def batch_options(connection: sqlite3.Connection, batch_id: int) -> BatchOptions:
    """Return the stored options of a batch, or the defaults if the stored ones are invalid."""
    row = connection.execute(sql.batches.BATCH_BY_ID, (batch_id,)).fetchone()
    return BatchOptions() if row is None else options_in(row[1])
