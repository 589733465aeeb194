"""Format the output of ``list``, ``show``, ``failures``, ``stuck`` and ``workers``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, Final

from asyncrunner.admin.read_models import FailureCauses, ItemDetails, ItemPage, Stuck, WorkerStatus
from asyncrunner.cli.render.tables import Column, table
from asyncrunner.store.snapshot import FailedAttempt, FailureCause, ItemSummary
from asyncrunner.text.durations import duration_text
from asyncrunner.text.escaping import counted, safe_text
from asyncrunner.text.timestamps import from_text

_SUSPECT: Final = "a suspect: it ran when workers died; after its start, a worker starts no other suspect for 30 s"
_ISOLATED: Final = (
    "isolated: it was the only suspect when a worker died; a worker starts nothing else for up to 30 s before and after this "
    "item starts"
)
_WIDE: Final = 120  # characters in a line
_MAX_VALUE_LENGTH: Final = 4000  # characters of a payload, result, checkpoint or error


def page_lines(page: ItemPage, width: int | None) -> list[str]:
    """Return a heading and one line per item of the page; without an error on the page, the payload gets its room."""
    room = 20 if width is not None and width < _WIDE else 40  # characters of a payload beside an error
    columns = [Column("id"), Column("status"), Column("attempts", right=True, spare=2), Column("since", spare=3),
               Column("payload", spare=1, limit=room), Column("error")]  # fmt: skip
    rows: list[tuple[object, ...]] = [
        (each.id, each.status, each.attempts, _since(each), each.payload, each.error) for each in page.items
    ]
    if any(each.error for each in page.items):
        return table(columns, rows, width)
    return table([*columns[:-2], Column("payload")], [row[:-1] for row in rows], width)


def searched_line(page: ItemPage, status: str | None, after: str | None) -> str:
    """Return the line that names the items at which a search looked, and how to continue it."""
    noun = "item" if status is None else f"{status} item"
    number = counted(page.looked_at or 0, noun)
    if after is not None:
        line = f"looked at {number} older than {safe_text(after)}"
    elif page.of is None:
        line = f"looked at the newest {number} that the other options select"
    elif page.looked_at == page.of:
        line = f"looked at all {number}"
    else:
        line = f"looked at the newest {page.looked_at:,} of {counted(page.of, noun)}"
    return line if page.after is None else f"{line}; for older ones, add --after {safe_text(page.after)}"


def _since(item: ItemSummary) -> str:
    at = item.completed_at or (item.started_at if item.status == "processing" else None) or item.created_at
    return at[:19]


def item_lines(item: ItemDetails, db: str, now: float) -> Iterator[str]:
    """Yield the lines that describe one item of *db*: its state, values, timeline, and the traceback of each failed attempt.

    *now* is in seconds since the epoch.
    """
    yield f"{safe_text(item.id)} of {safe_text(item.batch)}: {item.status}"
    facts = [counted(item.attempts, "attempt")]
    facts += [f"its worker died {counted(item.crashes, 'time')}"] if item.crashes else []
    facts += [f"{counted(item.put_offs, 'put-off')}, which cost no attempt"] if item.put_offs else []
    facts += [f"priority {item.priority}"] if item.priority else []
    facts += ["permanent error"] if item.permanent and item.status == "failed" else []
    facts += [f"claimed by worker {safe_text(item.worker_id)}"] if item.worker_id and item.status == "processing" else []
    yield f"  {', '.join(facts)}"
    if item.suspect and item.status in ("pending", "processing"):
        yield f"  {_ISOLATED if item.isolated else _SUSPECT}"
    since, until = from_text(item.put_off_at), from_text(item.put_off_until)
    if since is not None and until is not None:
        yield (
            f"  has been put off for {duration_text(max(0.0, now - since))}; fails after {duration_text(max(0.0, until - since))}"
        )
    yield f"  payload     {_value_text(item, 'payload')}"
    if item.rerun_payload is not None:
        yield f"  runs again  {_value_text(item, 'rerun_payload')}"
    if item.result is not None or item.status == "completed":
        yield f"  result      {_value_text(item, 'result')}"
    if item.checkpoint is not None:
        yield f"  checkpoint  {_value_text(item, 'checkpoint')}"
    if item.error is not None and item.status != "completed":
        yield f"  error       {safe_text(item.error, limit=_MAX_VALUE_LENGTH)}"
    if item.fingerprint is not None and item.status == "failed":
        yield f"  cause       {safe_text(item.fingerprint)}"
    if item.cut:
        yield f"  whole value: asyncrunner export --db {_quoted(db)} --batch {_quoted(item.batch)} --id {_quoted(item.id)}"
    yield ""
    yield from (f"  {safe_text(moment.at)}  {safe_text(moment.what, limit=300)}" for moment in item.timeline)
    for failure in item.failures:
        yield ""
        yield _attempt_text(failure)
        yield from (f"  {safe_text(line, limit=500)}" for line in (failure.traceback or failure.error).splitlines())


def _quoted(text: str) -> str:
    return shlex.quote(safe_text(text, limit=1000))


def _attempt_text(failure: FailedAttempt) -> str:
    if failure.started_at is None or failure.duration is None:
        return f"attempt {failure.attempt}, {safe_text(failure.failed_at)}:"
    return f"attempt {failure.attempt}, started {safe_text(failure.started_at)}, failed after {duration_text(failure.duration)}:"


def _value_text(item: ItemDetails, name: str) -> str:
    value: Any = getattr(item, name)
    if name in item.cut:
        size = item.cut[name]
        start = safe_text(value[:_MAX_VALUE_LENGTH], limit=_MAX_VALUE_LENGTH)
        return f"{start}... ({counted(size, 'byte')}, of which the start was read)"
    return safe_text(json.dumps(value, ensure_ascii=False), limit=_MAX_VALUE_LENGTH)


def cause_lines(causes: FailureCauses, now: float, width: int | None) -> list[str]:
    """Return a heading and one line per cause, and a line about the causes that are omitted; ages are counted from *now*."""
    several = len({cause.batch for cause in causes}) > 1
    columns = [
        Column("items", right=True), Column("attempts", right=True, spare=1), Column("first", right=True, spare=3),
        Column("last", right=True, spare=2), Column("cause"), Column("example", spare=4, limit=24), Column("error"),
    ]  # fmt: skip
    rows: list[list[object]] = [
        [
            f"{cause.items:,}", f"{cause.attempts:,}", _ago(cause.first_seen, now), _ago(cause.last_seen, now),
            _cause_text(cause), cause.example, cause.error,
        ]
        for cause in causes
    ]  # fmt: skip
    if several:
        columns.insert(0, Column("batch", limit=30))
        rows = [[cause.batch, *row] for cause, row in zip(causes, rows, strict=True)]
    return table(columns, rows, width) + _more_lines(causes)


def _cause_text(cause: FailureCause) -> str:
    return counted(cause.causes, "cause") if cause.causes > 1 else cause.fingerprint or "-"


def _more_lines(causes: FailureCauses) -> list[str]:
    if not causes.more_causes:
        return []
    return [f"and {counted(causes.more_causes, 'more cause')}, {counted(causes.more_items, 'item')}"]


def _ago(text: str | None, now: float) -> str:
    at = from_text(text)
    return "-" if at is None else f"{duration_text(max(0.0, now - at))} ago"


def stuck_lines(items: Sequence[Stuck], width: int | None) -> list[str]:
    """Return a heading and one line per item that has been processing for a long time."""
    columns = [Column("id"), Column("for", right=True), Column("attempt", right=True, spare=2), Column("worker", spare=1),
               Column("alive"), Column("batch")]  # fmt: skip
    rows = [
        (each.id, duration_text(each.seconds), each.attempts, each.worker_id, _yes_no(each.worker_alive), each.batch)
        for each in items
    ]
    return table(columns, rows, width)


def _yes_no(alive: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[alive]


def worker_lines(workers: Sequence[WorkerStatus], width: int | None) -> list[str]:
    """Return a heading and one line per worker."""
    columns = [Column("worker", spare=3), Column("pid", right=True), Column("host", spare=4, limit=24), Column("alive"),
               Column("slots", right=True), Column("holds", right=True, spare=1), Column("attempts", right=True),
               Column("failed", right=True), Column("heartbeat", right=True)]  # fmt: skip
    rows = [
        (
            each.worker_id, each.pid, each.host, _yes_no(each.alive), f"{each.slots_in_use}/{each.slots}", f"{each.holding:,}",
            f"{each.items_processed:,}", f"{each.items_failed:,}", f"{duration_text(each.heartbeat_age)} ago",
        )
        for each in workers
    ]  # fmt: skip
    return table(columns, rows, width)
