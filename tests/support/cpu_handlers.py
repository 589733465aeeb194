"""Handlers for child processes of runs (``processes=``), which import them by name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path


async def pid_of(number: int) -> int:
    """Wait until two processes have run an item, so that each takes part, and return the id of this one."""
    Path(f"pid-{os.getpid()}").touch()
    while len(list(Path().glob("pid-*"))) < 2:
        await asyncio.sleep(0.005)
    return os.getpid()


async def scaled(number: int, *, factor: int = 1, names: list[str] | None = None) -> list[object]:
    return [number * factor, names]


async def fails(number: int) -> None:
    raise ValueError("no number is right")


async def fails_or_waits(number: int) -> None:
    """Fail for the numbers below 6, and wait for the file "go" for the others."""
    if number < 6:
        raise ValueError("a small number")
    while not Path("go").exists():
        await asyncio.sleep(0.005)


class OddError(Exception):
    pass


def is_odd(error: BaseException) -> bool:
    return "odd" in str(error)


async def fails_once(number: int) -> int:
    """Fail the first attempt of each item, with an error that the type or the message names."""
    mark = Path(f"failed-{number}")
    if not mark.exists():
        mark.touch()
        raise OddError("odd")
    return number


@asynccontextmanager
async def counted_setup() -> AsyncGenerator[str]:
    """Note in a file that this process has entered and left the context manager."""
    with Path("setup").open("a") as file:
        file.write(f"enter {os.getpid()}\n")
    yield f"of {os.getpid()}"
    with Path("setup").open("a") as file:
        file.write(f"leave {os.getpid()}\n")


async def with_setup(number: int, value: str) -> str:
    await pid_of(number)
    return value


@asynccontextmanager
async def failing_setup() -> AsyncGenerator[None]:
    raise ConnectionError("the service is away")
    yield


@asynccontextmanager
async def unclosable() -> AsyncGenerator[str]:
    yield "value"
    raise OSError("cannot be closed")


def no_manager() -> int:
    return 3


async def with_value(number: int, value: str) -> int:
    return number


def in_thread(number: int) -> int:
    return os.getpid()


class Methods:
    async def handle(self, number: int) -> int:
        return number

    async def __call__(self, number: int) -> int:
        return number


async def leaves(number: int) -> int:
    """End the process at the first attempt of item 3, with the exit code of success."""
    mark = Path("left")
    if number == 3 and not mark.exists():
        mark.touch()
        os._exit(0)
    return number


_failed: list[int] = []


async def fails_five_times_in_each_process(number: int) -> None:
    """Let the first five items of this process fail, once two processes take part; the others complete slowly."""
    await pid_of(number)
    if len(_failed) < 5:
        _failed.append(number)
        raise ValueError("one of five")
    await asyncio.sleep(0.01)
