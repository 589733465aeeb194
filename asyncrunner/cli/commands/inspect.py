"""``list``, ``show``, ``failures``, ``stuck`` and ``workers``: print items and workers of a file, as text or JSON."""

from __future__ import annotations

import time
from typing import Annotated

from asyncrunner.cli.command import Argument, BatchOption, Db, Json, Option, command, env
from asyncrunner.cli.render.inspect import cause_lines, item_lines, page_lines, stuck_lines, worker_lines
from asyncrunner.cli.render.tables import terminal_width
from asyncrunner.cli.session import print_json, print_lines, print_note, with_control
from asyncrunner.domain.options import DEFAULT_DB
from asyncrunner.text.durations import age
from asyncrunner.text.escaping import safe_text


@command(examples=["list --status failed --error 'timed out*example.com'", "list --status processing --older-than 10m"])
def list_items(
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    status: Annotated[
        str | None,
        Option(envvar=env("status"), help="Only pending, processing, completed, failed or cancelled items. [default: all]"),
    ] = None,
    error: Annotated[
        str | None,
        Option(
            envvar=env("error"),
            help="Only failed items (or those with --status) whose error contains this text (* matches anything) or cause.",
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        Option(
            envvar=env("older_than"),
            help="Only items that ended, started or, if pending, were added longer ago than this (90s, 15m, 12h, 30d).",
        ),
    ] = None,
    limit: Annotated[int, Option("--limit", "-n", envvar=env("limit"), help="Maximum number of items.")] = 50,
    after: Annotated[
        str | None,
        Option(envvar=env("after"), help="Continue after the item with this id; the last line of a page has the id."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List items of a batch in input order, without their payloads and results.

    Read-only; works while workers run. With several batches, --batch is required.
    """
    seconds = None if older_than is None else age(older_than, option="--older-than")
    page = with_control(
        db,
        lambda control: control.items(batch, status=status, error=error, older_than=seconds, limit=limit, after=after),
    )
    if as_json:
        print_json(page)
        return
    print_lines(page_lines(page, terminal_width()))
    if not page.items:
        print_note("no matching items")
    elif page.after is not None:
        print_note(f"more items: add --after {safe_text(page.after)}")


@command(examples=["show welcome-42"])
def show_item(
    id: Annotated[str, Argument("ID", help="The item's id.")],  # noqa: A002 - its name in the help
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    as_json: Json = False,
) -> None:
    """Show everything about an item: payload, result, timeline, and every failed attempt with its traceback.

    Read-only. With several batches, all are searched for the item; --batch is required if more than one has it.
    """
    item = with_control(db, lambda control: control.show(id, batch))
    if as_json:
        print_json(item)
    else:
        print_lines(list(item_lines(item, db, time.time())))


@command(examples=["failures --db jobs.db"])
def show_failures(
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    limit: Annotated[int, Option("--limit", "-n", envvar=env("limit"), help="Maximum number of causes per batch.")] = 20,
    as_json: Json = False,
) -> None:
    """Show why items fail: one line per cause, the cause with the most failed items first.

    ITEMS counts the items with status failed, ATTEMPTS all failed attempts; FIRST and LAST are the ages of the first
    and the last failure. CAUSE is a fingerprint for `list --error` and `retry --error`, EXAMPLE an item id for `show`.
    If a batch has more than --limit causes, those with the same type of error and the same place share a line: CAUSE is
    their number, and ERROR a pattern for --error. The last line counts what is not shown. With several batches, all are
    shown. Read-only.
    """
    causes = with_control(db, lambda control: control.failures(batch, limit=limit))
    if as_json:
        print_json({"causes": causes, "more_causes": causes.more_causes, "more_items": causes.more_items})
    elif causes:
        print_lines(cause_lines(causes, time.time(), terminal_width()))
    else:
        print_lines(["no failures"])


@command(examples=["stuck --older-than 15m"])
def show_stuck(
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    older_than: Annotated[
        str, Option(envvar=env("older_than"), help="Minimum time an item has been processing (90s, 15m, 12h).")
    ] = "5m",
    limit: Annotated[int, Option("--limit", "-n", envvar=env("limit"), help="Maximum number of items.")] = 50,
    as_json: Json = False,
) -> None:
    """Show items that have been processing for a long time, and whether their worker is alive.

    Read-only. Items of a dead worker are recovered by the next live worker, or with `recover`. For an item of a live
    worker, `cancel ID` cancels the item, and `recover WORKER` takes all items from that worker, so that they run again.
    With several batches, the items of all are shown.
    """
    seconds = age(older_than, option="--older-than")
    items = with_control(db, lambda control: control.stuck(batch, longer_than=seconds, limit=limit))
    if as_json:
        print_json({"stuck": items})
    elif items:
        print_lines(stuck_lines(items, terminal_width()))
    else:
        print_lines([f"no item has been processing for longer than {safe_text(older_than)}"])


@command(examples=["workers --json"])
def show_workers(db: Db = DEFAULT_DB, batch: BatchOption = None, as_json: Json = False) -> None:
    """Show the workers of a file: whether they are alive, their slots, claimed items and totals.

    Read-only. With several batches, the workers of all are shown; with --batch, only workers that hold items of that
    batch. ATTEMPTS and FAILED count attempts, not items.
    """
    workers = with_control(db, lambda control: control.workers(batch))
    if as_json:
        print_json({"workers": workers})
    elif workers:
        print_lines(worker_lines(workers, terminal_width()))
    else:
        print_lines(["no workers: nothing is running on this file" if batch is None else "no worker holds items of the batch"])
