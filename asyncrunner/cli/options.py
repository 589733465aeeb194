"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer


def env(name: str) -> str:
    """Return the environment variable that also sets the option *name*."""
    return f"ASYNCRUNNER_{name.upper()}"


Db = Annotated[str, typer.Option("--db", envvar=env("db"), help="The SQLite file that stores the items.")]

BatchOption = Annotated[
    str | None, typer.Option("--batch", "-b", envvar=env("batch"), help="Name of the batch. [default: the only one, or all]")
]

Json = Annotated[bool, typer.Option("--json", envvar=env("json"), help="Print one JSON document on stdout.")]
