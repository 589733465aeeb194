"""Provide a pytest fixture; needs pytest-asyncio.

Put ``pytest_plugins = ["asyncrunner.pytest_plugin"]`` in the conftest.py of the root folder.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest_asyncio

from asyncrunner.runner.runner import Runner
from asyncrunner.testing import FakeClock, in_memory

__all__ = ["run_in_memory"]


@pytest_asyncio.fixture
async def run_in_memory() -> AsyncGenerator[Callable[[Runner], Awaitable[FakeClock]], None]:
    """Return a function that starts a runner in memory until the test ends: ``clock = await run_in_memory(runner)``."""
    async with AsyncExitStack() as stack:

        async def start(runner: Runner) -> FakeClock:
            return await stack.enter_async_context(in_memory(runner))

        yield start
