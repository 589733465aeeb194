"""One store of each kind, with a clock that the test controls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncrunner.store.protocols import Store
from asyncrunner.testing import FakeClock
from tests.contract.stores import ADMIN_STORES, NOW, STORES, Both, parameters


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture(params=parameters(STORES))
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> AsyncIterator[Store]:
    made = STORES[request.param](tmp_path, clock)
    await made.open()
    yield made
    await made.close()


@pytest.fixture(params=parameters(ADMIN_STORES))
async def both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Both]:
    clock = FakeClock(NOW)
    engine, admin = STORES[request.param](tmp_path, clock), ADMIN_STORES[request.param](tmp_path, clock)
    await engine.open()
    try:
        await admin.open()
        yield Both(engine, admin, clock)
    finally:
        await admin.close()
        await engine.close()
