"""The server that the tests of this folder share."""

from __future__ import annotations

import os

import pytest

from tests.support.postgres_server import MISSING, available, shared_dsn


@pytest.fixture
def server_dsn() -> str:
    """The URL of a running server; without one the test is skipped, in CI it fails."""
    if not available() and "CI" not in os.environ:
        pytest.skip(MISSING)
    return shared_dsn()
