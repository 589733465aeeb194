"""A pytest fixture. Say ``pytest_plugins = ["asyncrunner.pytest_plugin"]`` in the top conftest.py; it needs pytest-asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest_asyncio

from asyncrunner.runner import Runner
from asyncrunner.testing import FakeClock, in_memory

__all__ = ["run_in_memory"]


@pytest_asyncio.fixture
async def run_in_memory() -> AsyncGenerator[Callable[[Runner], Awaitable[FakeClock]], None]:
    """``clock = await run_in_memory(runner)``: the runner runs in memory, on that clock, until the test ends."""
    async with AsyncExitStack() as stack:

        async def start(runner: Runner) -> FakeClock:
            return await stack.enter_async_context(in_memory(runner))

        yield start
