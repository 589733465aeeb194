"""``backup``, ``restore`` and ``copy``: copy a file, put a copy in its place, and copy batches to another file or server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from asyncrunner.admin.read_models import Copied, DeletedCopy
from asyncrunner.backends import open_maintenance, shown_location
from asyncrunner.cli.command import EXIT_FAILED, Argument, Db, Exit, Json, Option, command, env
from asyncrunner.cli.completers import batch_names, files
from asyncrunner.cli.session import print_json, print_lines, print_note, with_control, with_progress
from asyncrunner.domain import DEFAULT_DB
from asyncrunner.text.escaping import counted, safe_text


@command(examples=["backup jobs-monday.db --db jobs.db"])
def backup(
    file: Annotated[Path, Argument("FILE", help="Path of the copy, a new file.")],
    db: Db = DEFAULT_DB,
    batch: Annotated[
        str | None,  # not ASYNCRUNNER_BATCH: a variable that is set for run must not limit the backup to one batch
        Option("--batch", "-b", envvar=env("backup_batch"), help="Only this batch. [default: all]", complete=batch_names),
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy a file as it is at this moment, while workers run.

    The copy is readable only by its owner and gets its name only when it is complete. The copy contains no workers, and
    items that workers hold are pending in the copy, so it can be run anywhere. With several batches, the copy contains
    all; with --batch, the copy contains only that batch. On a server, use pg_dump.
    """
    size = with_control(db, lambda control: control.backup(file, batch))
    if as_json:
        print_json({"file": str(file), "batch": batch, "bytes": size})
    else:
        scope = "" if batch is None else f"only {safe_text(batch)}, "
        print_lines([f"{safe_text(file)}: {scope}{size / 1e6:,.1f} MB"])


@command(examples=["restore jobs-monday.db --db jobs.db"])
def restore(
    backup: Annotated[Path, Argument("BACKUP", help="Path of the backup, which is not changed.")],
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Put a copy of a backup in place of a file, and delete the -wal and -shm of the old file.

    Stop every program that uses the file first: while one uses it, the command refuses and changes nothing. The backup
    is checked completely before that. The old file stays beside the new one as NAME.replaced-TIME, with its -wal;
    delete both when you do not need them. After a kill, run the command again. Do not copy a backup over a file
    yourself: SQLite would apply the -wal of the old file to the backup. On a server, use pg_restore.
    """
    restored = asyncio.run(open_maintenance(db).restore(backup))
    if as_json:
        print_json({"db": db, "backup": str(backup), "bytes": restored.size, "replaced": restored.replaced})
        return
    old = "" if restored.replaced is None else f"; the old file is {safe_text(restored.replaced)}"
    print_lines([f"{safe_text(db)}: restored {safe_text(backup)}, {restored.size / 1e6:,.1f} MB{old}"])


@command(examples=["copy jobs.db postgresql://jobs@db.example.com/work", "copy jobs.db other.db --batch shop"])
def copy(
    source: Annotated[str, Argument("FROM", help="The SQLite file or postgresql:// URL to copy from.", complete=files)],
    target: Annotated[
        str, Argument("TO", help="The SQLite file or postgresql:// URL to copy to; created if missing.", complete=files)
    ],
    batch: Annotated[
        list[str] | None,
        Option(
            "--batch",
            "-b",
            envvar=env("copy_batch"),
            help="Only this batch; may be repeated. [default: all]",
            complete=batch_names,
        ),
    ] = None,
    restart: Annotated[
        bool,
        Option("--restart", envvar=env("restart"), help="Delete incomplete copies of these batches in TO, and copy them again."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy batches from a file to a server, or back, or to another file or server.

    The copy has every item with its state, result, attempts, errors, checkpoint, due time and order. Workers and the
    history are not copied. With several batches, all are copied, or those of --batch. FROM is not changed. Stop its
    workers first: while a live worker serves the batch, the command refuses. Items that dead workers hold are pending
    in the copy, with the attempt refunded.

    Until the copy of a batch is complete, the batch is paused in TO: it can be read and submitted to, but not run or
    changed. After a kill, run the same command again: it continues where it stopped. If TO has another batch of that
    name, the command refuses. At the end, the numbers of items in FROM and TO are compared. Exit code 1: they differ,
    because another program changed the batch during the copy; --restart begins again. It first names how many items it
    deletes in TO, also those that other programs added there. It never deletes a complete copy, or a batch that no copy
    began.
    """
    copied = with_progress(
        source,
        lambda control, on_progress: control.copy(
            target, batch, restart=restart, on_restart=_note_restart, on_progress=on_progress
        ),
    )
    if as_json:
        print_json({"from": shown_location(source), "to": shown_location(target), "batches": copied})
    else:
        print_lines([_copied_line(each) for each in copied] or [f"{safe_text(shown_location(source))} has no batch"])
    for each in copied:
        if each.problem is not None:
            print_note(f"{safe_text(each.batch)}: {safe_text(each.problem, limit=2000)}")
    raise Exit(EXIT_FAILED if any(each.problem is not None for each in copied) else 0)


def _note_restart(deleted: DeletedCopy) -> None:
    added = f", of which other programs added {deleted.added:,}" if deleted.added else ""
    print_note(
        f"{safe_text(deleted.batch)}: deleting the incomplete copy from {safe_text(deleted.source)}: "
        f"{counted(deleted.items, 'item')}{added}"
    )


def _copied_line(copied: Copied) -> str:
    states = ", ".join(f"{count:,} {state}" for state, count in copied.items.items())
    counts = counted(sum(copied.items.values()), "item") + (f" ({states})" if states else "")
    counts += f" and {counted(copied.failures, 'recorded failure')}"
    counts += f"; other programs have added {counted(copied.added, 'item')}" if copied.added else ""
    name = safe_text(copied.batch)
    if copied.copied_before is not None:
        return f"{name}: already copied at {copied.copied_before[:19]} UTC, nothing was changed; the copy has {counts}"
    return f"{name}: {'not completely copied' if copied.problem else 'copied'}: {counts}"
