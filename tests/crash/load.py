"""A process that works, for the sweep and the storm: ``python -m tests.crash.load DB LOG --items N [--feed]``.

It writes each event as one line to an append-only log, against which the rows of the file are checked:
``accepted key``, ``start key``, ``end key``, ``raised key``, ``cancelled key`` and, when the commit is known, ``ack key``;
each with the process id.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import time
from pathlib import Path

from asyncrunner import Handler, ItemFailed, RetryPolicy, Runner, current_attempt
from asyncrunner.domain.outcome import Completed
from asyncrunner.events import Settled
from asyncrunner.execution import executor
from asyncrunner.sqlite.file import wal
from asyncrunner.worker import claim_runner
from tests.crash import failpoints

__all__ = ["BATCH", "MAX_ATTEMPTS", "result_of", "work_off"]

BATCH = "load"
MAX_ATTEMPTS = 5


def result_of(number: int) -> dict[str, object]:
    """Return the result of the handler; every fifth is large, see ``main``."""
    return {"n": number, "text": "x" * 50} if number % 5 == 0 else {"n": number}


class Log:
    """A log whose lines are complete, whenever the process dies."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, what: str, *keys: object) -> None:
        os.write(self._file, "".join(f"{what} {key} {os.getpid()}\n" for key in keys).encode())


def make_runner(
    db: Path, log: Log, *, seconds: float, concurrency: int, block: Path | None = None
) -> tuple[Runner, Handler[str, dict[str, object]]]:
    """Return a runner and its handler: every third item fails at first, every fourth saves a checkpoint.

    A handler that finds the file *block* removes it and blocks the event loop.
    """
    runner = Runner(db, concurrency=concurrency)

    @runner.handler(batch=BATCH, key=str, max_attempts=MAX_ATTEMPTS, retry=RetryPolicy(initial=0.01, cap=0.05))
    async def work(item: str) -> dict[str, object]:
        attempt = current_attempt()
        number = int(item[1:])
        log("start", attempt.key)
        try:
            if number % 4 == 0:
                await attempt.save({"n": number})
            await asyncio.sleep(seconds * random.random())
            if block is not None and block.exists():
                with contextlib.suppress(FileNotFoundError):
                    hold = float(block.read_text())
                    block.unlink()
                    time.sleep(hold)
            if number % 3 == 0 and attempt.number == 1:
                raise ValueError(number)
        except asyncio.CancelledError:
            log("cancelled", attempt.key)
            raise
        except ValueError:
            log("raised", attempt.key)
            raise
        log("end", attempt.key)
        failpoints.reached("handler returned")
        return result_of(number)

    def acknowledge(event: Settled) -> None:
        if isinstance(event.outcome, Completed):
            log("ack", event.id)

    runner.on(Settled, acknowledge)
    return runner, work


async def work_off(db: Path, log: Log, count: int, *, seconds: float = 0.0) -> None:
    """Submit *count* items and run them all to their end."""
    runner, work = make_runner(db, log, seconds=seconds, concurrency=3)
    keys = [f"k{number}" for number in range(count)]
    async with runner:
        handles = await work.submit_many(keys)
        log("accepted", *keys)
        for handle in handles:
            with contextlib.suppress(ItemFailed):
                await handle.result()


async def feed(db: Path, log: Log, block: Path) -> None:
    """Submit and run items until a signal."""
    runner, work = make_runner(db, log, seconds=0.02, concurrency=8, block=block)
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    async with runner:
        first = random.randrange(10**12)
        while not over.is_set():
            first += 20
            keys = [f"k{number}" for number in range(first, first + 20)]
            await work.submit_many(keys)
            log("accepted", *keys)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), 0.15)


def main() -> None:
    """Run the load that the command line selects."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.load", description=__doc__)
    parser.add_argument("db", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("--items", type=int, default=0)
    parser.add_argument("--feed", action="store_true")
    parser.add_argument("--block", type=Path, default=Path("block"))
    parser.add_argument("--failpoint", help="name:number - be killed when that point is reached for the number-th time")
    arguments = parser.parse_args()
    if arguments.failpoint is not None:
        failpoints.arm(arguments.failpoint)
    executor.LARGE_RESULT = claim_runner.LARGE_RESULT = 30  # type: ignore[attr-defined]
    claim_runner.RESULT_PIECE = 20  # type: ignore[attr-defined]
    if arguments.feed:
        asyncio.run(feed(arguments.db, Log(arguments.log), arguments.block))
    else:
        wal.CHECKPOINT_BYTES = 40_000  # type: ignore[misc]  # a checkpoint every few turns
        asyncio.run(work_off(arguments.db, Log(arguments.log), arguments.items, seconds=0.01))


if __name__ == "__main__":
    main()
