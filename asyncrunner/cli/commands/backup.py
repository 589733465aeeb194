"""The commands ``backup`` and ``restore``: copy a file, and put a copy in its place."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from asyncrunner.backends import open_maintenance
from asyncrunner.cli.command import Argument, Db, Json, Option, command, env
from asyncrunner.cli.completers import batch_names
from asyncrunner.cli.session import print_json, print_lines, with_control
from asyncrunner.domain import DEFAULT_DB
from asyncrunner.text.escaping import safe_text


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
