"""Actions on more than 2,000 items are jobs: they run beside the pages, show their progress, and can be aborted."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from asyncrunner import Client, run_batch
from asyncrunner.admin.changes.changes import Changes
from asyncrunner.dashboard import Dashboard
from asyncrunner.dashboard.actions.jobs import Job, Jobs, JobState
from asyncrunner.errors import ConfigurationError
from tests.conftest import Until
from tests.support.state import counts, rows_of
from tests.unit.dashboard.browser import Visitor, streaming
from tests.unit.dashboard.conftest import Visit


class Gate:
    """Lets the steps of a change through, one at a time, after the first *free* ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.free = free
        self.opened = asyncio.Event()
        self.is_waiting = asyncio.Event()
        original = vars(Changes)["_store"].fget
        gate = self

        def store(control: Changes) -> Any:
            found: Any = original(control)
            return _Gated(found, gate)

        monkeypatch.setattr(Changes, "_store", property(store))

    async def passed(self) -> None:
        if self.free:
            self.free -= 1
            return
        self.is_waiting.set()
        await self.opened.wait()


class _Gated:
    def __init__(self, store: Any, gate: Gate) -> None:
        self._store = store
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def change(self, *arguments: Any) -> Any:
        await self._gate.passed()
        return await self._store.change(*arguments)


async def returned(item: Any) -> Any:
    return item


@pytest.fixture
async def large(db: str) -> str:
    """A store with a completed item and 5,000 pending ones."""
    await run_batch([-1], returned, db=db, batch="large")
    async with Client(db) as client:
        await client.submit_many("large", list(range(5_000)))
    return db


@pytest.fixture
async def visitor(large: str, visit: Visit) -> Visitor:
    return visit(large)


CANCEL = {"batch": "large", "all": "1"}


async def location(visitor: Visitor, action: str, fields: dict[str, Any]) -> str:
    response = await visitor.post(action, fields)
    assert response.status_code == 303, response.text
    return str(response.headers["location"])


def jobs_of(visitor: Visitor) -> list[Job]:
    """Return the jobs of the visitor's dashboard, the newest first."""
    assert isinstance(visitor.app, Dashboard)
    return visitor.app._pages._jobs.newest()


def is_done(visitor: Visitor) -> bool:
    """Return whether the newest job is done, and so has closed the store."""
    return jobs_of(visitor)[0].state is JobState.DONE


async def test_a_large_action_leads_to_a_page_with_its_progress(
    large: str, visitor: Visitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, until: Until
) -> None:
    caplog.set_level(logging.INFO, "asyncrunner.dashboard")
    gate = Gate(monkeypatch, free=1)
    asked = await visitor.page("confirm?batch=large&verb=cancel&all=1")
    assert "Cancel 5,000 items?" in asked.text
    assert "This takes a while" in asked.text
    place = (await visitor.send(asked.form("./cancel"))).headers["location"]
    job = place.removeprefix("./job?job=")
    assert job.isdigit()
    await gate.is_waiting.wait()
    page = await visitor.page(place)
    assert "Cancel all pending items of large" in page.text
    assert "Running, started by a browser with the token" in page.text
    assert "2,000 of 5,000 items" in page.text
    assert page.form("./abort").fields == [("job", job), ("page", "overview")]
    async with streaming(visitor.app, f"of=job&job={job}") as stream:
        name, data = await stream.event()
    assert (name, "2,000 of 5,000 items" in json.loads(data)["html"]) == ("page", True)
    assert counts(large)["cancelled"] == 2_000
    assert caplog.messages == []
    gate.opened.set()
    await until(lambda: counts(large)["cancelled"] == 5_000)
    await until(lambda: caplog.messages)
    page = await visitor.page(place)
    assert "Done" in page.text
    assert "5,000 items changed." in page.text
    assert [form.action for form in page.forms] == []
    assert caplog.messages == ["cancel all pending items of large, by a browser with the token: done, 5,000 items changed."]


async def test_an_aborted_action_leaves_the_rest_and_the_same_action_does_it(
    large: str, visitor: Visitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, until: Until
) -> None:
    caplog.set_level(logging.INFO, "asyncrunner.dashboard")
    with monkeypatch.context() as patched:
        gate = Gate(patched, free=2)
        place = await location(visitor, "cancel", CANCEL)
        await gate.is_waiting.wait()
        assert await location(visitor, "abort", {"job": place.partition("=")[2]}) == place
        await until(lambda: len(caplog.messages) == 2)
    page = await visitor.page(place)
    assert "Aborted" in page.text
    aborted = "Aborted after 4,000 of 5,000 items. What was done stays done; the same action does the rest."
    assert aborted in page.text
    assert (counts(large)["cancelled"], counts(large)["pending"]) == (4_000, 1_000)
    assert sorted(caplog.messages) == [
        "abort cancel all pending items of large, by a browser with the token: done",
        f"cancel all pending items of large, by a browser with the token: aborted, {aborted}",
    ]
    assert await location(visitor, "cancel", CANCEL) == "./batch?batch=large&did=changed&done=1000"
    assert counts(large)["pending"] == 0
    assert await location(visitor, "abort", {"job": place.partition("=")[2]}) == place, "it has ended; nothing happens"
    assert "Aborted after 4,000" in (await visitor.page(place)).text


async def test_an_action_goes_on_when_its_visitor_leaves(
    large: str, visitor: Visitor, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    gate = Gate(monkeypatch, free=0)
    request = asyncio.create_task(visitor.post("cancel", CANCEL))
    await gate.is_waiting.wait()
    request.cancel()
    gate.opened.set()
    await until(lambda: is_done(visitor))
    assert counts(large)["cancelled"] == 5_000


async def test_a_purge_of_many_items_is_a_job(
    large: str, visitor: Visitor, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    await visitor.post("cancel", CANCEL)
    await until(lambda: is_done(visitor))
    gate = Gate(monkeypatch, free=1)
    fields = {"batch": "large", "older_than": "0s", "status": "cancelled", "name": "large"}
    place = await location(visitor, "purge", fields)
    await gate.is_waiting.wait()
    assert "2,000 of 5,000 items" in (await visitor.page(place)).text
    gate.opened.set()
    await until(lambda: is_done(visitor))
    assert (counts(large)["cancelled"], counts(large)["completed"]) == (0, 1)


async def test_at_most_eight_actions_run_at_the_same_time(
    large: str, visitor: Visitor, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    gate = Gate(monkeypatch, free=0)
    keys = [key for (key,) in rows_of(large, "SELECT id FROM items WHERE status = 'pending' LIMIT 9")]
    running = [asyncio.create_task(visitor.post("cancel", {"batch": "large", "ids": key})) for key in keys[:8]]
    await until(lambda: len(jobs_of(visitor)) == 8)
    response = await visitor.post("retry", {"batch": "large", "ids": keys[8]})
    assert (response.status_code, "8 actions run already; wait for the end of one, or abort one" in response.text) == (400, True)
    gate.opened.set()
    assert {each.status_code for each in await asyncio.gather(*running)} == {303}
    assert await location(visitor, "cancel", {"batch": "large", "ids": keys[8]}) == "./batch?batch=large&did=changed&done=1"


# --- jobs alone -----------------------------------------------------------------------------------------------------


async def test_the_newest_jobs_are_kept() -> None:
    jobs = Jobs()

    async def work(_: object) -> list[str]:
        return ["done"]

    numbered: dict[int, int] = {}
    for number in range(1, 251):
        job = jobs.start(f"job {number}", "Ann", work)
        numbered[number] = job.number
        assert await job.wait()
    assert [job.number for job in jobs.newest()][:2] == [numbered[250], numbered[249]]
    assert 100 <= len(jobs.newest()) <= 101
    assert jobs.get(numbered[200]).title == "job 200"
    numbers: list[int | None] = [numbered[1], None, 0]
    for unknown in numbers:
        with pytest.raises(ConfigurationError, match="not known"):
            jobs.get(unknown)


async def test_a_running_job_is_kept_however_many_come_after_it() -> None:
    jobs, released = Jobs(), asyncio.Event()

    async def slow(_: object) -> list[str]:
        await released.wait()
        return ["done"]

    async def work(_: object) -> list[str]:
        return []

    first = jobs.start("slow", "Ann", slow)
    for _ in range(150):
        await jobs.start("fast", "Ann", work).wait()
    assert jobs.get(first.number) is first
    released.set()
    assert await first.wait()


async def test_a_job_that_fails_says_so_and_the_log_has_the_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asyncrunner.dashboard")

    async def fail(_: object) -> list[str]:
        raise RuntimeError("a secret\n")

    job = Jobs().start("a title\n\u202e", "Ann", fail)
    assert await job.wait()
    assert (job.state, job.result) == (JobState.FAILED, ["The action failed; the log of the dashboard has the error."])
    assert "a secret" in caplog.text
    assert caplog.messages == [
        "a title\\n\\u202e, by Ann, failed",
        "a title\\n\\u202e, by Ann: failed, The action failed; the log of the dashboard has the error.",
    ]


async def test_a_job_that_is_aborted_soon_after_its_start_is_aborted() -> None:
    for steps in (1, 2, 3):
        started = asyncio.Event()

        async def work(_: object, started: asyncio.Event = started) -> list[str]:
            started.set()
            await asyncio.Event().wait()
            return []

        job = Jobs().start("wait", "Ann", work)
        for _ in range(steps):
            await asyncio.sleep(0)
        job.abort()
        assert await asyncio.wait_for(job.wait(), 10)
        assert (job.state, job.result) == (
            JobState.ABORTED,
            ["Aborted. What was done stays done; the same action does the rest."],
        )
