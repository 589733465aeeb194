"""The command ``restore``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from asyncrunner.backends import open_maintenance
from asyncrunner.cli.command import Db, Json, command
from asyncrunner.cli.session import print_json, print_lines
from asyncrunner.domain.options import DEFAULT_DB
from asyncrunner.text.escaping import safe_text


@command("restore", "Put a backup in place of a file.", "restore jobs-monday.db --db jobs.db")
def restore(
    backup: Annotated[Path, typer.Argument(metavar="BACKUP", help="Path of the backup; it stays.", show_default=False)],
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Put a copy of a backup in place of a file, and delete the -wal and -shm of the old file.

    Stop every program that uses the file first: while one uses it, the command refuses and changes nothing. The backup
    is checked completely before that. The old file stays beside the new one as NAME.replaced-TIME, with its -wal;
    delete both when you do not need them. After a kill, run the command again. Do not copy a backup over a file
    yourself: SQLite would apply the -wal of the old file to the backup.
    """
    restored = asyncio.run(open_maintenance(db).restore(backup))
    if as_json:
        print_json({"db": db, "backup": str(backup), "bytes": restored.size, "replaced": restored.replaced})
        return
    old = "" if restored.replaced is None else f"; the old file is {safe_text(restored.replaced)}"
    print_lines([f"{safe_text(db)}: restored {safe_text(backup)}, {restored.size / 1e6:,.1f} MB{old}"])
