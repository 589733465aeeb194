"""What the file says, as functions of a raw connection: the writer's between two groups, or a reader's own."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from asyncrunner.clock import from_text, to_text
from asyncrunner.item import Counts, Status
from asyncrunner.sqlite import statements as sql
from asyncrunner.store import FailureGroup, ItemRow

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BatchRow", "StuckItem", "TurnRow", "WorkerRow", "batches", "counts", "failure_groups", "items_by_id",
    "processing_seconds", "recent_rate", "recent_turns", "rows", "stuck", "whole_rows", "workers"]  # fmt: skip


_TURNS_OF_RATE: Final = 200
_GAP_SECONDS: Final = 60.0  # between two turns: nobody was working


class BatchRow(NamedTuple):
    """A batch and its live controls."""

    batch_id: int
    name: str
    handler: str
    created_at: str
    paused: bool
    cooldown_until: str | None
    concurrency: int | None
    stopped: str | None


class WorkerRow(NamedTuple):
    """A worker that has not left; times as text."""

    worker_id: str
    host: str
    pid: int
    started_at: str
    last_heartbeat: str
    items_processed: int
    items_failed: int
    loop_blocks: int
    longest_block: float
    slots: int
    slots_in_use: int


class TurnRow(NamedTuple):
    """What one recent turn settled. ``durations``: seconds of attempts, by status; of some, evenly chosen, if many."""

    at: float
    completed: int
    failed: int
    retried: int
    durations: dict[str, list[float]]


class StuckItem(NamedTuple):
    """An item that is being processed for long."""

    id: str
    worker_id: str | None
    started_at: str
    attempts: int


def counts(connection: sqlite3.Connection, batch_id: int, now: float) -> Counts:
    """Every state's count: the open ones are ranges of one index, completed is the rest of the kept total."""
    total, pending, waiting, processing, failed, cancelled = connection.execute(
        sql.COUNTS, {"batch_id": batch_id, "now": to_text(now)}
    ).fetchone()
    return Counts(
        pending=pending,
        waiting=waiting,
        processing=processing,
        completed=(total or 0) - pending - processing - failed - cancelled,
        failed=failed,
        cancelled=cancelled,
    )


def rows(connection: sqlite3.Connection, batch_id: int, after: int, limit: int) -> Sequence[ItemRow]:
    """A page of items in input order; without the results that are in pieces."""
    return [_item_row(row) for row in connection.execute(sql.ROWS, (after, batch_id, limit))]


def whole_rows(connection: sqlite3.Connection, batch_id: int, after: int, limit: int) -> Sequence[ItemRow]:
    """The same with every result, for who reads on a connection of its own and holds nobody up."""
    return [_item_row(row) for row in connection.execute(sql.WHOLE_ROWS, (after, batch_id, limit))]


def items_by_id(connection: sqlite3.Connection, batch_id: int, ids: Sequence[str]) -> Sequence[ItemRow]:
    """Those of the items that exist; without the results that are in pieces."""
    return [_item_row(row) for row in connection.execute(sql.ITEMS_BY_ID, (batch_id, msgspec.json.encode(ids).decode()))]


def _item_row(row: sqlite3.Row) -> ItemRow:
    seq, key, status, attempts, payload, result, error, started, completed = row
    return ItemRow(seq, key, Status(status), attempts, payload, result, error, from_text(started), from_text(completed))


def failure_groups(connection: sqlite3.Connection, batch_id: int, limit: int) -> Sequence[FailureGroup]:
    """Failed items by cause."""
    return [
        FailureGroup(error or "", count, example)
        for _, count, example, error in connection.execute(sql.FAILURE_GROUPS, (batch_id, limit))
    ]


def batches(connection: sqlite3.Connection, name: str | None = None) -> Sequence[BatchRow]:
    """All batches, or the one of that name."""
    return [
        BatchRow(batch_id, found, handler, created_at, bool(paused), *controls)
        for batch_id, found, handler, created_at, paused, *controls in connection.execute(sql.BATCHES, (name,))
    ]


def workers(connection: sqlite3.Connection) -> Sequence[WorkerRow]:
    """The workers that have not left."""
    return [WorkerRow(*row) for row in connection.execute(sql.WORKERS)]


def recent_turns(connection: sqlite3.Connection, batch_id: int) -> list[TurnRow]:
    """The newest turns of a batch, newest first."""
    return [
        TurnRow(
            from_text(at) or 0.0,
            completed,
            failed,
            retried,
            {
                status: [microseconds / 1e6 for microseconds in values]
                for status, values in msgspec.json.decode(durations, type=dict[str, list[int]]).items()
            },
        )
        for at, completed, failed, retried, durations in connection.execute(sql.RECENT_TURNS, (batch_id,))
    ]


def recent_rate(connection: sqlite3.Connection, batch_id: int) -> float | None:
    """Items done a second in the newest stretch of turns without a long gap; None where there is too little to tell."""
    newest = recent_turns(connection, batch_id)[:_TURNS_OF_RATE]
    stretch = newest[:1]
    for turn in newest[1:]:
        if stretch[-1].at - turn.at > _GAP_SECONDS:
            break
        stretch.append(turn)
    # What the oldest one settled was done before the time that is looked at.
    done = sum(turn.completed + turn.failed for turn in stretch[:-1])
    seconds = stretch[0].at - stretch[-1].at if stretch else 0.0
    return done / seconds if done and seconds > 0 else None


def stuck(connection: sqlite3.Connection, batch_id: int, before: str, limit: int) -> Sequence[StuckItem]:
    """Items in processing since before that time, the oldest first."""
    return [StuckItem(*row) for row in connection.execute(sql.STUCK, (batch_id, before, limit))]


def processing_seconds(connection: sqlite3.Connection, batch_id: int, now: float, limit: int) -> Sequence[float]:
    """For how long the newest items in processing have been running."""
    starts = (from_text(started_at) for (started_at,) in connection.execute(sql.PROCESSING_STARTS, (batch_id, limit)))
    return [max(0.0, now - start) for start in starts if start is not None]
