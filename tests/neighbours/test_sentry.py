"""Sentry gets one event for each failed item, without payloads, from the real SDK; only its transport is replaced."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import sentry_sdk
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.transport import Transport

from asyncrunner import Later, Runner
from asyncrunner.domain.item import NewItem
from asyncrunner.events import Settled
from asyncrunner.runner.runner import internals_of, run_until_idle
from asyncrunner.sentry import instrument
from asyncrunner.testing import FakeClock
from tests.conftest import Until
from tests.support.handlers import failing_once

if TYPE_CHECKING:
    from sentry_sdk.envelope import Envelope

InMemory = Callable[[Runner], Awaitable[FakeClock]]
INTEGRATIONS = [LoggingIntegration(), DedupeIntegration()]  # the others change modules for the tests that follow
SECRET = "hunter2-payload"


class Recorder(Transport):
    """A transport that records the events of the envelopes, as the server would receive them."""

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        super().__init__(options)
        self.events: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        for item in envelope.items:
            if item.type == "event":
                self.events.append(json.loads(item.get_bytes()))


@pytest.fixture
def sentry() -> Iterator[Recorder]:
    recorder = Recorder()
    with sentry_sdk.isolation_scope():
        sentry_sdk.init(
            dsn="https://key@sentry.invalid/1", transport=recorder, default_integrations=False, integrations=INTEGRATIONS
        )
        yield recorder
        sentry_sdk.get_client().close()
        sentry_sdk.get_global_scope().set_client(None)


def tags_of(event: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in event["tags"].items() if name.startswith("asyncrunner.")}


async def test_each_failed_item_is_one_event_with_its_stack_and_tags(run_in_memory: InMemory, sentry: Recorder) -> None:
    runner = Runner()
    instrument(runner)
    handler = failing_once(runner)
    await run_in_memory(runner)
    await handler.submit_many([1, 13, 2])  # each fails once and is retried; 13 fails in the end
    await run_until_idle(runner)
    (event,) = sentry.events
    assert set(tags_of(event)) == {"asyncrunner.batch", "asyncrunner.item", "asyncrunner.attempt"}
    assert (event["tags"]["asyncrunner.batch"], event["tags"]["asyncrunner.attempt"]) == ("b", "2")
    (exception,) = event["exception"]["values"]
    assert (exception["type"], exception["value"]) == ("Fail", "never")
    assert exception["mechanism"]["type"] == "asyncrunner"
    assert exception["stacktrace"]["frames"][-1]["function"] == "handler"
    assert (event["level"], event["logger"]) == ("error", "asyncrunner")


async def test_items_that_fail_with_one_cause_are_one_issue(run_in_memory: InMemory, sentry: Recorder) -> None:
    runner = Runner()
    instrument(runner)

    @runner.handler(batch="b", max_attempts=1)
    async def handler(number: int) -> None:
        if number == 3:
            raise KeyError("other")
        raise ValueError(f"order {number} is unknown")

    await run_in_memory(runner)
    handles = await handler.submit_many([1, 2, 3])
    await run_until_idle(runner)
    assert {event["tags"]["asyncrunner.item"] for event in sentry.events} == {handle.key for handle in handles}
    fingerprints = [tuple(event["fingerprint"]) for event in sentry.events]
    assert len(fingerprints) == 3
    assert len(set(fingerprints)) == 2
    assert {fingerprint[:2] for fingerprint in fingerprints} == {("asyncrunner", "b")}


async def fail_with_secrets(run_in_memory: InMemory, *, include_payload: bool) -> None:
    runner = Runner()
    instrument(runner, include_payload=include_payload)

    @runner.handler(batch="b", max_attempts=1)
    async def handler(item: dict[str, str]) -> None:
        sentry_sdk.set_tag("customer", "7")
        try:
            raise OSError("https://example.com/?token=abc123token")
        except OSError as cause:
            raise ValueError("password=abc123token") from cause

    await run_in_memory(runner)
    await handler.submit({"text": SECRET})
    await run_until_idle(runner)


async def test_an_event_has_no_payload_no_locals_and_no_secrets(run_in_memory: InMemory, sentry: Recorder) -> None:
    await fail_with_secrets(run_in_memory, include_payload=False)
    (event,) = sentry.events
    text = json.dumps(event)
    assert SECRET not in text
    assert "abc123token" not in json.dumps([exception["value"] for exception in event["exception"]["values"]])
    assert all("vars" not in frame for each in event["exception"]["values"] for frame in each["stacktrace"]["frames"])
    assert [exception["type"] for exception in event["exception"]["values"]] == ["OSError", "ValueError"]
    assert event["tags"]["customer"] == "7", "the handler's own scope is that of the event"


async def test_the_payload_is_sent_if_the_program_asks_for_it(run_in_memory: InMemory, sentry: Recorder) -> None:
    await fail_with_secrets(run_in_memory, include_payload=True)
    (event,) = sentry.events
    assert event["contexts"]["item"]["payload"] == json.dumps({"text": SECRET}, separators=(",", ":"))
    assert any("vars" in frame for each in event["exception"]["values"] for frame in each["stacktrace"]["frames"])


async def test_a_timeout_is_named_and_shows_where_the_handler_waited(db: str, sentry: Recorder) -> None:
    runner = Runner(db)
    instrument(runner)

    @runner.handler(batch="b", max_attempts=1, timeout=0.01)
    async def handler(number: int) -> None:
        await asyncio.Event().wait()

    async with runner:
        await handler.submit(1)
        await run_until_idle(runner)
    (event,) = sentry.events
    last = event["exception"]["values"][-1]
    assert (last["type"], last["value"]) == ("AttemptTimeout", "ran longer than its timeout of 0.01 s")
    assert "handler" in [frame["function"] for frame in last["stacktrace"]["frames"]]


async def test_an_item_whose_payload_cannot_be_read_is_an_event_without_a_stack(db: str, sentry: Recorder) -> None:
    runner = Runner(db)
    instrument(runner)

    @runner.handler(batch="b", max_attempts=1)
    async def handler(number: int) -> None: ...

    async with runner:
        await internals_of(runner).submitter.add(
            internals_of(runner).submitter.batch_id("b"),
            [NewItem("k", '"text"')],
            on_change="error",
        )
        await run_until_idle(runner)
    (event,) = sentry.events
    assert event["exception"]["values"][-1]["type"] == "PayloadUnreadable"
    assert event["tags"]["asyncrunner.item"] == "k"


async def test_interrupted_and_put_off_attempts_are_no_events_and_the_end_is_complete(
    db: str, sentry: Recorder, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    runner = Runner(db, shutdown_timeout=0)
    end = instrument(runner)
    running: list[int] = []

    @runner.handler(batch="b")
    async def handler(number: int) -> None:
        running.append(number)
        if number == 1:
            raise Later("not yet", after=3600)
        await asyncio.Event().wait()

    with caplog.at_level(logging.DEBUG, "asyncrunner"):
        async with runner:
            await handler.submit_many([1, 2])
            await until(lambda: len(running) == 2)
    assert sentry.events == []
    end()
    assert internals_of(runner).around == []
    assert not internals_of(runner).events.observers_of(Settled)
