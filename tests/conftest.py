"""What several tests need."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import Jobs

pytest_plugins = ["asyncrunner.pytest_plugin"]

Until = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """The path of a database that is not there yet."""
    return tmp_path / "jobs.db"


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    """Real processes in a folder; none of them outlives the test."""
    made = Jobs(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def until() -> Until:
    """``await until(lambda: condition)``: wait for it, at most 20 s; then the test fails."""

    async def wait(condition: Callable[[], object]) -> None:
        give_up_at = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < give_up_at, "what the test waits for did not happen"
            await asyncio.sleep(0.002)

    return wait
