"""The changes that operators make to items and batches."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import msgspec

from asyncrunner.sqlite import sql
from asyncrunner.text.timestamps import to_text

if TYPE_CHECKING:
    from collections.abc import Sequence


def retry(connection: sqlite3.Connection, seqs: Sequence[int]) -> int:
    """Reset failed and cancelled items to pending with no attempts; return how many were failed or cancelled."""
    return connection.execute(sql.admin.RETRY, (_json(seqs),)).rowcount


def cancel(connection: sqlite3.Connection, seqs: Sequence[int], now: float, *, pending_only: bool) -> int:
    """Cancel pending and processing items, also those that a worker holds; return how many were cancelled.

    With *pending_only*, processing items are not cancelled. *now* is in seconds since the epoch, here and below.
    """
    statement = sql.admin.CANCEL_PENDING if pending_only else sql.admin.CANCEL
    return connection.execute(statement, (to_text(now), _json(seqs))).rowcount


def pause(connection: sqlite3.Connection, batch_id: int) -> int:
    """Pause a batch, so that no worker starts more of its items; return 1, or 0 if it was already paused."""
    return connection.execute(sql.admin.PAUSE, (batch_id,)).rowcount


def resume(connection: sqlite3.Connection, batch_id: int, now: float) -> int:
    """End a batch's pause, its stop by a limit and its cool-down; return 1, or 0 if it had none of them."""
    return connection.execute(sql.admin.RESUME, (batch_id, to_text(now))).rowcount


def set_concurrency(connection: sqlite3.Connection, batch_id: int, concurrency: int | None) -> int:
    """Set how many handlers of the batch run at the same time in one worker; None restores the program's own setting.

    Returns 0 if the batch is gone.
    """
    return connection.execute(sql.admin.SET_CONCURRENCY, (concurrency, batch_id)).rowcount


def _json(seqs: Sequence[int]) -> str:
    return msgspec.json.encode(list(seqs)).decode()
