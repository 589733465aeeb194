"""Whether a worker without a lock file lives: its heartbeat tells, if it is watched for a while.

There is none in a copy of a file, or when somebody has deleted the folder. Stored times are not compared with the clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

from asyncrunner.text import counted

if TYPE_CHECKING:
    from asyncrunner.clock import Clock

__all__ = ["UNPROVEN_SECONDS", "silent", "unproven_text"]

UNPROVEN_SECONDS: Final = 5.0
"""Of silence from a worker without a lock file, after which it is taken for dead; a live one beats each second."""

_LOOK_SECONDS: Final = 0.25
_LONGEST_GAP_SECONDS: Final = 2.0  # between two looks: after a longer one the watch begins anew, the silence may be ours


async def silent(look: Callable[[], Awaitable[Mapping[str, str]]], clock: Clock) -> Mapping[str, str]:
    """Those of the workers, with their pulses, whose pulse is the same in each *look* for ``UNPROVEN_SECONDS``.

    *look* shall wait for the write lock: while another program holds that, nobody can beat.
    """
    still = await look()
    began = looked_at = clock.monotonic()
    while still and looked_at - began < UNPROVEN_SECONDS:
        await clock.sleep(_LOOK_SECONDS)
        pulses = await look()
        still = {worker_id: pulse for worker_id, pulse in still.items() if pulses.get(worker_id) == pulse}
        now = clock.monotonic()
        if now - looked_at > _LONGEST_GAP_SECONDS:
            began = now
        looked_at = now
    return still


def unproven_text(count: int) -> str | None:
    """What to say of workers of which nobody knows whether they live; None if there are none."""
    if count == 0:
        return None
    have = "has" if count == 1 else "have"
    return f"{counted(count, 'worker')} {have} no lock file: if nothing runs, `asyncrunner recover`"
