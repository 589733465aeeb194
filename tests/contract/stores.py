"""The stores that the contract tests use, with helper functions.

They are that of ``pytest --store`` and, in an ordinary run on SQLite, also the store in memory and the one on a PostgreSQL server,
if there is a server. To add a store, add it to ``tests/support/kinds.py``.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asyncrunner.backends import MEMORY, open_admin, open_engine
from asyncrunner.domain.clock import Clock
from asyncrunner.domain.item import Claim, NewItem
from asyncrunner.domain.outcome import ErrorInfo, Failed, Outcome, Retrying, Settlement
from asyncrunner.store.admin_protocol import AdminStore
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.items import ItemRow
from asyncrunner.store.protocols import Store
from asyncrunner.store.turn import Turn, Want
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.testing import FakeClock
from tests.support.kinds import KINDS, chosen_name

NOW = 1_800_000_000.0
BOOM = ErrorInfo("ValueError", "boom", "the frames", "f1")
LOST = ErrorInfo("WorkerLost", "its lock is free")

KIND_NAMES = [chosen_name()]
"""The kinds of store that the contract tests run on, besides the store in memory."""

if chosen_name() == "sqlite":
    KIND_NAMES.append("postgres")

# The side of operators follows that of workers.
_ADMIN_KIND_NAMES = [
    kind for kind in KIND_NAMES if kind != "postgres" or importlib.util.find_spec("asyncrunner.postgres.admin") is not None
]


def _engine(kind: str) -> Callable[[Path, Clock], Store]:
    return lambda folder, clock: open_engine(KINDS[kind].new_location(folder, "jobs.db"), clock=clock)


def _admin(kind: str) -> Callable[[Path, FakeClock], AdminStore]:
    return lambda folder, clock: open_admin(KINDS[kind].new_location(folder, "jobs.db"), clock)


STORES: dict[str, Callable[[Path, Clock], Store]] = {kind: _engine(kind) for kind in KIND_NAMES}
ADMIN_STORES: dict[str, Callable[[Path, FakeClock], AdminStore]] = {kind: _admin(kind) for kind in _ADMIN_KIND_NAMES}
"""How to open the store of the same name in STORES for an operator."""

if chosen_name() == "sqlite":
    STORES["memory"] = lambda _, clock: open_engine(MEMORY, clock=clock)


def parameters(stores: Iterable[str]) -> list[Any]:
    """Return the names of stores as the parameters of a test, which skips by name what cannot run here.

    In CI nothing is skipped: the test fails.
    """
    missing = {name: KINDS[name].missing() for name in stores if name in KINDS and "CI" not in os.environ}
    return [
        pytest.param(name, marks=[pytest.mark.skip(reason=reason)] if (reason := missing.get(name)) else []) for name in stores
    ]


class Both(NamedTuple):
    """Two views of one store: that of its workers, and that of an operator."""

    engine: Store
    admin: AdminStore
    clock: FakeClock


async def batch_of(store: Store, keys: Sequence[str] = (), *, max_attempts: int = 3, name: str = "b") -> int:
    batch = await store.open_batch(name, "m:h", BatchOptions(max_attempts=max_attempts))
    if keys:
        await store.add(batch.batch_id, [NewItem(key, f'"{key}"') for key in keys], on_change="error")
    return batch.batch_id


async def joined(store: Store, *names: str) -> None:
    for name in names:
        await store.join(WorkerInfo(name, "here", 1))


async def claim(store: Store, batch_id: int, count: int = 100, *, worker: str = "w", most: int = 3) -> list[Claim]:
    turn = await store.turn(worker, [], [Want(batch_id, count, most)])
    return list(turn.claims)


async def settle(store: Store, claim: Claim, outcome: Outcome, *, worker: str = "w", at: float = NOW) -> Turn:
    return await store.turn(worker, [Settlement(claim, outcome, at - 1.5, at)], [])


async def all_rows(store: Store, batch_id: int) -> Sequence[ItemRow]:
    page = await store.item_page(batch_id, None, 1001)
    assert page.next is None
    return page.rows


async def only_row(store: Store, batch_id: int) -> ItemRow:
    (row,) = await all_rows(store, batch_id)
    return row


async def failed_items(store: Store) -> int:
    batch_id = await batch_of(store, ["transient", "used up", "permanent"])
    await joined(store, "w")
    held = {each.id: each for each in await claim(store, batch_id)}
    await settle(store, held["transient"], Failed(BOOM, permanent=False))
    await settle(store, held["permanent"], Failed(ErrorInfo("Fail", "no"), permanent=True))
    await settle(store, held["used up"], Retrying(BOOM, 0.0))
    for _ in range(2):
        (again,) = await claim(store, batch_id)
        await settle(store, again, Failed(BOOM, permanent=False) if again.attempt == 3 else Retrying(BOOM, 0.0))
    assert (await store.counts(batch_id)).failed == 3
    return batch_id
