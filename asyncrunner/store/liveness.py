"""Decide by heartbeats whether an unproven worker is alive: a worker that the store can prove neither alive nor dead.

For example, a worker of a server is unproven if no session holds its lock, because its session may have been cut from it. A
worker without a lock file is unproven: a copy of a file has no lock files, and neither has a file whose
lock folder was deleted. The decision watches heartbeats for a few seconds; it does not compare stored times with the
clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

from asyncrunner.errors import WorkerLost
from asyncrunner.text.escaping import counted

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock

UNPROVEN_SECONDS: Final = 5.0
"""Seconds without a heartbeat after which an unproven worker is presumed dead (heartbeats come every 1.2 s)."""

ORPHANED: Final = "its worker is not known to the file; it runs again"
"""The message of the WorkerLost error of an orphaned item."""

_POLL_SECONDS: Final = 0.25
_MAX_GAP_SECONDS: Final = 2.0  # between two polls; after a longer gap, as in a suspended process, the watch restarts


async def silent(read_pulses: Callable[[], Awaitable[Mapping[str, str]]], clock: Clock) -> Mapping[str, str]:
    """Return the workers (worker id -> pulse) whose pulse does not change for ``UNPROVEN_SECONDS``.

    *read_pulses* must wait until the store can be written, because until then no worker can write a heartbeat. The call
    returns as soon as every pulse has changed. A cancellation changes nothing.
    """
    unchanged = await read_pulses()
    started = polled_at = clock.monotonic()
    while unchanged and polled_at - started < UNPROVEN_SECONDS:
        await clock.sleep(_POLL_SECONDS)
        pulses = await read_pulses()
        unchanged = {worker_id: pulse for worker_id, pulse in unchanged.items() if pulses.get(worker_id) == pulse}
        now = clock.monotonic()
        if now - polled_at > _MAX_GAP_SECONDS:
            started = now
        polled_at = now
    return unchanged


def unproven_text(count: int) -> str | None:
    """Return a warning about *count* workers that can be proven neither dead nor alive; None for 0."""
    if count == 0:
        return None
    locks = "its lock" if count == 1 else "their locks"
    return f"{counted(count, 'worker')} may be dead, because nothing holds {locks}: if no worker runs, run `asyncrunner recover`"


def worker_lost(worker_id: str, pid: int, host: str, evidence: str) -> WorkerLost:
    """Return the error for the items of a lost worker; *evidence* is a clause about the worker."""
    return WorkerLost(f"worker {worker_id} (pid {pid} on {host}) was lost: {evidence}")
