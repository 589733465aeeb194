"""Out of memory, huge values, odd values, and threads that hang."""

from __future__ import annotations

import pytest

from tests.support.processes import Jobs

HANDLERS = """
import resource

def limit_memory(more):
    # What the process has by now and *more*; beyond that every allocation fails.
    pages = int(open("/proc/self/statm").read().split()[0])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))

def take_all():
    hoard = []  # lives as long as the traceback does: there is nothing left to describe the error with
    for size in (2**24, 2**20, 2**16, 2**12, 2**10, 500, 200, 60):
        try:
            while True:
                hoard.append(bytes(size))
        except MemoryError:
            if size == 60:
                raise

async def hoards(n: int) -> int:
    note("start", n)
    if n == 3:
        await asyncio.sleep(0.05)
        limit_memory(48 * 2**20)
        take_all()
    await asyncio.sleep(SECONDS)
    note("end", n)
    return n

def wants_too_much(n: int) -> int:
    note("start", n)
    if n == 3:
        # Each thread of a handler reserves 72 MB. A thread for which Python has no memory hangs the thread that starts it.
        limit_memory(2**30)
        bytes(2**40)
    note("end", n)
    return n
"""


@pytest.mark.parametrize("handler", ["hoards", "wants_too_much"])
def test_row_08_out_of_memory_is_a_failure_of_that_item_alone(handler: str, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):
        monkeypatch.delenv(name, raising=False)  # the tracer of coverage allocates in C, and may crash where no memory is left
    jobs.handlers(HANDLERS)
    process = jobs.start("run", f"h.py:{handler}", jobs.items(20), "-c", "4", "--max-attempts", "1", seconds=0.02)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert jobs.query("SELECT status, count(*) FROM items GROUP BY 1 ORDER BY 1") == [("completed", 19), ("failed", 1)]
    ((key, error),) = jobs.query("SELECT id, error FROM items WHERE status = 'failed'")
    assert (key, error.partition(":")[0]) == ("3", "MemoryError"), "with a note if no memory was left to describe the error"
    assert "1 x MemoryError" in said
    assert jobs.runs("start") == dict.fromkeys(range(20), 1)
