"""The command ``export``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from asyncrunner.admin.arguments import statuses_of
from asyncrunner.admin.control import Control
from asyncrunner.admin.exports.fields import Fields, chosen_fields
from asyncrunner.admin.exports.formats import FORMATS, ItemWriter, format_of, writer_of
from asyncrunner.admin.opened_file import OnProgress
from asyncrunner.cli.command import Argument, BatchOption, Db, ErrorOption, Option, command, env
from asyncrunner.cli.completers import files, one_of
from asyncrunner.cli.session import end_without_ids, print_json, print_note, read_ids, with_progress
from asyncrunner.domain import DEFAULT_DB
from asyncrunner.domain.item import Status
from asyncrunner.errors import AsyncRunnerError
from asyncrunner.text.atomic_file import draft_of, publish
from asyncrunner.text.escaping import counted, safe_text


@command(
    examples=[
        "export failed.csv --status failed",
        "export --format jsonl | gzip > items.jsonl.gz",
        "export refused.csv --error ConnectionError --flatten --fields id,payload,error",
        "export --id welcome-42 --fields result",
    ]
)
def export(
    file: Annotated[str, Argument("FILE", help="Path of a new file, or - for stdout.", complete=files)] = "-",
    db: Db = DEFAULT_DB,
    batch: BatchOption = None,
    status: Annotated[
        list[str] | None,
        Option(
            envvar=env("status"), help="Only items with this status; may be repeated. [default: all]", complete=one_of(Status)
        ),
    ] = None,
    error: ErrorOption = None,
    ids: Annotated[
        list[str] | None,
        Option("--id", envvar=env("id"), help="Only the item with this id; may be repeated. - reads one id per line from stdin."),
    ] = None,
    fields: Annotated[
        str | None,
        Option(
            envvar=env("fields"), help="Only these fields, as in id,result,payload.user.name. [default: all fields of an item]"
        ),
    ] = None,
    flatten: Annotated[
        bool,
        Option(
            "--flatten", envvar=env("flatten"), help="A field for each value in JSON objects, with a name like payload.user.name."
        ),
    ] = False,
    item_format: Annotated[
        str | None,
        Option(
            "--format",
            envvar=env("export_format"),
            help=f"{', '.join(FORMATS)}. [default: by the file name, else jsonl]",
            complete=one_of(FORMATS),
        ),
    ] = None,
    as_json: Annotated[
        bool,
        Option("--json", envvar=env("json"), help="Print the number of items as JSON, on stderr if the items go to stdout."),
    ] = False,
) -> None:
    """Export the items of a batch with payloads, results and errors, in input order.

    --fields and --flatten read the JSON of payloads, results and checkpoints; a number is the position in an array. A
    flattened CSV has a column for each value that some item has, so it is written when the last item has been read.
    With several batches, --batch is required.
    Workers may run meanwhile: each item is exported in its state at the time when it is read. The new file is readable
    only by its owner, gets its name only when it is complete, and never replaces a file. In CSV, text that a
    spreadsheet would run as a formula gets an apostrophe in front. Parquet needs pip install 'asyncrunner[parquet]'.
    """
    target = None if file == "-" else Path(file)
    statuses = None if not status else statuses_of(status)
    named = read_ids(ids)
    end_without_ids(
        named, ({"items": 0} if target is None else {"file": None, "items": 0}) if as_json else None, effect="exported"
    )
    chosen = chosen_fields(None if fields is None else [each.strip() for each in fields.split(",")], flatten=flatten)

    async def write(control: Control, on_progress: OnProgress, writer: ItemWriter) -> int:
        count = 0
        try:
            pages = control.export_pages(batch, status=statuses, error=error, ids=named, on_progress=on_progress)
            async for page in pages:
                writer.write(page)
                count += len(page)
            writer.close()
        finally:
            writer.discard()
        return count

    try:
        if target is None:
            sys.stdout.flush()
            writer = writer_of(format_of(item_format, None), sys.stdout.buffer, is_terminal=sys.stdout.isatty(), fields=chosen)
            count = with_progress(db, lambda control, step: write(control, step, writer))
            sys.stdout.buffer.flush()
        else:
            count = _export_to(
                target, item_format, chosen, lambda writer: with_progress(db, lambda control, step: write(control, step, writer))
            )
    except BrokenPipeError:
        raise
    except OSError as failure:
        raise AsyncRunnerError(f"the export could not be written ({failure.strerror}); the items are unchanged") from failure
    _report_export(count, target, as_json=as_json)


def _export_to(target: Path, item_format: str | None, fields: Fields, write: Callable[[ItemWriter], int]) -> int:
    draft = draft_of(target)
    try:
        with draft.open("wb") as out:
            count = write(writer_of(format_of(item_format, target), out, fields=fields))
            out.flush()
            os.fsync(out.fileno())
        publish(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return count


def _report_export(count: int, target: Path | None, *, as_json: bool) -> None:
    if not as_json:
        print_note(f"{counted(count, 'item')} exported" + ("" if target is None else f" to {safe_text(target)}"))
    elif target is None:
        print_note(f'{{"items":{count}}}')
    else:
        print_json({"file": str(target), "items": count})
