"""The only module of the simulation that replaces parts of the engine: its periods, its random numbers, and the layer below the store.

Every period of the engine is multiplied by one factor, so that a simulated hour needs fewer heartbeats: one in ten minutes instead of one
per second. Handlers, timeouts and faults last longer by the same factor, so the ratios, and the races, stay the same.
"""

from __future__ import annotations

import random
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

from asyncrunner.execution import execution
from asyncrunner.runner import engine, internals
from asyncrunner.runner.duties import watchdog
from asyncrunner.runner.processes import identity
from asyncrunner.serialization import codec
from asyncrunner.sqlite import store
from asyncrunner.sqlite.claims import recovery
from asyncrunner.sqlite.file import connection
from asyncrunner.store import retrying
from asyncrunner.store.rules import losses
from asyncrunner.submission import result_waiter
from asyncrunner.worker import claim_runner, isolation, worker
from tests.simulation.disk import Disk, FairWriteLock, Journals, Locks, Thread, on_thread
from tests.simulation.ledger import LARGE_RESULT
from tests.simulation.loop import ACTOR

if TYPE_CHECKING:
    from asyncrunner.execution.execution import Execution

__all__ = ["engine_in"]

_PERIODS: Final[tuple[tuple[types.ModuleType, str], ...]] = (
    (engine, "_HEARTBEAT_SECONDS"),
    (engine, "_WATCHDOG_SECONDS"),
    (engine, "_OBSERVER_TIMEOUT_SECONDS"),
    (engine, "STORE_RETRY_SECONDS"),
    (engine, "GRACE_SECONDS"),
    (internals, "GRACE_SECONDS"),
    (internals, "STORE_RETRY_SECONDS"),
    (watchdog, "_MAX_BEAT_GAP_SECONDS"),
    (watchdog, "UNPROVEN_SECONDS"),
    (store, "_CLOCK_SLACK_SECONDS"),
    (worker, "_UNSTARTED_SECONDS"),
    (isolation, "MAX_ISOLATION_SECONDS"),
    (isolation, "_CHECK_SECONDS"),
    (retrying, "_MAX_WAIT_SECONDS"),
    (result_waiter, "_POLL_SECONDS"),
)


@contextmanager
def engine_in(disk: Disk, rng: random.Random, stretch: float) -> Iterator[None]:
    """Run the runners created inside this context in the simulation; their random numbers come from *rng*."""

    def generator() -> random.Random:
        return random.Random(rng.getrandbits(64))

    def token(size: int) -> str:
        return f"{rng.getrandbits(8 * size):0{2 * size}x}"

    def number(running: Execution) -> int:
        return hash((running.claim.seq, running.claim.number))  # not the memory address: it is the order of sets

    replaced: list[tuple[Any, str, Any]] = [
        *((module, name, getattr(module, name) * stretch) for module, name in _PERIODS),
        (internals, "random", types.SimpleNamespace(Random=generator)),
        (losses, "random", types.SimpleNamespace(Random=generator)),
        (engine, "secrets", types.SimpleNamespace(token_hex=token)),
        (identity, "_process_id", str),
        (identity, "os", types.SimpleNamespace(getpid=lambda: ACTOR.get().owner.pid)),
        (store, "liveness_lock", Locks(disk)),
        (recovery, "liveness_lock", Locks(disk)),
        (store, "SlotJournal", Journals(disk).SlotJournal),
        (recovery, "slot_journal", Journals(disk)),
        (connection, "aiosqlite", types.SimpleNamespace(Connection=Thread)),
        (connection.Connection, "_on_thread", on_thread),
        (connection, "FairWriteLock", FairWriteLock),
        (connection, "reject_foreign", lambda _: None),  # the disk of the simulation has no other file
        (execution.Execution, "__hash__", number),
        (codec, "LARGE_RESULT", LARGE_RESULT),
        (claim_runner, "LARGE_RESULT", LARGE_RESULT),
        (claim_runner, "RESULT_PIECE", LARGE_RESULT // 2),
    ]
    kept = random.getstate()
    random.seed(rng.getrandbits(64))  # the jitter of retries uses the global generator
    try:
        with ExitStack() as stack:
            for target, name, value in replaced:
                stack.enter_context(patch.object(target, name, value))
            yield
    finally:
        random.setstate(kept)
