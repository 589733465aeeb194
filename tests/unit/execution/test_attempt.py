"""The attributes and methods of an attempt that a handler may use."""

from __future__ import annotations

import inspect
from typing import Any

from asyncrunner import Attempt, current_attempt, run_batch

PUBLIC = {"batch", "checkpoint", "deadline", "idempotency_key", "is_last", "key", "max_attempts", "number", "save"}


def test_an_attempt_shows_only_the_attributes_for_handlers() -> None:
    assert {name for name in dir(Attempt) if not name.startswith("_")} == PUBLIC


async def test_a_handler_cannot_end_or_drop_itself_through_any_method_of_its_attempt(db: str) -> None:
    async def handler(item: int) -> list[str]:
        attempt: Any = current_attempt()
        called: list[str] = []
        for name in dir(attempt):
            member = None if name.startswith("_") else getattr(attempt, name)
            if callable(member):
                answer = member(*[1 for _ in inspect.signature(member).parameters])
                if inspect.isawaitable(answer):
                    await answer
                called.append(name)
        assert not hasattr(attempt, "interrupt")
        return called

    report = await run_batch([1], handler, db=db, max_attempts=1)
    assert [outcome.result async for outcome in report.outcomes()] == [["save"]]
