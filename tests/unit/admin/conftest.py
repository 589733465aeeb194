"""The source and the target of a copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.stores import parameters
from tests.support.files import make_store
from tests.support.kinds import KINDS
from tests.support.state import changing


@pytest.fixture(params=parameters(["sqlite", "postgres"]))
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The location of a store that does not exist, of each kind."""
    kind = KINDS[request.param]
    yield kind.new_location(tmp_path, "target.db")
    kind.remove()


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A file with items in every state, with every column that a copy keeps."""
    db = str(tmp_path / "source.db")
    make_store(db)
    with changing(db) as connection:
        connection.execute("DELETE FROM workers")
        connection.execute(
            "UPDATE items SET priority = 7, due_at = '2099-01-02 03:04:05.678', checkpoint = '{\"page\": 3}', put_offs = 2, "
            "put_off_at = 1800000000.25, traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', version = 4 "
            "WHERE id = 'open-1'"
        )
        connection.execute(
            "UPDATE items SET suspect = 2, crashes = 3, attempts = 3, error = 'WorkerLost: gone' WHERE id = 'open-2'"
        )
        connection.execute(
            "UPDATE batches SET put_offs = 2, concurrency = 3, cooldown_until = '2026-01-01 00:00:00.001', rate_spent = 1.5, "
            "stopped = 'too many failures', version = 'v2', version_number = 4, version_applied = 3"
        )
    return db
