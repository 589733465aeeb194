"""How ``asyncrunner work --processes`` divides the concurrency of a Runner and of its handlers among its children."""

from __future__ import annotations

from typing import Any

import pytest

from asyncrunner import Runner
from asyncrunner.cli.process.work_children import WorkSettings, settings_of


async def handle(item: int) -> None:
    pass


@pytest.mark.parametrize(
    ("concurrency", "handlers", "processes", "shares"),
    [
        (10, {"a": {}}, 4, [(3, {"a": 3}), (3, {"a": 3}), (2, {"a": 2}), (2, {"a": 2})]),
        (2, {"a": {}}, 4, [(1, {"a": 1}), (1, {"a": 1})]),
        # A handler with a limit keeps that limit in all children together.
        (8, {"a": {}, "one": {"concurrency": 1}}, 2, [(4, {"a": 4}), (4, {"a": 4, "one": 1})]),
        (8, {"one": {"concurrency": 1}, "three": {"concurrency": 3}}, 2, [(4, {"one": 1, "three": 1}), (4, {"three": 2})]),
        (8, {"one": {"concurrency": 1}}, 2, [(4, {"one": 1})]),
    ],
)
def test_the_concurrency_is_the_total_of_the_children(
    concurrency: int, handlers: dict[str, dict[str, Any]], processes: int, shares: list[tuple[int, dict[str, int]]]
) -> None:
    runner = Runner("jobs.db")
    for batch, options in handlers.items():
        runner.handler(batch=batch, **options)(handle)
    settings = WorkSettings("m:runner", None, concurrency, {}, None, None, False, "info")
    children = settings_of(runner, settings, list(handlers), processes)
    assert [(child.concurrency, dict(child.limits)) for child in children] == shares
