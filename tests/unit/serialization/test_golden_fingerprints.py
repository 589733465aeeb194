"""Fingerprints are stored in files and compared with those of later versions: no change of the code may change them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from asyncrunner import run_batch
from tests.support import golden_handlers
from tests.support.state import execute, rows_of

KINDS = ["value", "library", "chain", "group", "disk"]


async def stored_fingerprints(
    db: Path, handler: Callable[[Any], Any], items: list[str], run_in: Literal["thread", "process"] | None = None
) -> dict[str, str]:
    """Return the stored fingerprint of each failed item of a real run."""
    await run_batch(items, handler, db=db, max_attempts=1, run_in=run_in, progress=False)
    return dict(rows_of(db, "SELECT id, fingerprint FROM items WHERE status = 'failed'"))


async def test_errors_of_a_coroutine(tmp_path: Path) -> None:
    assert await stored_fingerprints(tmp_path / "jobs.db", golden_handlers.fail, KINDS) == {
        "chain": "8d868dad9233ab12",
        "disk": "cc976a7010963e56",
        "group": "0fc7eba2d4799e64",
        "library": "5335eacb8523dbcf",
        "value": "0a265333da5c8d88",
    }


@pytest.mark.parametrize("run_in", ["thread", "process"])
async def test_errors_of_a_function(tmp_path: Path, run_in: Literal["thread", "process"]) -> None:
    handler = golden_handlers.fail_in_function
    assert await stored_fingerprints(tmp_path / "jobs.db", handler, ["value", "library"], run_in) == {
        "library": "5335eacb8523dbcf",
        "value": "2e432174b95f0111",
    }


async def test_results_that_cannot_be_stored(tmp_path: Path) -> None:
    handler = golden_handlers.return_what_cannot_be_stored
    assert await stored_fingerprints(tmp_path / "jobs.db", handler, ["object", "nan", "surrogate"]) == {
        "object": "0da12e4cb3878e35",
        "nan": "c01ba47d5f4211ad",
        "surrogate": "b2fd0e03d04393bb",
    }


async def test_a_payload_that_cannot_be_read(tmp_path: Path) -> None:
    async def store_text(item: str) -> None: ...

    db = tmp_path / "jobs.db"
    await run_batch(["x"], store_text, db=db, batch="b", progress=False)
    execute(db, "UPDATE items SET status = 'pending', payload = '\"seven\"'")
    await run_batch(None, golden_handlers.take_number, db=db, batch="b", max_attempts=1, progress=False)
    assert rows_of(db, "SELECT fingerprint FROM items") == [("2ec8a24d380eeb6a",)]
