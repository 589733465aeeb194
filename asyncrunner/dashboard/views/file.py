"""The page of the file or the server: its size, and what an operator does with it as a whole."""

from __future__ import annotations

from pathlib import Path

from asyncrunner.backends import is_server, shown_location
from asyncrunner.dashboard.fields import Fields
from asyncrunner.dashboard.reads import Reads
from asyncrunner.dashboard.views.view import View


async def file(reads: Reads, fields: Fields) -> View:
    """Return the page of the store; it depends on no fields."""
    del fields
    status = await reads.status()
    values = {
        "location": shown_location(reads.db),
        "status": status,
        "sizes": [] if is_server(reads.db) else _sizes(Path(reads.db)),
        "is_server": is_server(reads.db),
        "free": await reads.free_bytes(),
        "batches": [batch.name for batch in status.batches],
    }
    return View("file", "store", status.at, values)


def _sizes(path: Path) -> list[tuple[str, int]]:
    """Return the sizes of the file and of its write-ahead log in bytes."""
    files = [("file", path), ("write-ahead log", path.with_name(f"{path.name}-wal"))]
    return [(name, each.stat().st_size) for name, each in files if each.exists()]
