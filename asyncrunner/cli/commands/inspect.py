"""``list``, ``show``, ``failures``, ``stuck`` and ``workers``: print the items and workers of a file, as text or JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from asyncrunner.cli.options import BatchOption, Db, Json, env
from asyncrunner.cli.render.tables import Column, table, terminal_width
from asyncrunner.cli.session import ask, print_json, print_lines, say
from asyncrunner.domain.options import DEFAULT_DB
from asyncrunner.store.read_models import FailureCause, ItemDetails, ItemPage, ItemSummary, Stuck, WorkerStatus
from asyncrunner.text.durations import age, duration_text
from asyncrunner.text.escaping import counted, safe_text
from asyncrunner.text.timestamps import from_text

_MAX_VALUE_CHARS: Final = 4000  # of a payload, result, checkpoint or error


def list_items(
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    status: Annotated[
        str | None,
        typer.Option(envvar=env("status"), help="Only pending, processing, completed, failed or cancelled items. [default: all]"),
    ] = None,
    error: Annotated[
        str | None,
        typer.Option(
            envvar=env("error"),
            help="Only failed items (or those with --status) whose error contains this text (* matches anything) or cause.",
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            envvar=env("older_than"),
            help="Only items that ended, started or, if pending, were added longer ago than this (90s, 15m, 12h, 30d).",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", envvar=env("limit"), help="Maximum number of items.")] = 50,
    after: Annotated[
        str | None, typer.Option(envvar=env("after"), help="Continue after the item with this id; the last line prints it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List items of a batch in input order, without their payloads and results.

    Read-only; works while workers run.
    """
    seconds = None if older_than is None else age(older_than, option="--older-than")
    page = ask(
        db,
        lambda control: control.items(batch, status=status, error=error, older_than=seconds, limit=limit, after=after),
    )
    if as_json:
        print_json(page)
        return
    print_lines(_page_lines(page))
    if not page.items:
        say("no matching items")
    elif page.after is not None:
        say(f"more items: add --after {safe_text(page.after)}")


def _page_lines(page: ItemPage) -> list[str]:
    columns = [Column("id"), Column("status"), Column("attempts", right=True, spare=1), Column("since", spare=2), Column("error")]
    rows = [(each.id, each.status, each.attempts, _since(each), each.error) for each in page.items]
    return table(columns, rows, terminal_width())


def _since(item: ItemSummary) -> str:
    at = item.completed_at or (item.started_at if item.status == "processing" else None) or item.created_at
    return at[:19]


def show_item(
    id: Annotated[str, typer.Argument(metavar="ID", help="The item's id.", show_default=False)],  # noqa: A002 - its name in the help
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    as_json: Json = False,
) -> None:
    """Show everything about an item: payload, result, timeline, and every failed attempt with its traceback.

    Read-only. Without --batch, all batches are searched for the item.
    """
    item = ask(db, lambda control: control.show(id, batch))
    if as_json:
        print_json(item)
    else:
        print_lines(list(_item_lines(item)))


def _item_lines(item: ItemDetails) -> Iterator[str]:
    yield f"{safe_text(item.id)} of {safe_text(item.batch)}: {item.status}"
    facts = [counted(item.attempts, "attempt")]
    facts += [f"its worker died {counted(item.crashes, 'time')}"] if item.crashes else []
    facts += [f"priority {item.priority}"] if item.priority else []
    facts += ["permanent error"] if item.permanent and item.status == "failed" else []
    facts += ["suspected of killing its worker: the next attempt runs alone"] if item.suspect and item.status == "pending" else []
    facts += [f"claimed by worker {safe_text(item.worker_id)}"] if item.worker_id and item.status == "processing" else []
    yield f"  {', '.join(facts)}"
    yield f"  payload     {_value_text(item.payload)}"
    if item.result is not None or item.status == "completed":
        yield f"  result      {_value_text(item.result)}"
    if item.checkpoint is not None:
        yield f"  checkpoint  {_value_text(item.checkpoint)}"
    if item.error is not None and item.status != "completed":
        yield f"  error       {safe_text(item.error, limit=_MAX_VALUE_CHARS)}"
    if item.fingerprint is not None and item.status == "failed":
        yield f"  cause       {safe_text(item.fingerprint)}"
    yield ""
    yield from (f"  {safe_text(moment.at)}  {safe_text(moment.what, limit=300)}" for moment in item.timeline)
    for failure in item.failures:
        yield ""
        yield f"attempt {failure.attempt}, {safe_text(failure.failed_at)}:"
        yield from (f"  {safe_text(line, limit=500)}" for line in (failure.traceback or failure.error).splitlines())


def _value_text(value: Any) -> str:
    return safe_text(json.dumps(value, ensure_ascii=False), limit=_MAX_VALUE_CHARS)


def show_failures(
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", envvar=env("limit"), help="Maximum number of causes per batch.")] = 20,
    as_json: Json = False,
) -> None:
    """Show why items fail: one line per cause, the cause with the most failed items first.

    ITEMS counts the items with status failed, ATTEMPTS all failed attempts; FIRST and LAST are the ages of the first and the
    last failure. CAUSE is a fingerprint for `list --error` and `retry --error`, EXAMPLE an item id for `show`. Read-only.
    """
    causes = ask(db, lambda control: control.failures(batch, limit=limit))
    if as_json:
        print_json({"causes": causes})
    elif causes:
        print_lines(_cause_lines(causes, time.time()))
    else:
        print_lines(["no failures"])


def _cause_lines(causes: Sequence[FailureCause], now: float) -> list[str]:
    several = len({cause.batch for cause in causes}) > 1
    columns = [
        Column("items", right=True), Column("attempts", right=True, spare=1), Column("first", right=True, spare=3),
        Column("last", right=True, spare=2), Column("cause"), Column("example", spare=4, limit=24), Column("error"),
    ]  # fmt: skip
    rows: list[list[object]] = [
        [
            f"{cause.items:,}", f"{cause.attempts:,}", _ago(cause.first_seen, now), _ago(cause.last_seen, now),
            cause.fingerprint or "-", cause.example, cause.error,
        ]
        for cause in causes
    ]  # fmt: skip
    if several:
        columns.insert(0, Column("batch", limit=30))
        rows = [[cause.batch, *row] for cause, row in zip(causes, rows, strict=True)]
    return table(columns, rows, terminal_width())


def _ago(text: str | None, now: float) -> str:
    at = from_text(text)
    return "-" if at is None else duration_text(max(0.0, now - at))


def show_stuck(
    db: Db = Path(DEFAULT_DB),
    batch: BatchOption = None,
    older_than: Annotated[
        str, typer.Option(envvar=env("older_than"), help="Minimum time an item has been processing (90s, 15m, 12h).")
    ] = "5m",
    limit: Annotated[int, typer.Option("--limit", "-n", envvar=env("limit"), help="Maximum number of items.")] = 50,
    as_json: Json = False,
) -> None:
    """Show items that have been processing for a long time, and whether their worker is alive.

    Read-only. Items of a dead worker are recovered by the next live worker, or with `recover`. For an item of a live worker,
    `cancel ID` cancels the item; `recover WORKER` takes all items from that worker, so that they run again.
    """
    items = ask(db, lambda control: control.stuck(batch, longer_than=age(older_than, option="--older-than"), limit=limit))
    if as_json:
        print_json({"stuck": items})
    elif items:
        print_lines(_stuck_lines(items))
    else:
        print_lines([f"no item has been processing for {safe_text(older_than)}"])


def _stuck_lines(items: Sequence[Stuck]) -> list[str]:
    columns = [Column("id"), Column("for", right=True), Column("attempt", right=True, spare=2), Column("worker", spare=1),
               Column("alive"), Column("batch")]  # fmt: skip
    rows = [
        (each.id, duration_text(each.seconds), each.attempts, each.worker_id, _yes_no(each.worker_alive), each.batch)
        for each in items
    ]
    return table(columns, rows, terminal_width())


def _yes_no(alive: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[alive]


def show_workers(db: Db = Path(DEFAULT_DB), batch: BatchOption = None, as_json: Json = False) -> None:
    """Show the workers of a file: whether they are alive, their slots, claimed items and totals.

    Read-only. With --batch, only workers that hold items of that batch.
    """
    workers = ask(db, lambda control: control.workers(batch))
    if as_json:
        print_json({"workers": workers})
    elif workers:
        print_lines(worker_lines(workers, terminal_width()))
    else:
        print_lines(["no workers: nothing is running on this file" if batch is None else "no worker holds items of the batch"])


def worker_lines(workers: Sequence[WorkerStatus], width: int | None) -> list[str]:
    """Return a heading and one line per worker."""
    columns = [Column("worker", spare=3), Column("pid", right=True), Column("host", spare=4, limit=24), Column("alive"),
               Column("slots", right=True), Column("holds", right=True, spare=1), Column("done", right=True),
               Column("failed", right=True), Column("heartbeat", right=True)]  # fmt: skip
    rows = [
        (
            each.worker_id, each.pid, each.host, _yes_no(each.alive), f"{each.slots_in_use}/{each.slots}", f"{each.holding:,}",
            f"{each.items_processed:,}", f"{each.items_failed:,}", f"{duration_text(each.heartbeat_age)} ago",
        )
        for each in workers
    ]  # fmt: skip
    return table(columns, rows, width)
