"""Named places where a process can be killed. They wrap functions of the library from outside; the library has no code for them."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from typing import Any

from asyncrunner.sqlite.file import opening
from asyncrunner.sqlite.file.connection import Connection
from asyncrunner.sqlite.file.wal import WalCheckpoints
from asyncrunner.sqlite.sql import schema
from asyncrunner.sqlite.store import SQLiteStore

__all__ = ["NAMES", "arm", "reached"]

NAMES = (
    "before the transaction",
    "before the commit",
    "after the commit",
    "turn returned",
    "piece kept",
    "handler returned",
    "before the checkpoint",
    "after the checkpoint",
    "migrated, not committed",
    "before the recovery",
    "after the recovery",
    "joined",
)

_armed: tuple[str, int] | None = None


def reached(name: str) -> None:
    """Report that the point *name* is reached; die if it is the armed one."""
    global _armed
    if _armed is None or _armed[0] != name:
        return
    _armed = (name, _armed[1] - 1)
    if _armed[1] <= 0:
        os.kill(os.getpid(), signal.SIGKILL)


def arm(text: str) -> None:
    """Arm the point ``name:number``: wrap the functions of the library, once per process."""
    global _armed
    name, _, number = text.rpartition(":")
    if name not in NAMES:
        raise ValueError(f"there is no failpoint {name!r}; there are {', '.join(NAMES)}")
    _armed = (name, int(number))
    _wrap_transactions()
    _around(SQLiteStore, "turn", None, "turn returned")
    _around(SQLiteStore, "stage_result", None, "piece kept")
    _around(SQLiteStore, "join", None, "joined")
    _around(SQLiteStore, "recover", "before the recovery", "after the recovery")
    checkpoint: Callable[[WalCheckpoints, sqlite3.Connection], bool] = WalCheckpoints.run

    def checkpointed(self: WalCheckpoints, connection: sqlite3.Connection) -> bool:
        reached("before the checkpoint")
        done = checkpoint(self, connection)
        reached("after the checkpoint")
        return done

    WalCheckpoints.run = checkpointed  # type: ignore[method-assign]
    migrate = schema.migrate

    def migrated(connection: sqlite3.Connection, version: int) -> None:
        migrate(connection, version)
        if version:
            reached("migrated, not committed")

    setattr(opening, "migrate", migrated)  # noqa: B010


class _Raw:
    """A connection that reports its commits."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        if statement == "COMMIT":
            reached("before the commit")
        cursor = self._raw.execute(statement, *parameters)
        if statement == "COMMIT":
            reached("after the commit")
        return cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _wrap_transactions() -> None:
    run = Connection._run_in_transaction

    def run_in_transaction(self: Connection, group: Any) -> None:
        reached("before the transaction")
        raw = self._raw
        assert raw is not None
        self._raw = _Raw(raw)  # type: ignore[assignment]
        try:
            run(self, group)
        finally:
            self._raw = raw

    Connection._run_in_transaction = run_in_transaction  # type: ignore[method-assign]


def _around(owner: Any, name: str, before: str | None, after: str) -> None:
    method = getattr(owner, name)

    async def around(*arguments: Any, **options: Any) -> Any:
        if before is not None:
            reached(before)
        value = await method(*arguments, **options)
        reached(after)
        return value

    setattr(owner, name, around)
