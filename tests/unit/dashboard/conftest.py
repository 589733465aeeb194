"""What the tests of the dashboard share: a store with items in every state, and visitors of its dashboard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from asyncrunner.dashboard import Dashboard, dashboard
from asyncrunner.dashboard.app import TOKEN_VARIABLE
from tests.support.files import make_store
from tests.unit.dashboard.browser import TOKEN, Visitor

Open = Callable[..., Dashboard]
Visit = Callable[..., Visitor]


@pytest.fixture
def made(db: str) -> str:
    """The location of a store with items in every state."""
    make_store(db)
    return db


@pytest.fixture
async def open_dashboard(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """``open_dashboard(db, **options)``: a dashboard with the tests' token, unless ``allow`` is given; closed after the test."""
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    opened: list[Dashboard] = []

    def make(db: str, **options: Any) -> Dashboard:
        token = {} if "allow" in options else {"token": TOKEN}
        opened.append(dashboard(db, **(token | options)))
        return opened[-1]

    yield make
    for each in opened:
        each.close_streams()
        await each.close()


@pytest.fixture
async def visit(open_dashboard: Open) -> AsyncIterator[Visit]:
    """``visit(db, **options)``: a browser with the token of a new dashboard."""
    visitors: list[Visitor] = []

    def make(db: str, **options: Any) -> Visitor:
        visitors.append(Visitor(open_dashboard(db, **options)))
        return visitors[-1]

    yield make
    for each in visitors:
        await each.client.aclose()
