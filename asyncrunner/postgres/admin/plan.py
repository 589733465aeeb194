"""Read the stored items that the input of a dry run names. The store is read for a chunk of keys at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from asyncrunner.domain.item import Status
from asyncrunner.postgres import sql
from asyncrunner.serialization.keys import is_same_json
from asyncrunner.store.snapshot import KnownItem

if TYPE_CHECKING:
    from asyncpg import Connection, Record

    from asyncrunner.domain.item import NewItem


async def match_input(
    connection: Connection[Record], batch_id: int, entries: Sequence[NewItem], version: str | None
) -> dict[str, KnownItem]:
    """Return the items of a batch that have a key of *entries*, by key, as a run with *version* would find them."""
    payloads = {entry.id: entry.payload for entry in entries}
    rows = await connection.fetch(sql.admin.KNOWN_ITEMS, batch_id, list(payloads), version)
    return {
        key: KnownItem(Status(status), is_permanent, attempts, not is_same_json(payload, payloads[key]), is_other)
        for key, payload, status, is_permanent, attempts, is_other in rows
    }


async def count_reopenable(connection: Connection[Record], batch_id: int, max_attempts: int) -> int:
    """Return how many failed items have fewer than *max_attempts* attempts and no permanent error."""
    count: int = await connection.fetchval(sql.admin.REOPENABLE, batch_id, max_attempts)
    return count


async def count_other_version(connection: Connection[Record], batch_id: int, version: str) -> int:
    """Return how many items a run with *version* would run again, because another version completed them."""
    row = await connection.fetchrow(sql.admin.VERSION, batch_id)
    if row is None:  # deleted meanwhile
        return 0
    current, number, applied, completed = row
    if current != version:
        return int(completed)
    if applied == number:
        return 0
    count: int = await connection.fetchval(sql.admin.OF_OTHER_VERSION, batch_id, number)
    return count
