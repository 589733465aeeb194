"""The command ``backup``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asyncrunner.cli.command import Db, Json, command, env
from asyncrunner.cli.session import print_json, print_lines, with_control
from asyncrunner.domain.options import DEFAULT_DB
from asyncrunner.text.escaping import safe_text


@command("backup", "Copy a file while workers run.", "backup jobs-monday.db --db jobs.db")
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Path of the copy, a new file.", show_default=False)],
    db: Db = DEFAULT_DB,
    batch: Annotated[
        str | None,  # not ASYNCRUNNER_BATCH: a variable that is set for run must not limit the backup to one batch
        typer.Option("--batch", "-b", envvar=env("backup_batch"), help="Only this batch. [default: all]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy a file as it is at this moment, while workers run.

    The copy is readable only by its owner and gets its name only when it is complete. The copy contains no workers, and
    items that workers hold are pending in the copy, so it can be run anywhere. With --batch, the copy contains only
    that batch.
    """
    size = with_control(db, lambda control: control.backup(file, batch))
    if as_json:
        print_json({"file": str(file), "batch": batch, "bytes": size})
    else:
        scope = "" if batch is None else f"only {safe_text(batch)}, "
        print_lines([f"{safe_text(file)}: {scope}{size / 1e6:,.1f} MB"])
