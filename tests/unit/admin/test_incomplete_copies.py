"""A batch whose copy is not complete: it is not run and not changed, and every report names the command that completes it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from asyncrunner import Client, Control, Runner, plan_batch, run_batch
from asyncrunner.backends import open_engine, open_maintenance, shown_location
from asyncrunner.errors import ConfigurationError
from asyncrunner.runner.runner import internals_of
from tests.support.copies import reason_of, stop_copy
from tests.support.files import BATCH, book
from tests.support.state import counts, execute, rows_of, snapshot

pytestmark = pytest.mark.sqlite_file  # the source is a file; the target is of each kind


@pytest.fixture
def half(source: str, target: str) -> str:
    """The target of a copy that stopped after 6 of 13 items; its batch is not paused or stopped, as after a change by hand."""
    asyncio.run(stop_copy(source, target))
    execute(target, "UPDATE batches SET paused = (1 = 0), stopped = NULL")
    return target


def refused(source: str, target: str) -> Any:
    text = f"{shown_location(target)}: the batch 'shop' cannot be run or changed: {reason_of(source, target)}"
    return pytest.raises(ConfigurationError, match=f"^{re.escape(text)}$")


async def test_a_run_is_refused_and_changes_nothing(source: str, half: str) -> None:
    before = snapshot(half)
    for items in (["fine-1", "fine-9"], None):
        with refused(source, half):
            await run_batch(items, book, db=half, batch=BATCH, retry_failed=True)
        with refused(source, half):
            await plan_batch(items, book, db=half, batch=BATCH)
    assert snapshot(half) == before


async def test_a_runner_is_refused_at_its_start_and_changes_none_of_its_batches(source: str, half: str) -> None:
    await run_batch([1], str, db=half, batch="other")
    execute(half, "UPDATE batches SET stopped = 'too many failures' WHERE name = 'other'")
    execute(half, "DELETE FROM workers")
    before = snapshot(half)
    runner = Runner(half)
    runner.handler(batch="other")(book)
    runner.handler(batch=BATCH)(book)
    with refused(source, half):
        async with runner:
            pass
    assert snapshot(half) == before


async def test_a_worker_of_another_batch_starts_and_may_submit_to_the_incomplete_copy(half: str) -> None:
    runner = Runner(half)
    other = runner.handler(batch="other")(book)
    shop = runner.handler(batch=BATCH)(book)
    await internals_of(runner).start(role="work", batches=["other"])
    try:
        assert await (await other.submit("fine-1")).result() == {"booked": "fine-1"}
        await shop.submit("fine-99", key="fine-99")
    finally:
        await runner.stop()
    assert rows_of(half, "SELECT status FROM items WHERE id = 'fine-99'") == [("pending",)]
    assert rows_of(half, "SELECT stopped FROM batches WHERE name = 'shop'") == [(None,)]


async def test_a_client_may_submit_and_the_item_runs_after_the_copy(source: str, half: str) -> None:
    execute(source, "UPDATE items SET due_at = NULL, suspect = 0")
    async with Client(half) as client:
        handle = await client.submit(BATCH, "fine-99", key="fine-99")
        assert (await handle.status()).value == "pending"
    async with Control(source) as control:
        await control.copy(half)
    await run_batch(None, book, db=half, batch=BATCH, max_attempts=2)
    assert rows_of(half, "SELECT status FROM items WHERE id = 'fine-99'") == [("completed",)]


async def test_a_client_cannot_cancel_its_items_before_the_copy_is_complete(source: str, half: str) -> None:
    async with Client(half) as client:
        handle = await client.handle(BATCH, "fine-1")
        before = snapshot(half)
        with refused(source, half):
            await handle.cancel()
        assert snapshot(half) == before


async def test_a_store_and_its_reader_return_the_source_of_an_incomplete_copy(source: str, half: str) -> None:
    store = open_engine(half)
    await store.open()
    reader = await store.reader()
    sources = [await reads.incomplete_copies([BATCH, "other"]) for reads in (store, reader)]
    await store.close()
    assert sources == [{BATCH: source}] * 2


CHANGES: dict[str, Callable[[Control], Awaitable[object]]] = {
    "resume": lambda control: control.resume(BATCH),
    "pause": lambda control: control.pause(BATCH),
    "retry": lambda control: control.retry(batch=BATCH, failed=True),
    "rerun": lambda control: control.rerun(batch=BATCH, everything=True),
    "rerun, dry run": lambda control: control.rerun(batch=BATCH, everything=True, dry_run=True),
    "cancel": lambda control: control.cancel(batch=BATCH, pending=True),
    "concurrency": lambda control: control.set_concurrency(7, BATCH),
    "purge": lambda control: control.purge(timedelta(0), BATCH),
    "purge, dry run": lambda control: control.purge(timedelta(0), BATCH, dry_run=True),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_an_operator_cannot_change_it(source: str, half: str, name: str) -> None:
    before = snapshot(half)
    async with Control(half) as control:
        with refused(source, half):
            await CHANGES[name](control)
    assert snapshot(half) == before


async def test_an_operator_may_recover_and_read_it(half: str) -> None:
    async with Control(half) as control:
        assert await control.recover(batch=BATCH) == {}
        assert len([each async for each in control.export(BATCH)]) == 6
    assert sum(counts(half).values()) == 6


async def test_the_status_and_the_checks_name_the_copy_whatever_stopped_the_batch(source: str, half: str) -> None:
    reason = reason_of(source, half)
    async with Control(half) as control:
        (batch,) = (await control.status()).batches
        assert (batch.stopped, batch.idle_reason, batch.eta) == (reason, reason, None)
        assert batch.copied_from is not None
        assert [(each.check, each.batch, each.message) for each in await control.check()] == [("copy", BATCH, reason)]
        assert [each.message for each in await control.check(probe="readiness")] == [reason]
    async with Control(source) as control:
        await control.copy(half)
    async with Control(half) as control:
        (batch,) = (await control.status()).batches
        assert (batch.copied_from, batch.stopped) == (None, "too many failures")
        assert "copy" not in [each.check for each in await control.check()]


async def test_the_maintenance_leaves_it_to_the_check_to_name_the_copy(half: str) -> None:
    execute(half, "UPDATE batches SET paused = (1 = 1), stopped = 'a copy'")
    findings = await open_maintenance(half).check(full=False)
    assert [each.message for each in findings if each.check == "batches"] == ["no problems"]


async def test_a_location_is_quoted_for_a_shell(source: str, half: str) -> None:
    shown = shown_location(half)
    quoted = f"'{shown}'" if "://" in half else shown
    assert f" {quoted} --batch shop`" in reason_of(source, half)
