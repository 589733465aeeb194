"""A FastAPI route returns each value of Control, and a report, as it is; ``to_dict()`` gives the same plain JSON types."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from asyncrunner import BatchReport, Control, Counts, Fail, History, Plan, RetryPolicy, plan_batch, run_batch
from asyncrunner.admin.read_models import (
    BatchStatus,
    Changed,
    FileStatus,
    Isolated,
    ItemDetails,
    ItemPage,
    Problem,
    Purged,
    Stuck,
    Throttled,
    WorkerStatus,
)
from asyncrunner.batch.report import ItemOutcome
from asyncrunner.store.snapshot import FailureCause

HOSTILE = "<script>alert(1)</script>&\"'\x1b[2J"


async def fail_for_odd(item: dict[str, Any]) -> dict[str, Any]:
    if item["n"] % 2:
        raise ValueError(HOSTILE)
    return item


@pytest.fixture
async def report(db: str) -> BatchReport[Any, Any]:
    items = [{"n": n, "text": HOSTILE} for n in range(5)]
    return await run_batch(items, fail_for_odd, db=db, max_attempts=1, key="n", retry=RetryPolicy(initial=0))


@pytest.fixture
async def control(db: str, report: BatchReport[Any, Any]) -> AsyncIterator[Control]:
    async with Control(db) as control:
        yield control


async def response_of(value: Any, annotation: Any = None) -> Any:
    """Return the JSON of a real route that returns *value*, with or without a return annotation."""
    app = FastAPI()

    async def route():  # type: ignore[no-untyped-def]
        return value

    if annotation is not None:
        route.__annotations__["return"] = annotation
    app.get("/value")(route)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.get("/value")
        assert response.status_code == 200
        schema = (await client.get("/openapi.json")).json()
    if annotation is not None:
        content = schema["paths"]["/value"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert content not in ({}, {"type": "object"}), "the OpenAPI schema names the fields"
    return response.json()


async def check(value: Any, annotation: Any = None) -> None:
    annotation = annotation or type(value)
    plain = value.to_dict()
    assert json.loads(json.dumps(plain)) == plain, "plain JSON types"
    assert await response_of(value) == plain
    assert await response_of(value, annotation) == plain


async def test_a_report_is_returned_as_it_is_without_its_reader(report: BatchReport[Any, Any]) -> None:
    await check(report, BatchReport)
    plain = report.to_dict()
    assert (plain["total"], plain["completed"], plain["failed"]) == (5, 3, 2)
    assert plain["failures"] == [{"error": f"ValueError: {HOSTILE}", "items": 2, "example": "1"}]
    assert plain["batch_counts"]["completed"] == 3
    assert not [name for name in plain if name.startswith("_")]


class Point(msgspec.Struct):
    x: int
    at: datetime


async def test_an_outcome_is_returned_as_it_is_with_item_and_result_as_they_are_stored(db: str) -> None:
    async def move(point: Point) -> Point:
        if point.x == 2:
            raise Fail("too far")
        return Point(point.x + 1, point.at)

    points = [Point(x, datetime(2026, 1, 2, tzinfo=UTC)) for x in (1, 2)]
    report = await run_batch(points, move, db=db, batch="b", key="x")
    moved, failed = [outcome async for outcome in report.outcomes()]
    for outcome in (moved, failed):
        assert await response_of(outcome, ItemOutcome) == outcome.to_dict()
    plain = moved.to_dict()
    assert (plain["id"], plain["status"], plain["error"]) == ("1", "completed", None)
    assert (plain["item"], plain["result"]) == (
        {"x": 1, "at": "2026-01-02T00:00:00Z"},
        {"x": 2, "at": "2026-01-02T00:00:00Z"},
    )
    assert (failed.to_dict()["result"], failed.to_dict()["error"]) == (None, "Fail: too far")


async def test_a_plan_is_returned_as_it_is(report: BatchReport[Any, Any]) -> None:
    plan = await plan_batch([{"n": 1, "text": "x"}], fail_for_odd, db=report.db, key="n")
    await check(plan, Plan)


async def test_the_values_of_control_are_returned_as_they_are(control: Control) -> None:
    status = await control.status()
    page = await control.items(limit=2)
    details = await control.show("1")
    assert page.after is not None
    assert details.payload == {"n": 1, "text": HOSTILE}
    for value, kind in ((status, FileStatus), (status.batches[0], BatchStatus), (page, ItemPage), (details, ItemDetails)):
        await check(value, kind)
    await check(await control.history(minutes=2), History)
    for purged_or_changed in (await control.purge(timedelta(0), dry_run=True), await control.retry(["1"])):
        assert isinstance(purged_or_changed, Purged | Changed)
        await check(purged_or_changed)
    problems = await control.check(max_failed=0)
    assert problems
    assert await response_of(problems, list[Problem]) == [problem.to_dict() for problem in problems]


async def test_exported_items_are_returned_as_dictionaries(control: Control) -> None:
    rows = [record.to_dict() async for record in control.export()]
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert await response_of(rows) == rows


async def test_causes_are_returned_as_a_list_and_their_dictionary_has_the_numbers(control: Control) -> None:
    causes = await control.failures()
    (cause,) = causes.to_dict()["causes"]
    assert (cause["items"], causes.to_dict()["more_items"]) == (2, 0)
    assert await response_of(causes) == [cause]
    assert await response_of(causes, list[FailureCause]) == [cause]


@pytest.mark.parametrize(
    "value",
    [
        Stuck("b", "1", "w", True, 1.5, 2),
        Throttled(1, 10, 0.5),
        Isolated("1", 2, None, None),
        WorkerStatus("w", "here", 1, None, "2026-01-01 00:00:00.000", 0.5, 10, 1, 1, 5, 0, 0, 0.0),
        Counts(pending=1),
    ],
)
async def test_the_parts_of_these_values_are_returned_as_they_are(value: Any) -> None:
    await check(value)


async def test_every_value_is_a_table_in_a_notebook_and_every_text_in_it_is_escaped(
    control: Control, report: BatchReport[Any, Any]
) -> None:
    values: list[Any] = [report, await control.status(), await control.show("1"), await control.failures(), await control.items()]
    for value in values:
        html = value._repr_html_()
        assert html.startswith("<table>")
        assert "<script" not in html
        assert "\x1b" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in report._repr_html_()


def test_a_table_of_many_rows_and_a_long_text_are_cut() -> None:
    page = ItemPage("b" * 10_000, [], None)
    assert len(page._repr_html_()) < 1_000
    from asyncrunner.text.html import html_table

    html = html_table([{"n": n} for n in range(1000)])
    assert html.endswith("<tr><td>and 950 more</td></tr></table>")
    assert html.count("<tr>") == 52
