"""Ctrl-C in a program that runs a runner in a bare event loop, ``loop.run_until_complete()`` or ``loop.run_forever()``."""

from __future__ import annotations

import signal

import pytest

from tests.crash.test_scripts import FRIENDLY, RECOVERED
from tests.support.processes import Jobs

IN_A_BARE_LOOP = """
import asyncio, os, signal, sys
from contextlib import asynccontextmanager
sys.path.insert(0, ".")
from h import note
from asyncrunner import Runner
from asyncrunner.execution.executor import AttemptExecutor
from asyncrunner.runner.engine import Engine
from asyncrunner.worker.controls import WorkerControls
from asyncrunner.worker.worker import Worker

@asynccontextmanager
async def opened():
    yield 1
    note("left", 0)

runner = Runner("asyncrunner.db", setup=opened)
where, how = sys.argv[1:]
leaving = asyncio.Event()
places = {
    "in the pump": (Worker, "_wait_for_news", 3),
    "in a background task": (WorkerControls, "apply_changes", 3),
    "in a slot": (AttemptExecutor, "start", 2),
}
started = 0

def interrupt_once(owner, name, count):
    # Raise a Ctrl-C in the first call of the method after *count* handlers have started.
    method = getattr(owner, name)

    def call(*args):
        if started >= count:
            setattr(owner, name, method)
            signal.raise_signal(signal.SIGINT)
        return method(*args)

    setattr(owner, name, call)

if where in places:
    interrupt_once(*places[where])

async def interrupts(n: int, value: object) -> None:
    global started
    started += 1
    if how == "leaves":
        await leaving.wait()
    note("start", n)
    if n == 2 and where == "in a step":
        signal.raise_signal(signal.SIGINT)
    elif n == 2 and where == "between two steps":
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
    await asyncio.Event().wait()

jobs = runner.handler(batch="b", max_attempts=1)(interrupts)

async def main():
    async with runner:
        await jobs.submit_many(range(3))
        if how == "leaves":
            while len(runner._internals.worker.running) < 3:
                await asyncio.sleep(0)
            leaving.set()
            return
        while where == "in the pump":
            await asyncio.sleep(0.01)
            runner._internals.worker.wake()
        await asyncio.Event().wait()

async def start():
    await runner.start()
    await jobs.submit_many(range(3))

async def fail(engine):
    raise OSError("the disk is full")

async def is_interrupted_again(engine):
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()

if how == "fails":
    Engine.abandon = fail
if how == "is interrupted again":
    Engine.abandon = is_interrupted_again
loop = asyncio.new_event_loop()
if how == "run_forever":
    task = loop.create_task(start())
    loop.run_forever()
elif how == "closed":
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
else:
    loop.run_until_complete(main())
"""


def interrupted_in_a_bare_loop(jobs: Jobs, where: str, how: str) -> str:
    """Run IN_A_BARE_LOOP, send Ctrl-C *where* it is to land, and return stderr."""
    process = jobs.start_script(IN_A_BARE_LOOP, where, how)
    if where == "anywhere":
        jobs.until(lambda: len(jobs.lines("start")) == 3)
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT, said
    return said


RUNNING = "SELECT status, attempts, crashes, count(*) FROM items GROUP BY 1, 2, 3"


@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("between two steps", "run_until_complete"),
        ("between two steps", "run_forever"),
        ("between two steps", "closed"),
        ("in a step", "run_until_complete"),
        ("in a step", "run_forever"),
        ("in a step", "leaves"),
        ("in the pump", "run_until_complete"),
        ("in a background task", "run_until_complete"),
        ("in a slot", "run_until_complete"),
        ("anywhere", "run_until_complete"),
    ],
)
def test_ctrl_c_in_a_bare_loop_ends_the_program_and_releases_the_items_of_a_runner(where: str, how: str, jobs: Jobs) -> None:
    said = interrupted_in_a_bare_loop(jobs, where, how)
    lines = said.removeprefix(WARNING)
    assert FRIENDLY.fullmatch(lines), said
    if where != "anywhere":
        ends_in_order = where not in ("between two steps", "in a slot")  # there the loop just stops
        assert (lines != said) is ends_in_order, said
        assert len(jobs.lines("left")) == ends_in_order, "the context manager of setup= is left once"
    assert jobs.query(RUNNING) == [("pending", 0, 0, 3)]
    assert jobs.query("SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)]
    code, output = jobs.run("run", "h.py:work", "--batch", "b", "--max-attempts", "1")
    assert (code, jobs.query(RUNNING)) == (0, [("completed", 1, 0, 3)]), output


WARNING = "interrupted: running handlers are cancelled, finished items are saved; run again to continue\n"


@pytest.mark.parametrize("how", ["fails", "is interrupted again"])
def test_ctrl_c_promises_a_recovery_and_no_more_if_the_items_could_not_be_released(how: str, jobs: Jobs) -> None:
    said = interrupted_in_a_bare_loop(jobs, "between two steps", how)
    assert RECOVERED.fullmatch(said), said
    assert jobs.query(RUNNING) == [("processing", 1, 0, 3)]
