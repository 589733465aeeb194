"""What several tests need."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.kinds import KINDS, VARIABLE, chosen
from tests.support.processes import Jobs

# A property test may be slow on a busy machine: by default Hypothesis fails an example that takes more than 200 ms.
settings.register_profile("asyncrunner", settings(), deadline=None)
settings.load_profile("asyncrunner")

pytest_plugins = ["asyncrunner.pytest_plugin"]

Until = Callable[[Callable[[], object]], Awaitable[None]]
NewDb = Callable[[str], str]

TESTS = Path(__file__).parent
ABOUT_THE_FILE = [
    TESTS / name
    for name in (
        "sqlite",
        "crash",  # kills between two system calls on the file, and a storm of changes to it
        "simulation",  # on a simulated disk under SQLite
        "benchmarks",
        "docs",  # the documentation's programs, which name files
        "examples",  # the same for the examples
        "neighbours",  # other packages on the file
        "unit/serialization/test_golden_fingerprints.py",  # as files of earlier versions have them
    )
]
"""Folders and files whose tests are all about the SQLite file, or run programs that name one."""

WITH_A_FILE = {"file", "folder", "jobs", "poisoned"}
"""Fixtures of tests that start programs with the name of a file."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store", choices=list(KINDS), default="sqlite", help="the kind of store that the tests run on")


def pytest_configure(config: pytest.Config) -> None:
    os.environ[VARIABLE] = config.getoption("--store")
    if (missing := chosen().missing()) is not None:
        raise pytest.UsageError(missing)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of whole folders, and leave out the tests about the file if another kind of store is chosen.

    The simulation runs first: it takes minutes, and no other process would have a test left to run beside its end.
    """
    items.sort(key=lambda item: not item.path.is_relative_to(TESTS / "simulation"))
    for item in items:
        with_a_file = WITH_A_FILE.intersection(getattr(item, "fixturenames", ()))
        if with_a_file or any(item.path.is_relative_to(folder) for folder in ABOUT_THE_FILE):
            item.add_marker(pytest.mark.sqlite_file)
    if config.getoption("--store") != "sqlite":
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("sqlite_file")])
        items[:] = [item for item in items if not item.get_closest_marker("sqlite_file")]


@pytest.fixture(autouse=True)
def no_store_stays() -> Iterator[None]:
    """Remove the stores of a test that would stay on a server."""
    yield
    for kind in KINDS.values():
        kind.remove()


@pytest.fixture
def new_db(tmp_path: Path) -> NewDb:
    """``new_db(name)``: the location of one more store that does not exist yet."""
    return lambda name: chosen().new_location(tmp_path, name)


@pytest.fixture
def db(tmp_path: Path) -> str:
    """The location of a store that does not exist yet, of the kind that ``--store`` chooses."""
    return chosen().new_location(tmp_path, "jobs.db")


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
