"""``list``, ``show``, ``failures``, ``stuck`` and ``workers``: print items and workers of a file, as text or JSON."""

from __future__ import annotations

import time
from typing import Annotated, Final

from asyncrunner.admin.inspection.inspection import Inspection
from asyncrunner.admin.read_models import ItemPage, Stuck
from asyncrunner.backends import shown_location
from asyncrunner.cli.command import Argument, BatchOption, Db, ErrorOption, Ids, Json, Option, command, env
from asyncrunner.cli.completers import item_ids, one_of
from asyncrunner.cli.render.inspect import cause_lines, item_lines, page_lines, searched_line, stuck_lines, worker_lines
from asyncrunner.cli.render.tables import terminal_width
from asyncrunner.cli.session import all_ids, print_ids, print_json, print_lines, print_note, require_batch, with_inspection
from asyncrunner.domain import DEFAULT_DB
from asyncrunner.domain.item import Status
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.durations import age
from asyncrunner.text.escaping import safe_text

_MAX_IDS: Final = 100_000_000  # no file has as many items


@command(
    examples=[
        "list --status failed --error 'timed out*example.com'",
        "list --contains '\"tenant\":42' --newest",
        "list --status failed --ids | asyncrunner retry -",
    ]
)
def list_items(
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    status: Annotated[
        str | None,
        Option(
            envvar=env("status"),
            help="Only pending, processing, completed, failed or cancelled items. [default: all]",
            complete=one_of(Status),
        ),
    ] = None,
    error: ErrorOption = None,
    older_than: Annotated[
        str | None,
        Option(
            envvar=env("older_than"),
            help="Only items that ended, started or, if pending, were added longer ago than this (90s, 15m, 12h, 30d).",
        ),
    ] = None,
    contains: Annotated[
        str | None,
        Option(
            envvar=env("contains"),
            help="Only items with this text (* matches anything) in their id, payload, result or error, the newest first.",
        ),
    ] = None,
    newest: Annotated[bool, Option("--newest", envvar=env("newest"), help="The newest items first.")] = False,
    limit: Annotated[
        int | None, Option("--limit", "-n", envvar=env("limit"), help="Maximum number of items. [default: 50; all with --ids]")
    ] = None,
    after: Annotated[
        str | None,
        Option(envvar=env("after"), help="Continue after the item with this id; the last line of a page has the id."),
    ] = None,
    ids: Ids = False,
    as_json: Json = False,
) -> None:
    """List items of a batch in input order, or the newest first, with the start of their payloads and without results.

    --contains looks at the newest 10,000 items that the other options select, or at fewer if these have more than 100
    MB. A note says how many it looked at; --after continues with older ones. It does not see results of more than 2 MB.

    With --ids, all ids are printed, one per line, and with --contains all that one search finds. Read-only; works while
    workers run. With several batches, --batch is required.
    """
    if ids and as_json:
        raise ConfigurationError("give either --ids or --json")
    seconds = None if older_than is None else age(older_than, option="--older-than")

    async def page_of(inspection: Inspection) -> ItemPage:
        return await inspection.items(
            batch,
            status=status,
            error=error,
            older_than=seconds,
            contains=contains,
            newest=newest,
            limit=limit if limit is not None else _MAX_IDS if ids else 50,
            after=after,
        )

    if ids and limit is None and after is None and contains is None:
        print_ids(
            with_inspection(
                db,
                lambda inspection: all_ids(inspection.ids(batch, status=status, error=error, older_than=seconds, newest=newest)),
            )
        )
        return
    page = with_inspection(db, page_of)
    if as_json:
        print_json(page)
        return
    if not ids:
        print_lines(page_lines(page, terminal_width()))
    if page.looked_at is not None:
        print_note(searched_line(page, status, after))
    elif not page.items:
        print_note("no matching items")
    elif page.after is not None:
        print_note(f"more items: add --after {safe_text(page.after)}")
    if ids:
        print_ids(item.id for item in page.items)


@command(examples=["show welcome-42"])
def show_item(
    id: Annotated[str, Argument("ID", help="The item's id.", complete=item_ids)],  # noqa: A002 - its name in the help
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    as_json: Json = False,
) -> None:
    """Show everything about an item: payload, result, timeline, and every failed attempt with its traceback.

    Each attempt has its start and its duration. Of a payload, result or checkpoint of more than 64 kB only the start is
    read; the output has its size, and the command that prints the whole value. Read-only. With several batches, all are
    searched for the item; --batch is required if more than one has it.
    """
    item = with_inspection(db, lambda inspection: inspection.show(id, batch))
    if as_json:
        print_json(item)
    else:
        print_lines(list(item_lines(item, shown_location(db), time.time())))


@command(examples=["failures --db jobs.db", "failures --ids --error 3f9a6c1e | asyncrunner retry -"])
def show_failures(
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    limit: Annotated[int, Option("--limit", "-n", envvar=env("limit"), help="Maximum number of causes per batch.")] = 20,
    ids: Annotated[
        bool, Option("--ids", envvar=env("ids"), help="Print only the ids of the failed items, one per line.")
    ] = False,
    error: Annotated[
        str | None, Option(envvar=env("error"), help="With --ids: only items with this cause, or with this text in their error.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show why items fail: one line per cause, the cause with the most failed items first.

    ITEMS counts the items with status failed, ATTEMPTS all failed attempts; FIRST and LAST are the ages of the first
    and the last failure. CAUSE is a fingerprint for `list --error` and `retry --error`, EXAMPLE an item id for `show`.
    If a batch has more than --limit causes, those with the same type of error and the same place share a line: CAUSE is
    their number, and ERROR a pattern for --error. The last line counts what is not shown. With several batches, all are
    shown. Read-only.

    With --ids, the ids of all failed items are printed, or of those that --error selects; with several batches, --batch
    is required.
    """
    if ids and as_json:
        raise ConfigurationError("give either --ids or --json")
    if error is not None and not ids:
        raise ConfigurationError("--error needs --ids; `list --error` lists the items")
    if ids:
        print_ids(with_inspection(db, lambda inspection: all_ids(inspection.ids(batch, status="failed", error=error))))
        return
    causes = with_inspection(db, lambda inspection: inspection.failures(batch, limit=limit))
    if as_json:
        print_json({"causes": causes, "more_causes": causes.more_causes, "more_items": causes.more_items})
    elif causes:
        print_lines(cause_lines(causes, time.time(), terminal_width()))
    else:
        print_lines(["no failures"])


@command(examples=["stuck --older-than 15m", "stuck --older-than 1h --ids | asyncrunner cancel -"])
def show_stuck(
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    older_than: Annotated[
        str, Option(envvar=env("older_than"), help="Minimum time an item has been processing (90s, 15m, 12h).")
    ] = "5m",
    limit: Annotated[
        int | None, Option("--limit", "-n", envvar=env("limit"), help="Maximum number of items. [default: 50; all with --ids]")
    ] = None,
    ids: Ids = False,
    as_json: Json = False,
) -> None:
    """Show items that have been processing for a long time, and whether their worker is alive.

    Read-only. Items of a dead worker are recovered by the next live worker, or with `recover`. For an item of a live
    worker, `cancel ID` cancels the item, and `recover WORKER` takes all items from that worker, so that they run again.
    With several batches, the items of all are shown; with --ids, --batch is required then.
    """
    if ids and as_json:
        raise ConfigurationError("give either --ids or --json")
    seconds = age(older_than, option="--older-than")

    async def stuck_items(inspection: Inspection) -> list[Stuck]:
        if ids:
            await require_batch(inspection, batch)
        most = limit if limit is not None else _MAX_IDS if ids else 50
        return await inspection.stuck(batch, older_than=seconds, limit=most)

    items = with_inspection(db, stuck_items)
    if ids:
        print_ids(item.id for item in items)
    elif as_json:
        print_json({"stuck": items})
    elif items:
        print_lines(stuck_lines(items, terminal_width()))
    else:
        print_lines([f"no item has been processing for longer than {safe_text(older_than)}"])


@command(examples=["workers --json"])
def show_workers(
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    ids: Annotated[bool, Option("--ids", envvar=env("ids"), help="Print only the ids of the workers, one per line.")] = False,
    as_json: Json = False,
) -> None:
    """Show the workers: whether they are alive, their slots, claimed items and totals.

    Read-only. With several batches, the workers of all are shown; with --batch, only workers that hold items of that
    batch. ATTEMPTS and FAILED count attempts, not items.
    """
    if ids and as_json:
        raise ConfigurationError("give either --ids or --json")
    workers = with_inspection(db, lambda inspection: inspection.workers(batch))
    if ids:
        print_ids(worker.worker_id for worker in workers)
    elif as_json:
        print_json({"workers": workers})
    elif workers:
        print_lines(worker_lines(workers, terminal_width()))
    else:
        print_lines(["no workers: nothing is running here" if batch is None else "no worker holds items of the batch"])
