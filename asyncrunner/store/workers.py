"""Workers as the store knows them: identity, heartbeat, liveness and stop requests."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple


class WorkerInfo(NamedTuple):
    """The identity of a worker: its id is random for each start; host and pid are for display only.

    ``role``: "run" for ``run_batch``, which ends with its batch, "work" for ``asyncrunner work``, "service" for a runner
    inside another program. ``batches``: the names of the batches that the worker has handlers for.
    """

    worker_id: str
    host: str
    pid: int
    role: str = "service"
    batches: Sequence[str] = ()


class Stop(IntEnum):
    """A request to a worker from outside: let the running handlers end (drain), or cancel them."""

    NO = 0
    DRAIN = 1
    CANCEL = 2


class Vitals(NamedTuple):
    """Statistics of a worker since it joined: settled and failed attempts, blocks of its event loop, the longest in seconds.

    ``slots``: how many handlers it may run at the same time; ``slots_in_use``: how many it runs.
    """

    processed: int = 0
    failed: int = 0
    loop_blocks: int = 0
    longest_block: float = 0.0
    slots: int = 0
    slots_in_use: int = 0


class Beat(NamedTuple):
    """The result of a heartbeat. ``outcast``: the worker was declared lost meanwhile; the beat registers it again.

    ``stop``: the stop that was requested for the worker. ``set_back``: by how many seconds the store's clock was set back since
    the newest heartbeat, if the beat therefore moved times earlier, else 0; ``moved``: how many retries it moved.
    """

    outcast: bool
    stop: Stop = Stop.NO
    set_back: float = 0.0
    moved: int = 0


class Peer(NamedTuple):
    """Another worker of the store, as the watchdog sees it.

    ``alive``: whether its process is alive; None if the store cannot prove it. ``evidence``: why, as a clause about the worker.
    ``pulse`` changes with every heartbeat; compare it only with an earlier pulse of the same worker.
    """

    worker_id: str
    pulse: str
    host: str
    pid: int
    alive: bool | None
    evidence: str
