"""The server that the tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest

from asyncrunner.backends import open_engine
from asyncrunner.store.protocols import Store
from tests.support.postgres_server import MISSING, available, shared_dsn
from tests.support.tcp_proxy import TcpProxy


@pytest.fixture
def server_dsn() -> str:
    """The URL of a running server; without one the test is skipped, in CI it fails."""
    if not available() and "CI" not in os.environ:
        pytest.skip(MISSING)
    return shared_dsn()


@pytest.fixture
def proxy(server_dsn: str) -> Iterator[TcpProxy]:
    """A network with faults that the test chooses, between its clients and the server."""
    parts = urlsplit(server_dsn)
    assert parts.hostname is not None
    assert parts.port is not None
    with TcpProxy((parts.hostname, parts.port)) as made:
        yield made


@pytest.fixture
async def store(proxy: TcpProxy, db: str) -> AsyncIterator[Store]:
    """An open store on the test's location ``db``, behind the proxy."""
    made = open_engine(proxy.url(db))
    await made.open()
    yield made
    await made.close()
