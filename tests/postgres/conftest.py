"""The server that the tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

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
