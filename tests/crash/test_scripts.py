"""Scripts that end: after Ctrl-C, and with handlers that swallow everything."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest

from tests.support.processes import Jobs

SWALLOWING = """
import asyncio, sys, time
import anyio
from asyncrunner import run_batch

async def waits(n: int) -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except BaseException:
            pass

async def in_a_shield(n: int) -> None:
    with anyio.CancelScope(shield=True):
        await waits(n)

async def iterates(n: int) -> None:
    async def values():
        while True:
            try:
                yield 1
                await asyncio.sleep(3600)
            except BaseException:
                pass

    while True:
        try:
            async for _ in values():
                pass
        except BaseException:
            pass

def in_a_thread(n: int) -> None:
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            pass

def in_a_busy_thread(n: int) -> None:
    while True:
        pass

async def quick(n: int) -> int:
    return n

async def main() -> None:
    handler = globals()[sys.argv[1]]
    report = await run_batch([1, 2], handler, db="jobs.db", timeout=0.1, max_attempts=1, concurrency=1)
    print(report.failed, "failed", flush=True)
    print((await run_batch([1], quick, db="jobs.db")).completed, "completed", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("handler", ["waits", "in_a_shield", "iterates", "in_a_thread", "in_a_busy_thread"])
def test_an_abandoned_handler_that_swallows_everything_does_not_keep_the_interpreter(handler: str, jobs: Jobs) -> None:
    (jobs.folder / "script.py").write_text(SWALLOWING)
    done = subprocess.run(
        [sys.executable, "script.py", handler], cwd=jobs.folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "2 failed\n1 completed\n"), done.stderr


IN_A_LOOP = """
import asyncio, os, sys, time
sys.path.insert(0, ".")
from h import forever, note, work
from asyncrunner import run_batch
from asyncrunner.batch import ctrl_c

async def blocks(n: int) -> None:
    note("start", n)
    while not ctrl_c._interrupted:
        time.sleep(0.01)
    note("interrupted", n)
    time.sleep(3600)

async def raises(n: int) -> None:
    note("start", n)
    await asyncio.sleep(0)
    raise KeyboardInterrupt

async def main(handler) -> None:
    await run_batch(range(5), work, db="asyncrunner.db")
    await run_batch(range(5), handler, db="asyncrunner.db", max_attempts=1)

loop = asyncio.new_event_loop()
try:
    loop.run_until_complete(main(globals()[sys.argv[1]]))
except KeyboardInterrupt:
    sys.exit(77)
"""


@pytest.mark.parametrize("handler", ["forever", "blocks", "raises"])
def test_ctrl_c_ends_run_until_complete_in_order(handler: str, jobs: Jobs) -> None:
    process = jobs.start_script(IN_A_LOOP, handler)
    jobs.until(lambda: len(jobs.lines("start")) >= (10 if handler == "forever" else 6))
    if handler != "raises":
        process.send_signal(signal.SIGINT)
    if handler == "blocks":  # the first Ctrl-C waits for the loop, the second interrupts the handler
        jobs.until(lambda: jobs.lines("interrupted"))
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 77, said
    assert "interrupted: running handlers are cancelled, finished items are saved; run again to continue" in said
    assert "Traceback" not in said
    assert jobs.query("SELECT status, attempts, count(*) FROM items GROUP BY 1, 2 ORDER BY 1") == [
        ("completed", 1, 5),
        ("pending", 0, 5),
    ]
    assert jobs.query("SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)]


INTERRUPTED = """
import asyncio, atexit, os, sys, threading, time
sys.path.insert(0, ".")
import anyio
from h import forever, note, stubborn, work
from asyncrunner import Runner, run_batch, stream_batch

reached = asyncio.Event()

async def some_wait(n: int) -> int:
    if n >= 2:
        reached.set()
        await forever(n)
    return n

async def some_are_stubborn(n: int) -> int:
    return n if n < 2 else await stubborn(n)

async def run(handler):
    await run_batch(range(5), handler, db="asyncrunner.db", batch="b")

async def stream(handler):
    async with stream_batch(range(5), handler, db="asyncrunner.db", batch="b") as outcomes:
        async for _ in outcomes:
            pass

async def service(handler):
    runner = Runner("asyncrunner.db")
    jobs = runner.handler(batch="b")(handler)
    async with runner:
        await jobs.submit_many(range(5))
        await asyncio.Event().wait()

async def in_a_group(handler):
    async with asyncio.TaskGroup() as group:
        group.create_task(run(handler))

async def beside_a_thread(handler):
    threading.Thread(target=time.sleep, args=(60,)).start()
    atexit.register(note, "atexit", 0)
    await run(handler)

async def cancelled_before(handler):
    running = asyncio.ensure_future(run(handler))
    await reached.wait()
    running.cancel()
    await asyncio.wait({running})
    note("cancelled", 0)
    await asyncio.Event().wait()

async def main(program, handler):
    await run_batch(range(3), work, db="asyncrunner.db")
    await program(handler)

program, handler, how = globals()[sys.argv[1]], globals()[sys.argv[2]], sys.argv[3]
if how == "own hook":
    sys.excepthook = lambda kind, error, trace: print("own hook:", kind.__name__, file=sys.stderr)
if how == "anyio":
    anyio.run(main, program, handler)
elif how.startswith("caught"):
    try:
        asyncio.run(main(program, handler))
    except KeyboardInterrupt:
        if how == "caught":
            print("caught", file=sys.stderr)
    if how != "caught":
        raise KeyboardInterrupt
else:
    asyncio.run(main(program, handler))
"""


def interrupted(jobs: Jobs, *arguments: str, signals: int = 1) -> tuple[int, str]:
    """Run INTERRUPTED, send Ctrl-C when every handler runs, and return the exit status and stderr."""
    process = jobs.start_script(INTERRUPTED, *arguments)
    if arguments[0] == "cancelled_before":
        jobs.until(lambda: jobs.lines("cancelled"))
    else:
        jobs.until(lambda: len(jobs.lines("start")) == 6)
        jobs.until(lambda: jobs.query("SELECT count(*) FROM items WHERE status = 'completed'") == [(5,)])
    process.send_signal(signal.SIGINT)

    def has_ended_after_another_one() -> bool:
        process.send_signal(signal.SIGINT)
        return process.poll() is not None

    if signals > 1:
        jobs.until(has_ended_after_another_one)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def lines_of(promise: str) -> re.Pattern[str]:
    return re.compile(
        rf"b: [012] completed in \S+ \w+\nStopped early: interrupted\. {promise}\n"
        r"To see the status:\n  asyncrunner status --db asyncrunner\.db\n"
    )


WARNING = "interrupted: running handlers are cancelled, finished items are saved; run again to continue\n"
FRIENDLY = lines_of(r"No item is lost; run it again to continue\.")
RECOVERED = lines_of(r"The next start recovers the items that were running, and counts a crash of each\.")


@pytest.mark.parametrize(
    ("program", "how"),
    [("run", "asyncio"), ("stream", "asyncio"), ("service", "asyncio"), ("in_a_group", "asyncio"), ("run", "anyio")],
)
def test_ctrl_c_in_a_script_prints_the_lines_of_the_command_line_instead_of_a_traceback(
    program: str, how: str, jobs: Jobs
) -> None:
    code, said = interrupted(jobs, program, "some_wait", how)
    assert FRIENDLY.fullmatch(said), said
    assert said.startswith("b: 2 completed in ")
    assert code == -signal.SIGINT
    assert jobs.query("SELECT status, attempts, count(*) FROM items GROUP BY 1, 2 ORDER BY 1") == [
        ("completed", 1, 5),
        ("pending", 0, 3),
    ]


@pytest.mark.parametrize("program", ["run", "service"])
def test_more_ctrl_c_in_a_script_print_no_traceback_either_and_promise_what_holds(program: str, jobs: Jobs) -> None:
    code, said = interrupted(jobs, program, "some_are_stubborn", "asyncio", signals=2)
    assert code == -signal.SIGINT
    said = said.removeprefix(WARNING)  # the log has it if a Ctrl-C is raised in a task of the engine
    running = jobs.query("SELECT count(*) FROM items WHERE status = 'processing'")[0][0]
    if FRIENDLY.fullmatch(said):
        assert running == 0
    else:  # a Ctrl-C ended the event loop before the runner could release its items
        assert RECOVERED.fullmatch(said), said


def test_another_ctrl_c_ends_the_wait_for_a_thread_at_the_exit_without_a_traceback(jobs: Jobs) -> None:
    process = jobs.start_script(INTERRUPTED, "beside_a_thread", "some_wait", "asyncio")
    jobs.until(lambda: len(jobs.lines("start")) == 6)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(4)]  # from now on, only the exit waits for the thread

    def has_ended_after_another_one() -> bool:
        process.send_signal(signal.SIGINT)
        return process.poll() is not None

    jobs.until(has_ended_after_another_one)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert FRIENDLY.fullmatch("".join(lines)), lines
    assert said == ""
    assert jobs.lines("atexit")


def test_a_script_that_catches_ctrl_c_gets_it_and_no_lines(jobs: Jobs) -> None:
    assert interrupted(jobs, "run", "some_wait", "caught") == (0, "caught\n")


@pytest.mark.parametrize(("program", "how"), [("run", "caught, then another"), ("cancelled_before", "asyncio")])
def test_a_ctrl_c_that_ended_no_run_has_the_traceback_of_python(program: str, how: str, jobs: Jobs) -> None:
    code, said = interrupted(jobs, program, "some_wait", how)
    assert code == -signal.SIGINT
    assert said.startswith("Traceback"), said
    assert "Stopped early" not in said


def test_a_script_with_its_own_excepthook_keeps_it(jobs: Jobs) -> None:
    assert interrupted(jobs, "run", "some_wait", "own hook") == (-signal.SIGINT, "own hook: KeyboardInterrupt\n")
