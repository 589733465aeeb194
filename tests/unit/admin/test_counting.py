"""``Control.count`` returns the number of items that a list would show; ``Control.ids_with`` finds ids by their start."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from asyncrunner import BatchNotFound, ConfigurationError, Control, Fail, run_batch


async def fails_for_odd(n: int) -> int:
    if n % 2:
        raise Fail(f"odd {n}" if n < 5 else "odd and large")
    return n


@pytest.fixture
async def control(db: str) -> AsyncIterator[Control]:
    await run_batch(range(10), fails_for_odd, db=db, batch="b", key=lambda n: f"k{n}" if n < 8 else f"x{n}")
    async with Control(db) as control:
        yield control


async def test_count_is_exact_for_each_filter(control: Control) -> None:
    assert await control.count() == 10
    assert await control.count("b", status="failed") == 5
    assert await control.count(status="pending") == 0
    assert await control.count(error="odd and large") == 3
    assert await control.count(status="completed", older_than=0) == 5
    assert await control.count(older_than="1h") == 0
    assert await control.count(error="no such error") == 0
    with pytest.raises(BatchNotFound):
        await control.count("c")


async def test_a_count_agrees_with_the_ids(control: Control) -> None:
    assert await control.count(error="odd*") == len([key async for key in control.ids(error="odd*")])


async def test_ids_are_found_by_their_start(control: Control) -> None:
    assert await control.ids_with("x") == ["x8", "x9"]
    assert await control.ids_with("k", limit=3) == ["k0", "k1", "k2"]
    assert await control.ids_with("K") == []
    assert await control.ids_with("%") == []
    with pytest.raises(ConfigurationError, match="prefix"):
        await control.ids_with("\0")


async def test_the_history_of_a_cause_has_the_attempts_of_each_minute(control: Control) -> None:
    causes = await control.failures()
    fingerprints = [cause.fingerprint or "" for cause in causes]
    history = await control.cause_history(fingerprints)
    assert {key: sum(minutes) for key, minutes in history.items()} == {cause.fingerprint: cause.attempts for cause in causes}
    assert {len(minutes) for minutes in history.values()} == {60}
    assert sum(sum(minutes[-2:]) for minutes in history.values()) == 5
    assert await control.cause_history(["unknown"]) == {"unknown": [0] * 60}
    with pytest.raises(ConfigurationError, match="fingerprints"):
        await control.cause_history("one text")


async def test_status_and_problems_are_those_of_status_and_check(control: Control) -> None:
    status, problems = await control.status_and_problems()
    assert problems == await control.check()
    assert [problem.check for problem in problems] == ["failed"]
    assert status.batches == (await control.status()).batches
    assert (await control.status_and_problems("b"))[0].batches == status.batches


async def test_the_status_names_the_oldest_item_that_is_due(db: str, control: Control) -> None:
    assert (await control.status()).batches[0].oldest_id is None
    await control.retry(["k3", "k1"])
    assert (await control.status()).batches[0].oldest_id == "k1"
