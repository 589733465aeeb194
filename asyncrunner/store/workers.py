"""Workers as a store records them: identity, heartbeat, liveness and stop requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

import msgspec


class WorkerInfo(NamedTuple):
    """The identity of a worker. Its id is random for each start; host and pid are for display only.

    ``role``: "run" for ``run_batch``, which ends with its batch, "work" for ``asyncrunner work``, "service" for a
    runner inside another program. ``batches``: the names of the batches for which the worker has handlers.
    ``process``: an id that only the workers of the same process have; empty if it is unknown.
    """

    worker_id: str
    host: str
    pid: int
    role: str = "service"
    batches: Sequence[str] = ()
    process: str = ""


class Stop(IntEnum):
    """A request to stop a worker: let the running handlers end (drain), or cancel them."""

    NO = 0
    DRAIN = 1
    CANCEL = 2


class Throttle(msgspec.Struct, frozen=True):
    """The slowdown of a batch by a service, in one worker.

    ``limit``: how many of the batch's handlers run at the same time, instead of ``of``; 0 while no handler starts before
    the time that the service requests. ``refused_at``: when the service last refused a request, in seconds since the
    epoch.
    """

    limit: int
    of: int
    refused_at: float


class Vitals(NamedTuple):
    """The statistics of a worker since its start.

    ``processed`` and ``failed``: numbers of attempts. ``loop_blocks``: how often the worker's event loop was blocked;
    ``longest_block``: seconds. ``slots``: how many handlers may run at the same time; ``slots_in_use``: how many run
    now. ``throttles``: the batches that a service slows down, by name.
    """

    processed: int = 0
    failed: int = 0
    loop_blocks: int = 0
    longest_block: float = 0.0
    slots: int = 0
    slots_in_use: int = 0
    throttles: Mapping[str, Throttle] = MappingProxyType({})


class Beat(NamedTuple):
    """The result of a heartbeat. ``outcast``: the worker was declared lost meanwhile; the heartbeat registers it again.

    ``stop``: the requested stop of the worker. ``set_back``: the seconds by which the store's clock was set back since
    the newest heartbeat, if the heartbeat has moved stored times back, else 0. ``moved``: the number of due
    times that the heartbeat has moved.
    """

    outcast: bool
    stop: Stop = Stop.NO
    set_back: float = 0.0
    moved: int = 0


class Peer(NamedTuple):
    """Another worker of the store, as the watchdog reads it.

    ``alive``: whether its process is alive; None if the store cannot prove either. ``evidence``: the reason for
    ``alive``, as a clause about the worker. ``pulse`` changes with every heartbeat; compare it only with an earlier
    pulse of the same worker.
    """

    worker_id: str
    pulse: str
    host: str
    pid: int
    alive: bool | None
    evidence: str
