"""A list of unfinished items is the same whether it comes from the rows near its beginning or from an index."""

from __future__ import annotations

import pytest

from asyncrunner import Control, Fail, run_batch
from asyncrunner.sqlite.admin import items


async def fails_for_some(n: int) -> int:
    if n % 7 == 0 or n < 20:
        raise Fail("divisible" if n % 7 == 0 else "small")
    return n


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("near", [0, 3, 25, 1_000])
async def test_lists_are_the_same_however_many_rows_are_looked_at_first(
    db: str, newest: bool, near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_batch(range(200), fails_for_some, db=db, batch="other", max_attempts=1)
    await run_batch(range(200), fails_for_some, db=db, batch="b", max_attempts=1)
    monkeypatch.setattr(items, "_NEAR", near)
    failed = [str(n) for n in range(200) if n % 7 == 0 or n < 20]
    small = [str(n) for n in range(20) if n % 7 != 0]
    async with Control(db) as control:
        await control.retry([str(n) for n in range(0, 200, 14)], "b")
        failed, pending = [each for each in failed if int(each) % 14], [str(n) for n in range(0, 200, 14)]
        for expected, criteria in (
            (failed, {"status": "failed"}),
            (small, {"error": "small"}),
            (pending, {"status": "pending"}),
        ):
            expected = expected[::-1] if newest else expected
            for limit in (1, 2, 10, 100):
                found: list[str] = []
                after: str | None = None
                while True:
                    page = await control.items("b", newest=newest, limit=limit, after=after, **criteria)
                    found += [item.id for item in page.items]
                    after = page.after
                    if after is None:
                        break
                assert found == expected, (criteria, limit)
